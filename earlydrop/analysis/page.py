"""Tables and self-contained pages, in Markdown and HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import pandas as pd


def to_markdown(table: pd.DataFrame, aligned: bool = True) -> str:
    """A table of text cells in Markdown, its columns aligned in the source too, or in as few characters as it takes."""

    def cells(values: Iterable[object]) -> list[str]:
        return [str(value).replace("|", r"\|").replace("\n", " ") for value in values]

    body = zip(table.index, table.to_numpy(), strict=True)
    rows = [cells([table.index.name or "", *table.columns]), *(cells([name, *row]) for name, row in body)]
    widths = [max(len(row[i]) for row in rows) if aligned else 1 for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


_STYLE = """
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--line:#ccc;--soft:#f3f3f3;--warn:#fff3e0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#17191c;--line:#444;--soft:#25282c;--warn:#3b2a14}}
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--paper);
overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto;max-width:100%}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:1rem}
img{width:100%;max-width:760px;background:#fff;border-radius:4px}
.trouble{background:var(--warn);border-left:4px solid #d55e00;padding:.5rem 1rem}
small{opacity:.7}code{background:var(--soft)}summary{cursor:pointer;padding:.5rem 0}
@media print{details{display:none}}
"""


def html_table(table: pd.DataFrame) -> str:
    """A table of text cells in HTML."""

    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [list(map(str, (index, *cells))) for index, cells in zip(table.index, table.to_numpy(), strict=True)]
    head = row([str(table.index.name or ""), *map(str, table.columns)], "th")
    return f"<table>{head}{''.join(row(cells, 'td') for cells in body)}</table>"


def html_list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def pictures(figures: list[Path]) -> str:
    """PNG files as elements that hold their own data."""
    elements = (
        f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in figures
    )
    return f"<div class='figures'>{''.join(elements)}</div>"


def html_page(title: str, sections: list[str]) -> str:
    """One self-contained page from a title and HTML sections."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )
