"""The answer as a picture: one line a claim and dataset, the difference towards the claim, and the verdict."""

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

_LOOKS = {  # colour, marker and whether it is filled: each verdict can be told without its colour
    "confirmed": ("#1b7837", "o", True),
    "no effect": ("#555555", "s", True),
    "opposite": ("#b2182b", "X", True),
    "undecided": ("#e08214", "o", False),
}
_LIMIT = 40.0
"""Points further out are drawn at the edge."""


def draw_points(points: Sequence[Point], path: Path) -> None:
    """Draw the points of the answer, in multiples of the smallest effect that matters.

    The scale is linear between -1 and 1, which is shaded, and logarithmic outside.

    Args:
        points: In the order of the rows.
        path: The picture.
    """
    groups = [(words, list(group)) for words, group in itertools.groupby(points, lambda point: point.words)]
    lines = len(points) + len(groups)
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(6.2, 1.6 + 0.19 * lines), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-1, 1, color="#eeeeee", linewidth=0)
        axes.axvline(0, color="#999999", linewidth=1)
        line = 0
        ticks: dict[int, str] = {}
        for words, group in groups:
            line += 1
            where = axes.get_yaxis_transform()  # x as a share of the axes, y in lines
            axes.text(-0.195, line, words, transform=where, fontsize=9, fontweight="bold", va="center", in_layout=False)
            for point in group:
                line += 1
                ticks[line] = point.data
                _draw_point(axes, point, line)
        axes.set_xscale("symlog", linthresh=1, linscale=1.5)
        axes.set_xlim(-_LIMIT, _LIMIT)
        shown = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
        axes.set_xticks(shown, [str(abs(value)) for value in shown])
        axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9)
        axes.set_ylim(line + 1, 0)
        axes.set_xlabel(
            "\N{LEFTWARDS ARROW} against the claim        towards the claim \N{RIGHTWARDS ARROW}\n"
            "difference with its 95% interval, in multiples of the\nsmallest effect that matters (less is shaded)",
            fontsize=9,
        )
        for word in dict.fromkeys(point.word for point in points):
            axes.plot([], [], linestyle="none", label=f"{SYMBOLS.get(word, '')} {word}", **_look(word))
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0))
        axes.grid(alpha=0.25, axis="x")
        figure.savefig(path, dpi=130)


def _look(word: str) -> dict[str, Any]:
    colour, marker, filled = _LOOKS.get(word, _LOOKS["undecided"])
    return {"color": colour, "marker": marker, "markerfacecolor": colour if filled else "white", "markersize": 6}


def _draw_point(axes: Axes, point: Point, line: int) -> None:
    effect, low, high = (
        min(max(value / point.size, -_LIMIT), _LIMIT) for value in (point.paired.effect, point.paired.low, point.paired.high)
    )
    look = _look(point.word)
    axes.plot([low, high], [line, line], color=look["color"], linewidth=1.4)
    axes.plot([effect], [line], linestyle="none", **look)
