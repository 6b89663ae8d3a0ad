"""Plots: each quantity against the step, one line an arm, readable in black and white."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from earlydrop.analysis.runs import load_history
from earlydrop.analysis.stats import Paired, interval
from earlydrop.analysis.styles import styles
from earlydrop.metrics import METRICS, is_own
from earlydrop.schedules import MAKERS

FIGURES: dict[str, list[str]] = {}
"""File name of a figure: its metrics, of which the first that was measured is drawn."""
for _name, _metric in METRICS.items():
    if _metric.figure is not None:
        FIGURES.setdefault(_metric.figure, []).append(_name)
_RATES = FIGURES["drop_rate"]
LOOK = {"font.size": 11, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}


def _histories(runs: pd.DataFrame) -> pd.DataFrame:
    """All measured steps of all runs, with their arm and seed."""
    parts = []
    for row in runs.itertuples():
        history = load_history(str(row.folder))
        if not history.empty:
            parts.append(history.assign(arm=row.arm, seed=row.seed))
    if not parts:
        return pd.DataFrame(columns=["step", "arm", "seed"])
    history = pd.concat(parts, ignore_index=True)
    rates = [name for name in _RATES if name in history]
    if rates:
        history[_RATES[0]] = history[rates].max(axis=1)
    return history


def cutoffs(runs: pd.DataFrame) -> dict[str, float]:
    """By arm, the step at which its schedule switches dropout off or on, where it has a cutoff."""
    found = {}
    for row in runs.to_dict("records"):
        cutoff = row["settings"].get("schedule.cutoff")
        ours = row["settings"].get("schedule.name") in MAKERS
        if ours and cutoff is not None and row.get("total_steps") and str(cutoff).endswith("%"):
            found[str(row["arm"])] = float(str(cutoff)[:-1]) / 100 * row["total_steps"]
    return found


def draw_all(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every figure that some runs have values for, as PNG files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    history, marks = _histories(runs), cutoffs(runs)
    files = []
    for name, metrics in FIGURES.items():
        metric = next((m for m in metrics if m in history and history[m].notna().any()), None)
        if metric is not None:
            path = folder / f"{name}.png"
            draw_metric(history, metric, METRICS[metric].label, path, marks=marks)
            files.append(path)
    for metric in sorted(str(name) for name in history if is_own(str(name))):
        path = folder / f"{metric.replace('/', '_')}.png"
        draw_metric(history, metric, metric.removeprefix("probe/"), path, marks=marks)
        files.append(path)
    return files


def _legend(name: str) -> str:
    """An arm's name in a legend: never hidden by a leading underscore, never wider than the plot."""
    name = name if len(name) <= 60 else f"{name[:38]}...{name[-19:]}"
    return f" {name}" if name.startswith("_") else name


