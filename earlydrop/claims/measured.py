"""The value of a run for a claim.

The value is the mean of a metric in a window, or its last value. For some tests it is 1 or 0, for
whether that is above a bound, or the first step at which the metric reaches a bound.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from earlydrop.claims.declare import Claim, LossWindow, Window


class WindowError(ValueError):
    """A run has no value in a claim's window of losses; the message names the run."""


def value_of(run: Any, claim: Claim, metric: str) -> float:
    """The value of a run for a claim; NaN if it has none.

    Args:
        run: A row of the runs, with its measured steps in ``history``.
        claim: The claim, with its window and test.
        metric: The metric to read.

    Returns:
        The mean in the window, or the last value. For the test ``share above``, 1 if that is above
        the bound and else 0. For the test ``steps to``, the step, or the length of the run if it
        never reached the bound; NaN if it stopped early before that.

    Raises:
        WindowError: The window is one of losses, and the run's loss does not fall through it.
    """
    stopped_early = run.step != run.total_steps
    # Such a window is in shares of the planned steps. A run that stopped early may not cover it.
    is_share = claim.window is not None and not isinstance(claim.window, LossWindow)
    if is_share and stopped_early:
        return math.nan
    try:
        if claim.test is not None and claim.test.kind == "steps to":
            reached = _step_at(run.history, metric, claim.test.bound or 0.0)
            if reached is not None:
                return reached
            if stopped_early or not _is_measured(run.history, metric):
                return math.nan
            return float(run.total_steps)
        value = windowed(run.history, metric, claim.window, int(run.total_steps))
        if claim.test is not None and claim.test.kind == "share above" and math.isfinite(value):
            return float(value > (claim.test.bound or 0.0))
        return value
    except ValueError as error:
        raise WindowError(f"run {run.fingerprint}: {error}") from None


def windowed(history: pd.DataFrame, metric: str, window: Window, total_steps: int) -> float:
    """The mean of a metric over the measurements in a window, or its last value.

    Args:
        history: The measured steps of a run.
        metric: The metric.
        window: The window, both ends included; None for the last value.
        total_steps: The length of the run.

    Returns:
        The value; NaN if nothing was measured there.

    Raises:
        ValueError: The window is one of losses, and the run's loss does not fall through it.
    """
    if metric not in history:
        return math.nan
    if isinstance(window, LossWindow):
        return _at_losses(history, metric, window)
    values = history[metric].to_numpy(float)
    measured = ~np.isnan(values)
    if window is None:
        return float(values[measured][-1]) if measured.any() else math.nan
    low, high = (end * total_steps for end in window)
    steps = history["step"].to_numpy(float)
    inside = measured & (steps >= low - 1e-9) & (steps <= high + 1e-9)
    return float(values[inside].mean()) if inside.any() else math.nan


def _is_measured(history: pd.DataFrame, metric: str) -> bool:
    return metric in history and bool(history[metric].notna().any())


def _step_at(history: pd.DataFrame, metric: str, bound: float) -> float | None:
    """The first measured step at which a metric is at most the bound; None if there is none."""
    if metric not in history:
        return None
    reached = history["step"][history[metric] <= bound]
    return float(reached.iloc[0]) if len(reached) else None


_PROGRESS = "train_eval/loss"
_LEVELS = 33
"""The number of losses at which a metric is read in a window of losses."""


def _at_losses(history: pd.DataFrame, metric: str, window: LossWindow) -> float:
    """The mean of a metric over evenly spaced losses from high to low.

    Each loss is taken where the run first falls to it; values between two measurements are
    interpolated.
    """
    losses = history.dropna(subset=[_PROGRESS]) if _PROGRESS in history else history.iloc[:0]
    values = history.dropna(subset=[metric])
    if losses.empty or values.empty:
        return math.nan
    steps = losses["step"].to_numpy(float)
    best = np.minimum.accumulate(losses[_PROGRESS].to_numpy(float))
    if best[0] < window.high or best[-1] > window.low:
        fall = f"the training loss falls from {best[0]:.4g} to {best[-1]:.4g}"
        ends = f"from {window.high:g} to {window.low:g}"
        raise ValueError(f"{fall}, not through the window {ends}")
    levels = np.linspace(window.high, window.low, _LEVELS)
    # The first measurement at or below each level, and the one before it.
    first = np.array([int(np.argmax(best <= level)) for level in levels])
    before = np.maximum(first - 1, 0)
    # The share of the way between the two at which the loss reaches the level.
    drop = best[before] - best[first]
    share = np.divide(best[before] - levels, drop, out=np.ones(_LEVELS), where=drop > 0)
    reached = steps[before] + share * (steps[first] - steps[before])
    measured_at = values["step"].to_numpy(float)
    return float(np.interp(reached, measured_at, values[metric].to_numpy(float)).mean())
