"""Figures as elements of a page: SVG in the page's colours, with the numbers that page.js shows."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.curves import Curve, Panel
from earlydrop.analysis.panels import LOOK
from earlydrop.analysis.plots import Drawing
from earlydrop.analysis.styles import styles

_COLOURS = {  # a colour of a figure, and its variable on the page, which has a dark mode
    "#ffffff": "var(--paper)",
    "#000000": "var(--ink)",
    "#222222": "var(--ink)",
    "#666666": "var(--soft-ink)",
    "#b0b0b0": "var(--grid)",
    "#0072b2": "var(--blue)",
}
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")  # a hundredth of a point is enough
_POINTS_AN_INCH = 72


def curves_as_html(drawing: Drawing) -> str:
    """A figure of curves as one ``<figure>``: the picture, and beside it the numbers that it shows.

    The picture needs no script. With `page.js` one can read values off it, and zoom in.
    """
    svg = figure_as_svg(drawing.figure, drawing.name)
    numbers = [_numbers(drawing, axes, panel) for axes, panel in drawing.panels]
    data = json.dumps(numbers, separators=(",", ":")).replace("<", r"\u003c")
    return f"<figure class='chart'>{svg}<script type='application/json'>{data}</script></figure>"


def points_as_html(figure: Figure, name: str, words: Mapping[str, str]) -> str:
    """A figure of points as one ``<figure>``; hovering over a point shows its numbers.

    Args:
        figure: From `earlydrop.analysis.points.points_figure`.
        name: A name that no other figure of the page has.
        words: The numbers of each point as text, by its id (``point-0``, ...).

    Returns:
        The element.
    """
    svg = figure_as_svg(figure, name)
    for point, text in words.items():
        tag = f'id="{name}-{point}">'
        svg = svg.replace(tag, f"{tag}<title>{html.escape(text)}</title>")
    return f"<figure>{svg}</figure>"


def figure_as_svg(figure: Figure, name: str) -> str:
    """A figure as an ``<svg>`` element that scales with the page.

    Args:
        figure: The figure.
        name: A name that no other figure of the page has; it begins every id.

    Returns:
        The element.
    """
    content = io.StringIO()
    settings = LOOK | {"svg.fonttype": "none", "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page sets the size.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # In a page of HTML, SVG needs no namespaces.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Ids must be unique on the page: prefix them, and the references to them.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    # The font, the colours and shorter numbers.
    svg = re.sub(r"font: (bold )?([\d.]+px) [^;\"]*", r"font: \1\2 system-ui, sans-serif", svg)
    svg = re.sub("|".join(_COLOURS), lambda match: _on_page(match[0]), svg)
    svg = re.sub(r"<[^>]+>", lambda tag: _DECIMALS.sub(r"\1", tag[0]), svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)
    return re.sub(r"\n\s*", "\n", svg)


def _on_page(colour: str) -> str:
    """A colour of a figure, as the page has it."""
    return _COLOURS.get(colour, colour)


def _numbers(drawing: Drawing, axes: Axes, panel: Panel) -> dict[str, Any]:
    """The numbers of a panel for `page.js`: its place in the picture, its limits and its curves."""
    width, height = drawing.figure.get_size_inches() * _POINTS_AN_INCH
    box = axes.get_position()
    look = styles(drawing.arms)
    curves = []
    for arm, curve in panel.curves.items():
        curves.append({"arm": arm, "colour": _on_page(look[arm]["color"])} | _points(curve))
    left, right = box.x0 * width, box.x1 * width
    top, bottom = (1 - box.y1) * height, (1 - box.y0) * height
    return {
        "box": _rounded([left, top, right, bottom]),
        "x": _rounded(axes.get_xlim()),
        "y": _rounded(axes.get_ylim()),
        "cutoffs": [float(cutoff) for cutoff in panel.cutoffs],
        "levels": _rounded([panel.level[0]] if panel.level is not None else []),
        "curves": curves,
    }


def _points(curve: Curve) -> dict[str, Any]:
    band = np.isfinite(curve.half_widths).any()
    return {
        "x": [float(step) for step in curve.steps],
        "mean": _rounded(curve.means),
        "half": _rounded(curve.half_widths) if band else [],
    }


def _rounded(values: Any) -> list[float | None]:
    """Values in five digits; None for one that is not finite."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
