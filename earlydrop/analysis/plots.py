"""Figures: each quantity against the step, a line an arm, and paired differences as points.

Every figure says what it shows, of which model and data, over how many seeds, and what its bands
are. Figures are 4.8 inches wide, so that their text can be read on a phone.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.compare import base_arms, metric_of
from earlydrop.analysis.curves import (
    RATE,
    RATES,
    Curve,
    Panel,
    axis_of,
    common,
    cutoffs,
    drawn_by_default,
    histories,
    measured,
    paired_panel,
    rates_panel,
    values_panel,
    words_of,
)
from earlydrop.analysis.stats import Paired
from earlydrop.analysis.styles import styles
from earlydrop.metrics import METRICS

LOOK = {
    "font.size": 11,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
STEP = "optimizer step"
BANDS = "bands: 95% intervals of the mean (Student's t)"
BARS = "bars: 95% intervals of the paired difference (Student's t)"
_WIDTH, _HEIGHT, _DPI = 4.8, 3.0, 200
_SMALL, _GREY = 9, "#666666"
_TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}
_SUBTITLE: dict[str, Any] = {"fontsize": _SMALL, "color": _GREY}
_NAMED = ("model", "data")
_MOST_POINTS = 400


class Picture(Figure):
    """A figure that a notebook shows, whatever its backend."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100)
        return content.getvalue()


class Drawing:
    """A figure of one metric, with the numbers that it shows.

    Args:
        name: Its file name without an ending.
        figure: The figure.
        panels: Its axes from top to bottom, and what they show.
    """

    def __init__(self, name: str, figure: Figure, panels: Sequence[tuple[Axes, Panel]]) -> None:
        self.name, self.figure, self.panels = name, figure, tuple(panels)

    @property
    def arms(self) -> list[str]:
        """The arms of its lines, sorted."""
        return _arms([panel for _, panel in self.panels])

    def save(self, folder: Path) -> Path:
        """Write it as a PNG file into a folder."""
        path = folder / f"{self.name}.png"
        with mpl.rc_context(LOOK):
            self.figure.savefig(path, dpi=_DPI)
        return path


def drawings(runs: pd.DataFrame, most: int = _MOST_POINTS) -> list[Drawing]:
    """Every figure that some runs have values for.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        most: Points of a line, at most.
    """
    history, bases, said = histories(runs), base_arms(runs), what_was_run(runs)
    marks = tuple(sorted(set(cutoffs(runs).values())))
    classes = common(runs["classes"])
    epoch = common(runs["steps_per_epoch"])
    drawn = []
    for name, metric in drawn_by_default(history).items():
        title = words_of(metric)
        if metric in RATES:
            rates, logged = rates_panel(history, runs)
            note = f"as logged: {', '.join(logged)}" if logged else "from the configuration"
            panels, subtitle = [_with_cutoffs(rates, marks)], f"{said}; {note}"
        else:
            panels, subtitle = [values_panel(history, metric, classes)], f"{said}; {BANDS}"
            known = METRICS.get(metric)
            comparable = known is None or known.column is not None
            paired = paired_panel(history, metric, bases) if comparable else None
            panels += [paired] if paired is not None else []
            panels = [_with_cutoffs(_thinned(panel, most), marks) for panel in panels]
        figure, axes = _stack(panels, title, subtitle, _step_label(epoch))
        drawn.append(Drawing(name, figure, list(zip(axes, panels, strict=True))))
    return drawn


def _thinned(panel: Panel, most: int) -> Panel:
    curves = {arm: curve.thinned(most) for arm, curve in panel.curves.items()}
    return replace(panel, curves=curves)


def _with_cutoffs(panel: Panel, steps: tuple[float, ...]) -> Panel:
    return replace(panel, cutoffs=steps)


def what_was_run(runs: pd.DataFrame) -> str:
    """Model, data and the number of seeds, such as "mlp on glyphs, n = 3 seeds"."""
    models, data = (", ".join(sorted(runs[f"config/{key}.name"].unique())) for key in _NAMED)
    counts = runs.groupby("arm")["seed"].nunique()
    fewest, most = int(counts.min()), int(counts.max())
    seeds = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{models} on {data}, n = {seeds} seed{'' if most == 1 else 's'}"


def _step_label(steps_per_epoch: float | None) -> str:
    return f"{STEP} ({steps_per_epoch:,.0f} an epoch)" if steps_per_epoch else STEP


