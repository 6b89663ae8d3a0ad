"""The parts of a figure: its look, its title, and a pair of axes with one curve per arm.

The figures of a report are 4.8 inches wide, so that their text can be read on a phone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.curves import Curve, Panel
from earlydrop.analysis.styles import styles

LOOK = {
    "font.size": 11,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Settings of matplotlib for every figure."""
WIDTH, HEIGHT, DPI = 4.8, 3.0, 200
SMALL, GREY = 9, "#666666"
SUBTITLE: dict[str, Any] = {"fontsize": SMALL, "color": GREY}
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}


def add_title(figure: Figure, title: str, subtitle: str) -> None:
    """Add a bold title, and below it a subtitle in small letters; the axes get the rest."""
    width, height = figure.get_size_inches()
    # About 9.2 letters of a title and 14.2 of a subtitle fit into an inch. The other numbers are
    # inches: the heights of lines, and margins.
    heading = textwrap.wrap(title[:1].upper() + title[1:], int(9.2 * width))
    lines = textwrap.wrap(subtitle, int(14.2 * width))
    top = 0.06
    for text, line, style in ((heading, 0.22, _TITLE), (lines, 0.165, SUBTITLE)):
        figure.text(0.02, 1 - top / height, "\n".join(text), va="top", in_layout=False, **style)
        top += line * len(text)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - (top + 0.05) / height))


def draw_panel(axes: Axes, panel: Panel, arms: Sequence[str], place: int = 0) -> None:
    """Draw a panel: one line per arm with its band, the level, and the cutoffs.

    Args:
        axes: The axes to draw on.
        panel: The panel.
        arms: All arms of the figure, so that each looks the same in every panel.
        place: The number of the panel in the figure, from 0; panel 0 names the cutoff.
    """
    look = styles(arms)
    for arm, curve in panel.curves.items():
        _draw_curve(axes, arm, curve, look[arm])
    axes.set_title(panel.label, loc="left", fontsize=SMALL)
    axes.grid(alpha=0.25)
    axes.margins(x=0.02, y=0.1)
    if panel.level is not None:
        draw_level(axes, *panel.level)
    if panel.bottom is not None and axes.get_ylim()[0] < panel.bottom:
        axes.set_ylim(bottom=panel.bottom)
    for number, step in enumerate(panel.cutoffs):
        _draw_cutoff(axes, step, named=place == 0 and number == 0)
    for number, artist in enumerate([*axes.lines, *axes.collections, *axes.texts]):
        artist.set_gid(f"data-{place}-{number}")  # page.js hides these when it zooms in


def _draw_curve(axes: Axes, arm: str, curve: Curve, style: Mapping[str, Any]) -> None:
    axes.plot(
        curve.steps,
        curve.means,
        label=legend_name(arm),
        markersize=4,
        markevery=max(len(curve.steps) // 12, 1),
        linewidth=1.4,
        **style,
    )
    if np.isfinite(curve.half_widths).any():
        axes.fill_between(
            curve.steps,
            curve.means - curve.half_widths,
            curve.means + curve.half_widths,
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )


def draw_level(axes: Axes, height: float, name: str) -> None:
    axes.axhline(height, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        name,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=8,
        color=GREY,
        ha="right",
        va="bottom",
    )


def _draw_cutoff(axes: Axes, step: float, named: bool) -> None:
    """Draw a dotted line at a cutoff. If ``named``, write "cutoff" on the side with more room."""
    axes.axvline(step, color=GREY, linewidth=1, linestyle=":", zorder=1)
    if not named:
        return
    left, right = axes.get_xlim()
    late = (step - left) / (right - left) > 0.8
    axes.annotate(
        "cutoff",
        (step, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if late else 3, -1),
        textcoords="offset points",
        fontsize=8,
        color=GREY,
        ha="right" if late else "left",
        va="top",
    )


def legend_name(name: str, width: int = 46) -> str:
    """An arm's name for a legend: wrapped, with a space before a leading underscore.

    Matplotlib hides labels that begin with an underscore.
    """
    name = f" {name}" if name.startswith("_") else name
    return "\n".join(textwrap.wrap(name, width, drop_whitespace=False))
