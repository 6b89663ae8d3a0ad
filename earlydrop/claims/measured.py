"""What a claim reads from one run: a metric over a window, above a bound, or the step at which it reaches one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from earlydrop.claims.declare import Claim, LossWindow, Window


class WindowError(ValueError):
    """A run has no value in a claim's window of losses; the message names the run."""


def value_of(run: Any, claim: Claim, metric: str) -> float:
    """A run's value of a claim's metric; NaN if it has none.

    Args:
        run: A row of the runs, with its measured steps in ``history``.
        claim: The claim, with its window and test.
        metric: Which metric.

    Returns:
        The mean in the window or the last value; for a share 0 or 1; for a time the step.

    Raises:
        WindowError: The window is one of losses, and the run does not fall through it.
    """
    if claim.window is not None and run.step != run.total_steps:  # stopped early: it has no comparable window, only a last value
        return math.nan
    try:
        if claim.test is not None and claim.test.kind == "steps to":
            return _steps_to(run.history, metric, claim.test.bound or 0.0, int(run.total_steps))
        value = windowed(run.history, metric, claim.window, int(run.total_steps))
        if claim.test is not None and claim.test.kind == "share above" and math.isfinite(value):
            return float(value > (claim.test.bound or 0.0))
        return value
    except ValueError as error:
        raise WindowError(f"run {run.fingerprint}: {error}") from None


def windowed(history: pd.DataFrame, metric: str, window: Window, total_steps: int) -> float:
    """A run's value of a metric: its mean over the measurements in a window, both ends included, or its last value.

    NaN if nothing was measured there.

    Raises:
        ValueError: The window is one of losses, and the run does not fall through it.
    """
    if metric not in history:
        return math.nan
    if isinstance(window, LossWindow):
        return _at_losses(history, metric, window)
    rows = history.dropna(subset=[metric])
    if window is None:
        return float(rows[metric].iloc[-1]) if len(rows) else math.nan
    low, high = (end * total_steps for end in window)
    return float(rows[metric][(rows["step"] >= low - 1e-9) & (rows["step"] <= high + 1e-9)].mean())


def _steps_to(history: pd.DataFrame, metric: str, bound: float, total_steps: int) -> float:
    """The first measured step at which a metric is at most the bound; the run's length if there is none, NaN if nothing was measured."""
    rows = history.dropna(subset=[metric]) if metric in history else history.iloc[:0]
    if rows.empty:
        return math.nan
    reached = rows["step"][rows[metric] <= bound]
    return float(reached.iloc[0]) if len(reached) else float(total_steps)


_PROGRESS, _LEVELS = "train_eval/loss", 33


def _at_losses(history: pd.DataFrame, metric: str, window: LossWindow) -> float:
    """The mean of a metric over losses evenly from high to low, each where the run first falls to it, between measurements by a line."""
    losses = history.dropna(subset=[_PROGRESS]) if _PROGRESS in history else history.iloc[:0]
    values = history.dropna(subset=[metric])
    if losses.empty or values.empty:
        return math.nan
    steps, best = losses["step"].to_numpy(float), np.minimum.accumulate(losses[_PROGRESS].to_numpy(float))
    if best[0] < window.high or best[-1] > window.low:
        raise ValueError(
            f"the training loss falls from {best[0]:.4g} to {best[-1]:.4g}, not through the window from {window.high:g} to {window.low:g}"
        )
    levels = np.linspace(window.high, window.low, _LEVELS)
    first = np.array([int(np.argmax(best <= level)) for level in levels])
    before = np.maximum(first - 1, 0)
    fall = best[before] - best[first]
    share = np.divide(best[before] - levels, fall, out=np.ones(_LEVELS), where=fall > 0)
    reached = steps[before] + share * (steps[first] - steps[before])
    return float(np.interp(reached, values["step"].to_numpy(float), values[metric].to_numpy(float)).mean())
