"""Small tables of results, as text and as HTML for notebooks. Needs the standard library alone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def number(value: float | int | None) -> str:
    """A number as text: four significant digits, a count with thousands commas, or a dash for None.

    >>> number(0.123456), number(60_000), number(None)
    ('0.1235', '60,000', '-')
    """
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def rows_as_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as text, one line per row, with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def rows_as_html(rows: Iterable[Sequence[str]], head: Sequence[str], caption: str = "") -> str:
    """Rows of cells as an HTML table. Every text is escaped."""
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body += f"<tr>{cells}</tr>"
    return f"<table>{above}<tr>{top}</tr>{body}</table>"