def _stack(
    panels: Sequence[Panel],
    title: str,
    subtitle: str,
    horizontal: str,
) -> tuple[Figure, list[Axes]]:
    """Panels one above the other, with a title above and a legend below."""
    arms = _arms(panels)
    with mpl.rc_context(LOOK):
        lines = sum(_legend(arm).count("\n") + 1 for arm in arms)
        below = 0.25 * -(-lines // _legend_columns(arms))
        height = _HEIGHT + 0.3 + 2.0 * (len(panels) - 1) + below
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        ratios = [1.25] + [1.0] * (len(panels) - 1) if len(panels) > 1 else [1.0]
        stacked = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=ratios)
        axes = list(stacked.ravel())
        for place, panel in enumerate(panels):
            draw_panel(axes[place], panel, arms, place)
        axes[-1].set_xlabel(horizontal)
        _entitle(figure, title, subtitle)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=_legend_columns(arms),
            frameon=False,
            fontsize=_SMALL,
        )
    return figure, axes


def _arms(panels: Sequence[Panel]) -> list[str]:
    return sorted({arm for panel in panels for arm in panel.curves})


def _legend_columns(arms: Sequence[str]) -> int:
    longest = max((len(arm) for arm in arms), default=0)
    return 3 if longest <= 14 else 2 if longest <= 24 else 1


def _entitle(figure: Figure, title: str, subtitle: str) -> None:
    """A bold title, and below it in small letters what was run; the axes get the rest."""
    width, height = figure.get_size_inches()
    heading = textwrap.wrap(title[:1].upper() + title[1:], int(9.2 * width))
    lines = textwrap.wrap(subtitle, int(14.2 * width))
    top = 0.06
    for text, line, style in ((heading, 0.22, _TITLE), (lines, 0.165, _SUBTITLE)):
        figure.text(0.02, 1 - top / height, "\n".join(text), va="top", in_layout=False, **style)
        top += line * len(text)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - (top + 0.05) / height))


def draw_panel(axes: Axes, panel: Panel, arms: Sequence[str], place: int = 0) -> None:
    """Draw a panel: a line an arm with its band, its level, and the cutoffs.

    Args:
        axes: Where.
        panel: What.
        arms: All arms of the figure, so that each looks the same in every panel.
        place: Its number in the figure; the first names the cutoff.
    """
    look = styles(arms)
    for arm, curve in panel.curves.items():
        _draw_curve(axes, arm, curve, look[arm])
    axes.set_title(panel.label, loc="left", fontsize=_SMALL)
    axes.grid(alpha=0.25)
    axes.margins(x=0.02, y=0.1)
    if panel.bottom is not None and axes.get_ylim()[0] < panel.bottom:
        axes.set_ylim(bottom=panel.bottom)
    if panel.level is not None:
        _draw_level(axes, *panel.level)
    for number, step in enumerate(panel.cutoffs):
        _draw_cutoff(axes, step, named=place == 0 and number == 0)
    for number, artist in enumerate([*axes.lines, *axes.collections, *axes.texts]):
        artist.set_gid(f"data-{place}-{number}")  # what a page replaces where it is zoomed into


def _draw_curve(axes: Axes, arm: str, curve: Curve, style: Mapping[str, Any]) -> None:
    axes.plot(
        curve.steps,
        curve.means,
        label=_legend(arm),
        markersize=4,
        markevery=max(len(curve.steps) // 12, 1),
        linewidth=1.4,
        **style,
    )
    if np.isfinite(curve.halves).any():
        axes.fill_between(
            curve.steps,
            curve.means - curve.halves,
            curve.means + curve.halves,
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )


def _draw_level(axes: Axes, height: float, name: str) -> None:
    axes.axhline(height, color=_GREY, linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        name,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=8,
        color=_GREY,
        ha="right",
        va="bottom",
    )


def _draw_cutoff(axes: Axes, step: float, named: bool) -> None:
    """A dotted line at a cutoff, with its name on the side where there is room."""
    axes.axvline(step, color=_GREY, linewidth=1, linestyle=":", zorder=1)
    left, right = axes.get_xlim()
    late = (step - left) / (right - left) > 0.8
    if named:
        axes.annotate(
            "cutoff",
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if late else 3, -1),
            textcoords="offset points",
            fontsize=8,
            color=_GREY,
            ha="right" if late else "left",
            va="top",
        )


