"""The figure of the answer: one line per claim and dataset, with its difference and verdict."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.plots import LOOK
from earlydrop.claims.answer import SYMBOLS, Point

# Verdicts differ without colour, too.
_STYLES: dict[str, dict[str, Any]] = {
    "confirmed": {"color": "#1b7837", "marker": "o"},
    "no effect": {"color": "#555555", "marker": "s"},
    "opposite": {"color": "#b2182b", "marker": "X"},
    "undecided": {"color": "#e08214", "marker": "o", "markerfacecolor": "white"},
}
_LIMIT = 40.0
"""The end of the axis, in multiples of the smallest effect that matters.

Points beyond it are drawn at the end.
"""


def draw_points(points: Sequence[Point], path: Path) -> None:
    """Draw the points of the answer, in multiples of the smallest effect that matters.

    The scale is linear between -1 and 1, which is shaded, and logarithmic outside.

    Args:
        points: The points in the order of the figure's lines, those of one claim together.
        path: The file to write.
    """
    lines = len(points) + len({point.claim for point in points})
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(6.2, 1.6 + 0.19 * lines), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-1, 1, color="#eeeeee", linewidth=0)
        axes.axvline(0, color="#999999", linewidth=1)
        _draw_lines(axes, points)
        _scale(axes)
        for word in dict.fromkeys(point.verdict for point in points):
            label = f"{SYMBOLS[word]} {word}"
            axes.plot([], [], linestyle="none", label=label, markersize=6, **_STYLES[word])
        axes.legend(
            frameon=False,
            fontsize=9,
            ncols=4,
            loc="lower center",
            bbox_to_anchor=(0.4, 1.0),
        )
        axes.grid(alpha=0.25, axis="x")
        figure.savefig(path, dpi=130)


def _draw_lines(axes: Axes, points: Sequence[Point]) -> None:
    """Draw each claim as a heading with its points below it, from top to bottom."""
    line = 0
    ticks: dict[int, str] = {}
    for words, group in itertools.groupby(points, lambda point: point.claim):
        line += 1
        axes.text(
            x=-0.195,
            y=line,
            s=words,
            transform=axes.get_yaxis_transform(),  # x as a share of the axes, y in lines
            fontsize=9,
            fontweight="bold",
            va="center",
            in_layout=False,
        )
        for point in group:
            line += 1
            ticks[line] = point.data
            _draw_point(axes, point, line)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9)
    axes.set_ylim(line + 1, 0)


def _scale(axes: Axes) -> None:
    """Set the horizontal scale, with its ticks and label."""
    axes.set_xscale("symlog", linthresh=1, linscale=1.5)
    axes.set_xlim(-_LIMIT, _LIMIT)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
    axes.set_xticks(ticks, [str(abs(value)) for value in ticks])
    against = "\N{LEFTWARDS ARROW} against the claim"
    towards = "towards the claim \N{RIGHTWARDS ARROW}"
    axes.set_xlabel(
        f"{against}        {towards}\n"
        "difference with its 95% interval, in multiples of the\n"
        "smallest effect that matters (smaller differences are shaded)",
        fontsize=9,
    )


def _draw_point(axes: Axes, point: Point, line: int) -> None:
    ends = (point.paired.low, point.paired.high)
    effect, low, high = (_in_multiples(value, point) for value in (point.paired.effect, *ends))
    style = _STYLES[point.verdict]
    axes.plot([low, high], [line, line], color=style["color"], linewidth=1.4)
    axes.plot([effect], [line], linestyle="none", markersize=6, **style)


def _in_multiples(value: float, point: Point) -> float:
    """A difference in multiples of the smallest effect that matters, within the axes."""
    return min(max(value / point.smallest, -_LIMIT), _LIMIT)
