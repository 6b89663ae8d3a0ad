"""The numbers behind figures: means over seeds, paired differences and drop rates, by step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from earlydrop.analysis.arms import Arm, config_of
from earlydrop.analysis.runs import load_history
from earlydrop.analysis.stats import LEVEL
from earlydrop.metrics import METRICS, is_own, known_metric
from earlydrop.schedules import Schedule
from earlydrop.training.schedule_config import (
    drops,
    is_own_schedule,
    parse_path_schedule,
    parse_schedule,
)

FIGURES: dict[str, list[str]] = {}
"""The metrics of each figure, by its file name. The first that was measured is drawn."""
for _name, _metric in METRICS.items():
    if _metric.figure is not None:
        FIGURES.setdefault(_metric.figure, []).append(_name)
RATE_METRICS = FIGURES["drop_rate"]
RATE_METRIC = RATE_METRICS[0]
_JUMP = 0.015
"""A change of the rate from one step to the next by more than this share of the peak is a jump."""


@dataclass(frozen=True)
class Curve:
    """A quantity of one arm against the step.

    Attributes:
        steps: The steps, (S,).
        means: Mean over seeds, (S,).
        half_widths: Half-width of its 95% interval (Student's t), (S,); NaN with one seed.
    """

    steps: np.ndarray
    means: np.ndarray
    half_widths: np.ndarray

    def thinned(self, most: int) -> Curve:
        """Every k-th point and the last one, so that at most ``most`` + 1 are left."""
        every = math.ceil(len(self.steps) / most)
        if every <= 1:
            return self
        kept = np.union1d(np.arange(0, len(self.steps), every), [len(self.steps) - 1])
        return Curve(self.steps[kept], self.means[kept], self.half_widths[kept])


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with one curve per arm.

    Attributes:
        label: The vertical axis, with its unit.
        curves: The curves, by arm.
        bottom: The axis does not go below this value; None for no limit.
        level: A horizontal line and its name, such as the chance level; None for none.
        cutoffs: Steps at which a schedule switches dropout off or on.
    """

    label: str
    curves: Mapping[str, Curve]
    bottom: float | None = None
    level: tuple[float, str] | None = None
    cutoffs: tuple[float, ...] = ()


def histories(runs: pd.DataFrame) -> pd.DataFrame:
    """Every measured step of all runs, with the columns ``arm`` and ``seed``.

    The column ``dropout/unit_rate`` holds the larger of the rates of dropout and stochastic depth.
    """
    parts = []
    for row in runs.itertuples():
        history = load_history(str(row.folder))
        if not history.empty:
            parts.append(history.assign(arm=row.arm, seed=row.seed))
    if not parts:
        return pd.DataFrame(columns=["step", "arm", "seed"])
    history = pd.concat(parts, ignore_index=True)
    rates = [name for name in RATE_METRICS if name in history]
    if rates:
        history[RATE_METRIC] = history[rates].max(axis=1)
    return history


def measured_metrics(history: pd.DataFrame) -> list[str]:
    """The metrics that some run has values of."""
    metrics = [str(name) for name in history if name not in ("step", "arm", "seed")]
    return [name for name in metrics if history[name].notna().any()]


def default_figures(history: pd.DataFrame) -> dict[str, str]:
    """The metric of each figure of a report, by file name. The user's own measures come last."""
    available = measured_metrics(history)
    figures = {}
    for name, metrics in FIGURES.items():
        metric = next((metric for metric in metrics if metric in available), None)
        if metric is not None:
            figures[name] = metric
    own = sorted(name for name in available if is_own(name))
    return figures | {name.replace("/", "_"): name for name in own}


def words_of(metric: str) -> str:
    """The label of a metric, or the name of the user's own measure."""
    known = known_metric(metric)
    return known.label if known is not None else metric.removeprefix("probe/")


def axis_of(metric: str) -> str:
    """The axis label of a metric: name, unit, and whether lower or higher is better."""
    known = known_metric(metric)
    if known is None:
        return metric.removeprefix("probe/")
    return f"{known.axis}, {known.better} is better" if known.better else known.axis


def values_panel(
    history: pd.DataFrame,
    metric: str,
    classes: float | None = None,
) -> Panel:
    """A metric's mean over seeds against the step, one curve per arm.

    Args:
        history: The columns ``step``, ``arm``, ``seed`` and the metric.
        metric: Its name.
        classes: Number of classes, for the chance level of an accuracy; None where not known.

    Returns:
        The panel.
    """
    curves = {}
    for arm, rows in history.groupby("arm", sort=True):
        by_step = _by_step(rows, metric)
        if not by_step.empty:
            curves[str(arm)] = _curve(by_step)
    accuracy = metric.endswith("accuracy")
    level = None
    if accuracy and classes:
        level = (1 / classes, f"chance, 1/{classes:.0f}")
    return Panel(
        label=axis_of(metric),
        curves=curves,
        bottom=0.0 if accuracy else None,
        level=level,
    )


def _by_step(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric by step (rows) and seed (columns). A seed that ran twice counts with its mean."""
    return rows.dropna(subset=[metric]).pivot_table(index="step", columns="seed", values=metric)


def _curve(by_step: pd.DataFrame) -> Curve:
    counts = by_step.notna().sum(axis=1).to_numpy(float)
    spreads = by_step.std(axis=1, ddof=1).to_numpy(float)
    with np.errstate(invalid="ignore"):  # with one seed there are 0 degrees of freedom: NaN
        quantiles = scipy.stats.t.ppf(1 - LEVEL / 2, counts - 1)
    half_widths = quantiles * spreads / np.sqrt(counts)
    return Curve(by_step.index.to_numpy(float), by_step.mean(axis=1).to_numpy(float), half_widths)


def paired_panel(history: pd.DataFrame, metric: str, bases: Mapping[str, str]) -> Panel | None:
    """Each arm minus another, seed by seed, against the step.

    Args:
        history: The columns ``step``, ``arm``, ``seed`` and the metric.
        metric: Its name.
        bases: By arm, the arm that is subtracted from it: one arm for all, or for each its arm
            without dropout.

    Returns:
        The panel; None unless some arm and its base share at least two seeds at two steps or more.
    """
    by_arm = {str(arm): _by_step(rows, metric) for arm, rows in history.groupby("arm", sort=True)}
    curves = {}
    for arm, base in bases.items():
        if arm not in by_arm or base not in by_arm:
            continue
        differences = (by_arm[arm] - by_arm[base]).dropna(axis="index", thresh=2)
        if len(differences) > 1:
            curves[arm] = _curve(differences)
    if not curves:
        return None
    names = sorted({bases[arm] for arm in curves})
    known = known_metric(metric)
    better = f", {known.better} is better" if known is not None and known.better else ""
    minus = names[0] if len(names) == 1 else "its arm without dropout"
    return Panel(f"minus {minus}, seed by seed{better}", curves, level=(0.0, ""))


def rates_panel(history: pd.DataFrame, runs: pd.DataFrame) -> tuple[Panel, list[str]]:
    """The drop rate of each arm, from its configuration.

    Args:
        history: The runs' measured steps.
        runs: The runs, from `earlydrop.analysis.load_runs`.

    Returns:
        The panel, and the arms that are drawn from logged rates because their configuration does
        not tell the rates. Such an arm has a schedule of the user's own, which is not imported, or
        durations in epochs although the length of an epoch is not known, or its first run has no
        status and so no ``total_steps``.
    """
    panel = (
        values_panel(history, RATE_METRIC)
        if RATE_METRIC in history
        else Panel(axis_of(RATE_METRIC), {})
    )
    curves, logged = dict(panel.curves), []
    for row in runs.drop_duplicates("arm").to_dict("records"):
        rates = _rates(row)
        if rates is not None:
            curves[row["arm"]] = staircase(rates)
        elif row["arm"] in curves:
            logged.append(str(row["arm"]))
    return Panel(panel.label, dict(sorted(curves.items()))), logged


def staircase(rates: np.ndarray) -> Curve:
    """The rates of all steps as the corners of a line.

    A jump is drawn as a vertical line and any other change as a slope.

    Args:
        rates: Rate of step 0, 1, ..., (T,). The rate of step t holds from t to t + 1.

    Returns:
        A line without a band.
    """
    total = len(rates)
    peak = max(rates.max(), 1e-9)  # avoids a threshold of 0
    jumps = set(np.flatnonzero(np.abs(np.diff(rates)) > _JUMP * peak) + 1)
    grid = set(np.linspace(0, total - 1, min(total, 200)).astype(int))
    corners: list[tuple[float, float]] = []
    for step in sorted(jumps | grid):
        if step in jumps:
            corners.append((float(step), rates[step - 1]))
        corners.append((float(step), rates[step]))
    corners.append((float(total), rates[-1]))
    steps, values = np.array(corners).T
    return Curve(steps, values, np.full(len(steps), np.nan))


def _rates(row: Mapping[str, Any]) -> np.ndarray | None:
    """The larger rate of dropout and stochastic depth at every step; None if it is not known."""
    total = row.get("total_steps")
    schedules = _schedules(row["settings"], total, row.get("steps_per_epoch"))
    if schedules is None or total is None:
        return None
    steps = range(int(total))
    rates = [[schedule(step) for step in steps] for schedule in schedules]
    larger: np.ndarray = np.array(rates).max(axis=0)
    return larger


def _schedules(arm: Arm, total: Any, steps_per_epoch: Any) -> list[Schedule] | None:
    """The schedules of an arm in steps; None if they are not known.

    They are not known for a schedule of the user's own, for a run without ``total_steps``, and for
    durations in epochs if the length of an epoch was not recorded.
    """
    config = config_of(dict(arm.values))
    if is_own_schedule(config) or not total:
        return None
    epoch = int(steps_per_epoch) if pd.notna(steps_per_epoch) and steps_per_epoch else None
    schedules = [parse_schedule(config.schedule)]
    if drops(config):
        path = parse_path_schedule(config.schedule)
        if path is not None:
            schedules.append(path)
    try:
        return [schedule.resolve(int(total), epoch) for schedule in schedules]
    except ValueError:  # a schedule in epochs, but the run did not record the length of an epoch
        return None


def cutoffs(runs: pd.DataFrame) -> dict[str, float]:
    """The cutoff of each arm's schedule in steps, if it has one. Then the rate is constant."""
    steps = {}
    for row in runs.to_dict("records"):
        schedules = _schedules(row["settings"], row.get("total_steps"), row.get("steps_per_epoch"))
        cutoff = getattr(schedules[0], "cutoff", None) if schedules else None
        if cutoff is not None:
            steps[str(row["arm"])] = float(cutoff)
    return steps


def common_value(values: Iterable[Any]) -> float | None:
    """The value that all have, as a number; None if they differ or there is none."""
    present = {float(value) for value in values if pd.notna(value)}
    return present.pop() if len(present) == 1 else None