def _legend(name: str, width: int = 46) -> str:
    """An arm's name in a legend, which a leading underscore would hide, and which must fit."""
    name = name if len(name) <= 60 else f"{name[:38]}...{name[-19:]}"
    name = f" {name}" if name.startswith("_") else name
    return "\n".join(textwrap.wrap(name, width, drop_whitespace=False))


def draw_metric(
    history: pd.DataFrame,
    metric: str,
    label: str,
    path: Path,
    title: str | None = None,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Draw one metric against the step: a line an arm, the mean over seeds with its 95% interval.

    Args:
        history: The columns ``step``, ``arm``, ``seed`` and the metric.
        metric: Its name.
        label: Its words.
        path: The picture.
        title: What was run.
        marks: The arms' cutoffs.
    """
    steps = tuple(sorted(set((marks or {}).values())))
    axis = axis_of(metric) if metric in METRICS else label
    values = values_panel(history, metric, label=axis)
    panel = _with_cutoffs(_thinned(values, _MOST_POINTS), steps)
    subtitle = f"{title}; {BANDS}" if title else BANDS
    figure, axes = _stack([panel], label, subtitle, STEP)
    Drawing(path.stem, figure, [(axes[0], panel)]).save(path.parent)


def picture(runs: pd.DataFrame, metrics: Sequence[str] = ()) -> Picture:
    """The curves of some runs as one figure, a panel a metric.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        metrics: Names of metrics; by default those that a report draws.

    Raises:
        ValueError: A metric that none of the runs has.
    """
    history = histories(runs)
    marks = tuple(sorted(set(cutoffs(runs).values())))
    available = measured(history)
    names = list(metrics) or list(drawn_by_default(history).values())
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        what = unknown[0] if unknown else "nothing"
        there = ", ".join(available) or "none"
        raise ValueError(f"{what} was measured in these runs; there are {there}")
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    arms = sorted(str(arm) for arm in history["arm"].unique())
    rates, _ = rates_panel(history, runs)
    with mpl.rc_context(LOOK):
        figure = Picture(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(grid, names, strict=False):
            values = values_panel(history, name)
            panel = rates if name == RATE else _thinned(values, _MOST_POINTS)
            draw_panel(axes, _with_cutoffs(panel, marks), arms)
            axes.set_xlabel(STEP)
        for axes in grid[len(names) :]:
            axes.set_visible(False)
        if len(arms) > 1:
            grid[0].legend(frameon=False, fontsize=_SMALL)
    return figure


def draw_axis(
    points: Mapping[float, Paired],
    horizontal: str,
    vertical: str,
    path: Path,
    title: str,
) -> None:
    """Draw paired differences with their 95% intervals along one axis of a study.

    Args:
        points: The difference at each value of the axis.
        horizontal: The words of the axis.
        vertical: What was compared.
        path: The picture.
        title: What was run.
    """
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(_WIDTH, _HEIGHT + 0.6), layout="constrained")
        axes = figure.subplots()
        effects = np.array([point.effect for point in points.values()])
        halves = np.array([point.effect - point.low for point in points.values()])
        axes.errorbar(list(points), effects, halves, color="#0072b2", marker="o", capsize=4)
        _draw_level(axes, 0, "no difference")
        if max(points) > 20 * min(points) > 0:
            axes.set_xscale("log")
        axes.set_xlabel(horizontal)
        axes.grid(alpha=0.25)
        _entitle(figure, vertical, f"{title}; {BARS}")
        figure.savefig(path, dpi=_DPI)


def draw_map(
    cells: Mapping[tuple[int, int], tuple[str, Paired | None]],
    path: Path,
    title: str,
) -> None:
    """Draw the regime map: each cell with its label and paired difference.

    Args:
        cells: By (model width, number of training images), the label and the difference.
        path: The picture.
        title: What was run.
    """
    widths, images = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    grid = np.full((len(widths), len(images)), np.nan)
    with mpl.rc_context(LOOK):
        size = (1.5 + 2.0 * len(images), 1.2 + 1.1 * len(widths))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for (width, count), (name, difference) in cells.items():
            if difference is not None:
                row, column = widths.index(width), images.index(count)
                grid[row, column] = difference.effect
                interval = f"[{difference.low:+.3f}, {difference.high:+.3f}]"
                words = f"{name}\n{difference.effect:+.3f}\n{interval}"
                axes.text(column, row, words, ha="center", va="center", fontsize=_SMALL)
        largest = max(float(np.nanmax(np.abs(grid))), 1e-6)
        picture = axes.imshow(
            grid,
            cmap="PuOr",
            vmin=-1.6 * largest,
            vmax=1.6 * largest,
            aspect="auto",
            origin="lower",
        )
        figure.colorbar(picture, ax=axes, label="standard minus none")
        axes.set_xticks(range(len(images)), [f"{count:,}" for count in images])
        axes.set_yticks(range(len(widths)), map(str, widths))
        axes.set_xlabel("training images")
        axes.set_ylabel("model width")
        axes.set_title("\n".join(textwrap.wrap(title, 90)), fontsize=_SMALL, loc="left")
        figure.savefig(path, dpi=_DPI)


def differences_by_metric(
    found: Mapping[str, Mapping[str, Paired]],
) -> dict[str, dict[str, Paired]]:
    """`earlydrop.analysis.compare.differences` turned round: by heading, then by arm."""
    by_metric: dict[str, dict[str, Paired]] = {}
    for arm, by_heading in found.items():
        for heading, point in by_heading.items():
            by_metric.setdefault(heading, {})[arm] = point
    return by_metric


def points_figure(
    by_heading: Mapping[str, Mapping[str, Paired]],
    arms: Sequence[str],
    title: str,
    subtitle: str,
) -> Figure:
    """Paired differences with their 95% intervals: a panel a metric, a row an arm.

    Args:
        by_heading: By heading of a metric, the difference of each arm.
        arms: All arms of the study, so that each looks the same in every figure.
        title: What is shown.
        subtitle: What was run.
    """
    look = styles(sorted(arms))
    rows = max(len(points) for points in by_heading.values())
    with mpl.rc_context(LOOK):
        height = (0.75 + 0.34 * rows) * len(by_heading) + 0.5
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        stacked = figure.subplots(len(by_heading), squeeze=False)
        for axes, (heading, points) in zip(stacked.ravel(), by_heading.items(), strict=True):
            _draw_points(axes, points, look)
            _name_points(axes, heading, titled=len(by_heading) > 1)
        _entitle(figure, title, subtitle)
    return figure


def _draw_points(axes: Axes, points: Mapping[str, Paired], look: Mapping[str, Any]) -> None:
    axes.axvline(0, color=_GREY, linewidth=1)
    for row, (arm, point) in enumerate(points.items()):
        bar = axes.errorbar(
            [point.effect],
            [row],
            xerr=[[point.effect - point.low], [point.high - point.effect]],
            capsize=3,
            markersize=6,
            **(look[arm] | {"linestyle": "none"}),
        )
        bar.lines[0].set_gid(f"point-{row}")
    names = [_legend(arm, 22) for arm in points]
    axes.set_yticks(range(len(points)), names, fontsize=_SMALL)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=_SMALL)
    axes.grid(alpha=0.25, axis="x")


def words_of_heading(heading: str) -> str:
    """What a column of a table is, such as "Test accuracy, at the end"."""
    metric = metric_of(heading)
    if metric is None:
        return heading
    when = "mean over the first fifth" if metric.column == "early" else "at the end"
    return f"{metric.label[:1].upper()}{metric.label[1:]}, {when}"


def _name_points(axes: Axes, heading: str, titled: bool) -> None:
    """Name the metric above its points, and say below which way is better."""
    if titled:
        axes.set_title(words_of_heading(heading), fontsize=10, loc="left")
    metric = metric_of(heading)
    if metric is not None and metric.better == "lower":
        axes.set_xlabel("\N{LEFTWARDS ARROW} better", loc="left", **_SUBTITLE)
    elif metric is not None and metric.better == "higher":
        axes.set_xlabel("better \N{RIGHTWARDS ARROW}", loc="right", **_SUBTITLE)


def draw_differences(
    found: Mapping[str, Mapping[str, Paired]],
    path: Path,
    subtitle: str = "",
) -> None:
    """Draw paired differences as points with their 95% intervals, against the arm without dropout.

    Args:
        found: By arm and heading, from `earlydrop.analysis.compare.differences`.
        path: The picture.
        subtitle: What was run.
    """
    said = f"{subtitle}; " if subtitle else ""
    figure = points_figure(
        differences_by_metric(found),
        list(found),
        title="Each arm minus the arm without dropout",
        subtitle=f"{said}mean over seeds, {BARS}",
    )
    with mpl.rc_context(LOOK):
        figure.savefig(path, dpi=_DPI)
