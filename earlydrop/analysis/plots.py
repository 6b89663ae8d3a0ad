"""Plots: each quantity against the step, one line an arm, readable in black and white."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from earlydrop.analysis.runs import load_history
from earlydrop.analysis.stats import Paired, interval
from earlydrop.metrics import METRICS

FIGURES: dict[str, list[str]] = {}
"""File name of a figure: its metrics, of which the first that was measured is drawn."""
for _name, _metric in METRICS.items():
    if _metric.figure is not None:
        FIGURES.setdefault(_metric.figure, []).append(_name)
_RATES = FIGURES["drop_rate"]
_LOOK = {"font.size": 11, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
_LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
_MARKERS = "osD^vPX*"
_COLOURS = ["#222222", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"]


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


def draw_all(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every figure that some runs have values for, as PNG files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    history = _histories(runs)
    files = []
    for name, metrics in FIGURES.items():
        metric = next((m for m in metrics if m in history and history[m].notna().any()), None)
        if metric is not None:
            path = folder / f"{name}.png"
            draw_metric(history, metric, METRICS[metric].label, path)
            files.append(path)
    return files


def _legend(name: str) -> str:
    """An arm's name in a legend: never hidden by a leading underscore, never wider than the plot."""
    name = name if len(name) <= 60 else f"{name[:38]}...{name[-19:]}"
    return f" {name}" if name.startswith("_") else name


def draw_metric(history: pd.DataFrame, metric: str, label: str, path: Path, title: str | None = None) -> None:
    """Draw one metric against the step: one line an arm, the mean over seeds with its 95% interval as a band.

    ``history`` has the columns ``step``, ``arm``, ``seed`` and the metric; the title says what was run.
    """
    with mpl.rc_context(_LOOK):
        many = history["arm"].nunique() > 6
        figure = Figure(figsize=(8.6 if many else 6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for i, (arm, rows) in enumerate(history.groupby("arm", sort=True)):
            values = rows.dropna(subset=[metric]).groupby("step")[metric].agg(list)
            means, halves = np.array([interval(np.array(v)) for v in values]).reshape(-1, 2).T
            steps = values.index.to_numpy()
            style: dict[str, Any] = {"linestyle": _LINES[i % len(_LINES)], "color": _COLOURS[i % len(_COLOURS)]}
            style |= {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 4, "markevery": max(len(steps) // 12, 1)}
            axes.plot(steps, means, label=_legend(str(arm)), **style)
            if np.isfinite(halves).any():
                axes.fill_between(steps, means - halves, means + halves, color=style["color"], alpha=0.15, linewidth=0)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        if title is not None:
            axes.set_title(title, fontsize=9, loc="left")
        axes.grid(alpha=0.25)
        if many:
            figure.legend(frameon=False, fontsize=9, loc="outside right center")
        else:
            axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=130)


def draw_axis(points: Mapping[float, Paired], horizontal: str, vertical: str, path: Path, title: str) -> None:
    """Draw paired differences with their 95% intervals along one axis of a study."""
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        effects = np.array([p.effect for p in points.values()])
        halves = np.array([p.effect - p.low for p in points.values()])
        axes.errorbar(list(points), effects, halves, color=_COLOURS[0], marker="o", capsize=4, linestyle="-")
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
    with mpl.rc_context(_LOOK):
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
