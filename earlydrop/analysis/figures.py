"""Figures: each quantity against the step, one line an arm, readable in black and white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure

from earlydrop.analysis.runs import load_history

FIGURES = {  # file name: (metrics, the first that was measured is drawn; axis label)
    "drop_rate": (("dropout/rate",), "drop rate"),
    "training_loss": (("train/loss",), "training loss (running, with dropout)"),
    "train_eval_loss": (("train_eval/loss",), "training loss (evaluation mode)"),
    "test_accuracy": (("test/accuracy",), "test accuracy"),
    "gradient_norm": (("probe/gradient_norm", "train/gradient_norm"), "gradient norm"),
    "model_distance": (("model/distance",), "model distance"),
    "gdv": (("probe/gdv",), "gradient direction variance"),
    "gde": (("probe/gde",), "gradient direction error"),
}
_LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
_MARKERS = "osD^vPX*"
_COLOURS = ["#222222", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95% interval (Student's t); the half-width of one value is NaN.

    Args:
        values: One value a seed.

    Returns:
        Mean and half-width.
    """
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return float(values.mean()) if n else float("nan"), float("nan")
    return float(values.mean()), float(scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)


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
    rates = [name for name in ("dropout/unit_rate", "dropout/path_rate") if name in history]
    if rates:
        history["dropout/rate"] = history[rates].max(axis=1)
    return history


def draw_all(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every figure that the runs have values for.

    Args:
        runs: From `earlydrop.analysis.load_runs`.
        folder: Where the PNG files go; made if it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = _histories(runs)
    files = []
    for name, (metrics, label) in FIGURES.items():
        metric = next((m for m in metrics if m in history and history[m].notna().any()), None)
        if metric is not None:
            path = folder / f"{name}.png"
            _draw(history, metric, label, path)
            files.append(path)
    return files


def _draw(history: pd.DataFrame, metric: str, label: str, path: Path) -> None:
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for i, (arm, rows) in enumerate(history.groupby("arm", sort=True)):
            values = rows.dropna(subset=[metric]).groupby("step")[metric].agg(list)
            means, halves = np.array([interval(np.array(v)) for v in values]).reshape(-1, 2).T
            steps = values.index.to_numpy()
            style: dict[str, Any] = {"linestyle": _LINES[i % len(_LINES)], "color": _COLOURS[i % len(_COLOURS)]}
            axes.plot(
                steps,
                means,
                label=str(arm),
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=4,
                markevery=max(len(steps) // 12, 1),
                **style,
            )
            if np.isfinite(halves).any():
                axes.fill_between(steps, means - halves, means + halves, color=style["color"], alpha=0.15, linewidth=0)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=130)
