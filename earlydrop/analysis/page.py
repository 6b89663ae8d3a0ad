"""Tables in Markdown and HTML, and pages in HTML."""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.metrics import METRICS

TERMS = {
    "arm": "All runs with one configuration, whatever their seed.",
    "runs": "Runs of one configuration and one seed; in a table, the arm's finished runs.",
    "seed": "Runs of one seed share initial weights, batches and augmentation.",
    "seeds": "Seeds that both arms have finished.",
    "fingerprint": "A hash of everything that decides a run's numbers.",
    "commit": "The commit of earlydrop that the runs were made with.",
    "seconds": "Training time, of all processes of a resumed run together.",
}
"""The meaning of the terms of a page, except the metrics."""
_WHEN = {
    "final": "The last value of the run.",
    "early": "The mean over the first fifth of the run.",
}


def terms() -> dict[str, str]:
    """The meaning of the headings of tables, by heading."""
    metrics = {
        metric.heading: " ".join(filter(None, [metric.meaning, _WHEN.get(metric.column or "")]))
        for metric in METRICS.values()
        if metric.heading is not None
    }
    return TERMS | metrics


def to_markdown(table: pd.DataFrame, aligned: bool = True) -> str:
    """A table of text cells in Markdown.

    Args:
        table: The table.
        aligned: Whether cells are padded with spaces, so that the source has aligned columns too.
    """
    body = zip(table.index, table.to_numpy(), strict=True)
    rows = [
        _markdown_cells([table.index.name or "", *table.columns]),
        *(_markdown_cells([name, *row]) for name, row in body),
    ]
    columns = range(len(rows[0]))
    widths = [max(len(row[column]) for row in rows) if aligned else 1 for column in columns]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _markdown_cells(values: Iterable[object]) -> list[str]:
    return [str(value).replace("|", r"\|").replace("\n", " ") for value in values]


def html_table(table: pd.DataFrame) -> str:
    """A table of text cells in HTML, which `page.js` sorts."""
    body = zip(table.index, table.to_numpy(), strict=True)
    head = _html_row([table.index.name or "", *table.columns], "th")
    rows = "".join(_html_row([name, *cells], "td") for name, cells in body)
    return f"<table class='sortable'>{head}{rows}</table>"


def _html_row(cells: Iterable[object], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def html_list(lines: list[str]) -> str:
    """Lines as a list in HTML."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def pictures(figures: list[Path], page: Path) -> str:
    """PNG files as ``<img>`` elements, with paths relative to the folder ``page``."""
    elements = []
    for path in figures:
        source = html.escape(Path(os.path.relpath(path, page)).as_posix())
        name = html.escape(path.stem)
        elements.append(f'<img loading="lazy" alt="{name}" title="{name}" src="{source}">')
    return f"<div class='figures'>{''.join(elements)}</div>"


def html_page(title: str, sections: list[str]) -> str:
    """A page from a title and HTML sections, with its style and script inside."""
    viewport = "<meta name='viewport' content='width=device-width,initial-scale=1'>"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'>{viewport}"
        f"<title>{html.escape(title)}</title><style>{_part('page.css')}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}"
        f"<script>{_part('page.js')}</script></html>\n"
    )


def report_page(**values: Any) -> str:
    """The page of a study, from ``report.html``.

    Args:
        **values: What the template shows. Text is escaped; ``markupsafe.Markup`` is not.
    """
    from markupsafe import Markup

    page: str = _template().render(
        terms=terms(),
        style=Markup(_part("page.css")),
        script=Markup(_part("page.js")),
        **values,
    )
    return page


@functools.cache
def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(_part("report.html"))
