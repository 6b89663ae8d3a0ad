"""Figures: quantities against the step, differences along a setting, and maps of two settings.

Every figure of a report says what it shows, of which model and data, over how many seeds, and what
its bands are.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlydrop.analysis.compare import base_arms
from earlydrop.analysis.curves import (
    RATE_METRIC,
    RATE_METRICS,
    Panel,
    common_value,
    cutoffs,
    default_figures,
    histories,
    measured_metrics,
    paired_panel,
    rates_panel,
    values_panel,
    words_of,
)
from earlydrop.analysis.panels import (
    DPI,
    HEIGHT,
    SMALL,
    WIDTH,
    add_title,
    draw_level,
    draw_panel,
    legend_name,
)
from earlydrop.analysis.panels import LOOK as LOOK
from earlydrop.analysis.points import BARS
from earlydrop.analysis.stats import Paired
from earlydrop.metrics import METRICS, known_metric

STEP = "optimizer step"
BANDS = "bands: 95% intervals of the mean (Student's t)"
_MOST_POINTS = 400


class Picture(Figure):
    """A figure that a notebook shows under every backend of matplotlib."""

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
            self.figure.savefig(path, dpi=DPI)
        return path


def drawings(runs: pd.DataFrame, most: int = _MOST_POINTS) -> list[Drawing]:
    """Every figure that some runs have values for.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        most: The largest number of points of a line, without its last point, which is always drawn.
            Lines of drop rates are drawn whole.
    """
    history, bases, subtitle_start = histories(runs), base_arms(runs), what_was_run(runs)
    marks = tuple(sorted(set(cutoffs(runs).values())))
    classes = common_value(runs["classes"])
    epoch = common_value(runs["steps_per_epoch"])
    drawn = []
    for name, metric in default_figures(history).items():
        title = words_of(metric)
        if metric in RATE_METRICS:
            rates, logged = rates_panel(history, runs)
            note = f"as logged: {', '.join(logged)}" if logged else "from the configuration"
            panels, subtitle = [_with_cutoffs(rates, marks)], f"{subtitle_start}; {note}"
        else:
            panels = [values_panel(history, metric, classes)]
            subtitle = f"{subtitle_start}; {BANDS}"
            known = known_metric(metric)
            # Arms are not compared by a metric that no table has, such as the running loss, which
            # has each arm's own dropout.
            comparable = known is None or known.column is not None
            paired = paired_panel(history, metric, bases) if comparable else None
            if paired is not None:
                panels.append(paired)
            panels = [_with_cutoffs(_thinned(panel, most), marks) for panel in panels]
        figure, axes = _stack(panels, title, subtitle, _step_label(epoch))
        drawn.append(Drawing(name, figure, list(zip(axes, panels, strict=True))))
    return drawn


def _thinned(panel: Panel, most: int) -> Panel:
    curves = {arm: curve.thinned(most) for arm, curve in panel.curves.items()}
    return replace(panel, curves=curves)


def _with_cutoffs(panel: Panel, steps: tuple[float, ...]) -> Panel:
    return replace(panel, cutoffs=steps)


def model_and_data(runs: pd.DataFrame) -> str:
    """The models and the data of runs, such as "mlp on glyphs"."""
    models = ", ".join(sorted(runs["config/model.name"].unique()))
    data = ", ".join(sorted(runs["config/data.name"].unique()))
    return f"{models} on {data}"


def what_was_run(runs: pd.DataFrame) -> str:
    """Model, data and the number of seeds, such as "mlp on glyphs, n = 3 seeds"."""
    counts = runs.groupby("arm")["seed"].nunique()
    fewest, most = int(counts.min()), int(counts.max())
    seeds = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{model_and_data(runs)}, n = {seeds} seed{'' if most == 1 else 's'}"


def _step_label(steps_per_epoch: float | None) -> str:
    return f"{STEP} ({steps_per_epoch:,.0f} an epoch)" if steps_per_epoch else STEP


def _stack(
    panels: Sequence[Panel],
    title: str,
    subtitle: str,
    x_label: str,
) -> tuple[Figure, list[Axes]]:
    """Panels one above the other, with a title above and a legend below."""
    arms = _arms(panels)
    with mpl.rc_context(LOOK):
        lines = sum(legend_name(arm).count("\n") + 1 for arm in arms)
        below = 0.25 * math.ceil(lines / _legend_columns(arms))
        height = HEIGHT + 0.3 + 2.0 * (len(panels) - 1) + below
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ratios = [1.25] + [1.0] * (len(panels) - 1)
        stacked = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=ratios)
        axes = list(stacked.ravel())
        for place, panel in enumerate(panels):
            draw_panel(axes[place], panel, arms, place)
        axes[-1].set_xlabel(x_label)
        add_title(figure, title, subtitle)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=_legend_columns(arms),
            frameon=False,
            fontsize=SMALL,
        )
    return figure, axes


def _arms(panels: Sequence[Panel]) -> list[str]:
    return sorted({arm for panel in panels for arm in panel.curves})


def _legend_columns(arms: Sequence[str]) -> int:
    longest = max((len(arm) for arm in arms), default=0)
    if longest <= 14:
        return 3
    return 2 if longest <= 24 else 1


def draw_metric(
    history: pd.DataFrame,
    metric: str,
    path: Path,
    title: str | None = None,
    classes: float | None = None,
) -> None:
    """Draw one metric against the step: per arm, the mean over seeds with its 95% interval.

    Args:
        history: The columns ``step``, ``arm``, ``seed`` and the metric.
        metric: Its name, from `METRICS`.
        path: The PNG file to write.
        title: What was run, such as "mlp on glyphs, n = 3 seeds"; the line below the title, which
            is the label of the metric.
        classes: Number of classes, for the chance level of an accuracy; None where not known.
    """
    values = values_panel(history, metric, classes)
    panel = _thinned(values, _MOST_POINTS)
    subtitle = f"{title}; {BANDS}" if title else BANDS
    figure, _ = _stack([panel], METRICS[metric].label, subtitle, STEP)
    with mpl.rc_context(LOOK):
        figure.savefig(path, dpi=DPI)


def picture(runs: pd.DataFrame, metrics: Sequence[str] = ()) -> Picture:
    """The curves of some runs as one figure, with one panel per metric.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        metrics: Names of metrics; by default those that a report draws.

    Raises:
        ValueError: None of the runs has one of the metrics, or nothing was measured.
    """
    history = histories(runs)
    marks = tuple(sorted(set(cutoffs(runs).values())))
    available = measured_metrics(history)
    names = list(metrics) or list(default_figures(history).values())
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        missing = f"no run measured {unknown[0]}" if unknown else "nothing was measured"
        there = ", ".join(available) or "none"
        raise ValueError(f"{missing}; the metrics of these runs are: {there}")
    columns = min(len(names), 2)
    rows = math.ceil(len(names) / columns)
    rates, _ = rates_panel(history, runs)
    arms = sorted({*map(str, history["arm"]), *rates.curves})
    with mpl.rc_context(LOOK):
        figure = Picture(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(grid, names, strict=False):
            values = values_panel(history, name)
            panel = rates if name == RATE_METRIC else _thinned(values, _MOST_POINTS)
            draw_panel(axes, _with_cutoffs(panel, marks), arms)
            axes.set_xlabel(STEP)
        for axes in grid[len(names) :]:
            axes.set_visible(False)
        if len(arms) > 1:
            drawn: dict[str, Any] = {}  # by label: a panel may lack an arm
            for axes in grid:
                drawn.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            grid[0].legend(drawn.values(), drawn, frameon=False, fontsize=SMALL)
    return figure


def draw_axis(
    points: Mapping[float, Paired],
    x_label: str,
    title: str,
    path: Path,
    subtitle: str,
) -> None:
    """Draw paired differences with their 95% intervals along one axis of a study.

    Args:
        points: The difference at each value of the axis.
        x_label: The label of the axis.
        title: What was compared.
        path: The PNG file to write.
        subtitle: What was run.
    """
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, HEIGHT + 0.6), layout="constrained")
        axes = figure.subplots()
        effects = np.array([point.effect for point in points.values()])
        below = effects - np.array([point.low for point in points.values()])
        above = np.array([point.high for point in points.values()]) - effects
        bars = [below, above]
        axes.errorbar(list(points), effects, bars, color="#0072b2", marker="o", capsize=4)
        draw_level(axes, 0, "no difference")
        if min(points) > 0 and max(points) / min(points) > 20:
            axes.set_xscale("log")
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.25)
        add_title(figure, title, f"{subtitle}; {BARS}")
        figure.savefig(path, dpi=DPI)


Cells = dict[tuple[str, str], tuple[str, float]]
"""The cells of a map: (row, column) to (text in the cell, number that gives its colour)."""


@dataclass(frozen=True)
class MapWords:
    """The labels of a map's axes and of its colour bar."""

    rows: str
    columns: str
    value: str


