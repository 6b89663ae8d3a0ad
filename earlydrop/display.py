"""Small tables of what the library returns, as text and, for a notebook, as HTML. Needs nothing but the standard library."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def number(value: float | int | None) -> str:
    """A number in four significant digits, a count with its thousands apart; a dash for None.

    >>> number(0.123456), number(60_000), number(None)
    ('0.1235', '60,000', '-')
    """
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def rows_as_text(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells with their columns aligned, one line each."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def rows_as_html(rows: Iterable[Sequence[str]], head: Sequence[str], caption: str = "") -> str:
    """Rows of cells as an HTML table; every text is escaped."""
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{above}<tr>{top}</tr>{body}</table>"