class Picture(Figure):
    """A figure that a notebook shows, whatever its backend."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100)
        return content.getvalue()


def draw_metric(
    history: pd.DataFrame, metric: str, label: str, path: Path, title: str | None = None, marks: Mapping[str, float] | None = None
) -> None:
    """Draw one metric against the step: one line an arm, the mean over seeds with its 95% interval as a band.

    ``history`` has the columns ``step``, ``arm``, ``seed`` and the metric; the title says what was run; ``marks`` are the arms' cutoffs.
    """
    with mpl.rc_context(LOOK):
        many = history["arm"].nunique() > 6
        figure = Figure(figsize=(8.6 if many else 6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        _draw_lines(axes, history, metric, label, marks or {})
        if title is not None:
            axes.set_title(title, fontsize=9, loc="left")
        if many:
            figure.legend(frameon=False, fontsize=9, loc="outside right center")
        else:
            axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=130)


def picture(runs: pd.DataFrame, metrics: Sequence[str] = ()) -> Picture:
    """The curves of some runs as one figure, a panel a metric; by default the metrics that a report draws.

    Raises:
        ValueError: A metric that none of the runs has.
    """
    history, marks = _histories(runs), cutoffs(runs)
    measured = [str(name) for name in history if name not in ("step", "arm", "seed") and history[name].notna().any()]
    drawn = list(metrics) or [
        *(next((each for each in group if each in measured), "") for group in FIGURES.values()),
        *(name for name in measured if is_own(name)),
    ]
    drawn = [name for name in drawn if name]
    unknown = [name for name in drawn if name not in measured]
    if unknown or not drawn:
        raise ValueError(
            f"{unknown[0] if unknown else 'nothing'} was measured in these runs; there are {', '.join(measured) or 'none'}"
        )
    columns = min(len(drawn), 2)
    rows = -(-len(drawn) // columns)
    with mpl.rc_context(LOOK):
        figure = Picture(figsize=(5.0 * columns, 3.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(panels, drawn, strict=False):
            known = METRICS.get(name)
            _draw_lines(axes, history, name, known.label if known is not None else name.removeprefix("probe/"), marks)
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        if history["arm"].nunique() > 1:
            panels[0].legend(frameon=False, fontsize=9)
    return figure


def _draw_lines(axes: Any, history: pd.DataFrame, metric: str, label: str, marks: Mapping[str, float]) -> None:
    """One line an arm, with its band, and the cutoffs."""
    look = styles(sorted(history["arm"].unique()))
    for arm, rows in history.groupby("arm", sort=True):
        values = rows.dropna(subset=[metric]).groupby("step")[metric].agg(list)
        means, halves = np.array([interval(np.array(v)) for v in values]).reshape(-1, 2).T
        steps = values.index.to_numpy()
        style = look[str(arm)]
        every = max(len(steps) // 12, 1)
        axes.plot(steps, means, label=_legend(str(arm)), markersize=4, markevery=every, **style)
        if np.isfinite(halves).any():
            axes.fill_between(steps, means - halves, means + halves, color=style["color"], alpha=0.15, linewidth=0)
    for at in sorted(set(marks.values())):
        axes.axvline(at, color="#999999", linewidth=1, linestyle=":")
        axes.annotate("cutoff", (at, 1.0), xycoords=("data", "axes fraction"), fontsize=8, color="#777777", ha="left", va="top")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    if metric.endswith("accuracy") and axes.get_ylim()[0] < 0:  # a band may reach below what there is
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)


def draw_axis(points: Mapping[float, Paired], horizontal: str, vertical: str, path: Path, title: str) -> None:
    """Draw paired differences with their 95% intervals along one axis of a study."""
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        effects = np.array([p.effect for p in points.values()])
        halves = np.array([p.effect - p.low for p in points.values()])
        axes.errorbar(list(points), effects, halves, color="#0072b2", marker="o", capsize=4, linestyle="-")
        axes.axhline(0, color="#999999", linewidth=1)
        if max(points) > 20 * min(points) > 0:
            axes.set_xscale("log")
        axes.set_xlabel(horizontal)
        axes.set_ylabel(vertical)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(alpha=0.25)
        figure.savefig(path, dpi=130)


def draw_map(cells: Mapping[tuple[int, int], tuple[str, Paired | None]], path: Path, title: str) -> None:
    """Draw the regime map: model width against number of training images, each cell with its label and paired difference."""
    widths, images = (sorted({key[i] for key in cells}) for i in (0, 1))
    grid = np.full((len(widths), len(images)), np.nan)
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(1.5 + 2.0 * len(images), 1.2 + 1.1 * len(widths)), layout="constrained")
        axes = figure.subplots()
        for (width, count), (name, found) in cells.items():
            if found is not None:
                row, column = widths.index(width), images.index(count)
                grid[row, column] = found.effect
                words = f"{name}\n{found.effect:+.3f}\n[{found.low:+.3f}, {found.high:+.3f}]"
                axes.text(column, row, words, ha="center", va="center", fontsize=9)
        largest = max(float(np.nanmax(np.abs(grid))), 1e-6)
        picture = axes.imshow(grid, cmap="PuOr", vmin=-1.6 * largest, vmax=1.6 * largest, aspect="auto", origin="lower")
        figure.colorbar(picture, ax=axes, label="standard minus none")
        axes.set_xticks(range(len(images)), [f"{count:,}" for count in images])
        axes.set_yticks(range(len(widths)), map(str, widths))
        axes.set_xlabel("training images")
        axes.set_ylabel("model width")
        axes.set_title(title, fontsize=8, loc="left")
        figure.savefig(path, dpi=130)


def draw_differences(found: Mapping[str, Mapping[str, Paired]], path: Path) -> None:
    """Draw paired differences as points with their 95% intervals: a panel a metric, a row an arm, all against the arm without dropout."""
    metrics = list(dict.fromkeys(metric for by_metric in found.values() for metric in by_metric))
    arms = list(found)
    look = styles(arms)
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(2.2 + 2.9 * columns, rows * (1.0 + 0.3 * len(arms))), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, metric in zip(panels, metrics, strict=False):
            axes.axvline(0, color="#999999", linewidth=1)
            for i, arm in enumerate(arms):
                point = found[arm].get(metric)
                if point is not None:
                    ends = [[point.effect - point.low], [point.high - point.effect]]
                    style = look[arm] | {"linestyle": "none"}
                    axes.errorbar([point.effect], [i], xerr=ends, capsize=3, markersize=5, **style)
            axes.set_title(metric, fontsize=10, loc="left")
            axes.set_yticks(range(len(arms)), [_legend(arm) for arm in arms], fontsize=9)
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=4)
            axes.grid(alpha=0.25, axis="x")
        for axes in panels[len(metrics) :]:
            axes.set_visible(False)
        figure.savefig(path, dpi=130)