def draw_map(cells: Cells, words: MapWords, path: Path, title: str) -> None:
    """Draw a number for each pair of values of two settings, as text on a coloured grid.

    Rows and columns are sorted by the numbers that their names hold.

    Args:
        cells: The numbers; 0 has the colour in the middle.
        words: The labels.
        path: The PNG file to write.
        title: What was run.
    """
    rows, columns = (sorted({key[axis] for key in cells}, key=_as_number) for axis in (0, 1))
    grid = np.full((len(rows), len(columns)), np.nan)
    with mpl.rc_context(LOOK):
        size = (2.0 + 2.0 * len(columns), 1.2 + 1.1 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for (row, column), (text, value) in cells.items():
            x, y = columns.index(column), rows.index(row)
            grid[y, x] = value
            axes.text(x, y, text, ha="center", va="center", fontsize=SMALL)
        largest = max(float(np.nanmax(np.abs(grid))), 1e-6)
        image = axes.imshow(
            grid,
            cmap="PuOr",
            # 1.6: without the darkest colours, on which the text is hard to read
            vmin=-1.6 * largest,
            vmax=1.6 * largest,
            aspect="auto",
            origin="lower",
        )
        figure.colorbar(image, ax=axes, label=words.value)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(words.columns)
        axes.set_ylabel(words.rows)
        heading = f"{words.value}; {title}"
        axes.set_title("\n".join(textwrap.wrap(heading, 90)), fontsize=SMALL, loc="left")
        figure.savefig(path, dpi=DPI)


def _as_number(name: str) -> float:
    """The number in the name of a row or column, such as 10,000 or 10%."""
    return float(name.replace(",", "").removesuffix("%"))
