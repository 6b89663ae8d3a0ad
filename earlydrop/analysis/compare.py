"""Comparing the runs of a study: a table of its arms, and their paired differences.

Each arm is compared with the arm without dropout that shares its other settings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.runs import DAMAGED, runs_of
from earlydrop.analysis.stats import Paired, interval, paired
from earlydrop.metrics import METRICS, Metric, extra_metric, is_own
from earlydrop.training.record.failures import failure_lines, failures
from earlydrop.training.record.folder import STATUS

COLUMNS: dict[str, tuple[str, int]] = {}
for _name, _metric in METRICS.items():
    if _metric.column is not None:
        COLUMNS[f"{_metric.column}/{_name}"] = (_metric.heading or _name, _metric.digits)
COLUMNS["seconds"] = ("seconds", 0)
"""Column of `earlydrop.analysis.load_runs`: its heading and digits."""


def metric_of(heading: str) -> Metric | None:
    """The metric with a heading of `COLUMNS`; None for a measure of the user's own."""
    known = next((metric for metric in METRICS.values() if metric.heading == heading), None)
    return known or extra_metric(heading.replace(" ", "/"))


def base_arms(runs: pd.DataFrame) -> dict[str, str]:
    """By arm, the arm without dropout that shares its study and other settings, if there is one."""
    arms = runs.drop_duplicates(["study", "arm"])
    names = {}
    for row in arms.to_dict("records"):
        names[row["study"], row["settings"].values] = str(row["arm"])
    bases = {}
    for row in arms.to_dict("records"):
        settings = row["settings"]
        base = names.get((row["study"], settings.base))
        if base is not None and not settings.without_dropout:
            bases[str(row["arm"])] = base
    return bases


def columns(runs: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """`COLUMNS`, the accuracy on further test sets, and the early mean of the user's measures."""
    own = {}
    for column in map(str, runs):
        window, _, metric = column.partition("/")
        if window == "early" and is_own(metric):
            own[column] = (f"early {metric.removeprefix('probe/')}", 4)
        extra = extra_metric(metric)
        if extra is not None and extra.heading is not None and window == extra.column:
            own[column] = (extra.heading, extra.digits)
    return COLUMNS | own


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, in text: means over its finished runs, with their 95% intervals.

    A seed that ran twice counts once. One seed has no interval.
    """
    rows = {}
    for arm, group in runs.groupby("arm", sort=True):
        done = group[group["state"] == "finished"]
        count = str(len(done))
        row = {"runs": count if len(done) == len(group) else f"{count} of {len(group)}"}
        for column, (heading, digits) in columns(runs).items():
            if column in runs and runs[column].notna().any():
                by_seed = done.groupby("seed")[column].mean().dropna()
                row[heading] = _number(by_seed.to_numpy(float), digits)
        rows[str(arm)] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def differences(runs: pd.DataFrame, against: str | None = None) -> dict[str, dict[str, Paired]]:
    """Paired differences of arms over the seeds that they share.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        against: The arm that is subtracted. None subtracts, from each arm, the arm without dropout
            that shares its other settings.

    Returns:
        By arm and heading, the difference. An arm is left out if it shares fewer than two seeds
        with the other arm, or if one of the two ran a seed twice.
    """
    by_arm: dict[str, dict[str, Paired]] = {}
    for arm in sorted(runs.loc[runs["state"] == "finished", "arm"].unique()):
        for column, (heading, _) in columns(runs).items():
            if column == "seconds" or column not in runs or runs[column].isna().all():
                continue
            summary = paired(differences_by_seed(runs, arm, column, against))
            if summary is not None:
                by_arm.setdefault(str(arm), {})[heading] = summary
    return by_arm


def differences_by_seed(
    runs: pd.DataFrame,
    arm: str,
    column: str,
    against: str | None = None,
) -> dict[int, float]:
    """One column of an arm minus that of another, by the seeds that both have finished.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        arm: The arm.
        column: A column of numbers.
        against: The arm that is subtracted; None for the arm without dropout that shares its other
            settings.

    Returns:
        The difference by seed. It is empty if there is no other arm, or if one of the two arms ran
        a seed twice.
    """
    done = runs[runs["state"] == "finished"]
    group = done[done["arm"] == arm]
    settings = group["settings"].iloc[0]
    base = done[done["study"] == group["study"].iloc[0]]
    if against is not None:
        base, same = base[base["arm"] == against], arm == against
    else:
        base = runs_of(base, lambda other: other.values == settings.base)
        same = settings.without_dropout
    if same or group["seed"].duplicated().any() or base["seed"].duplicated().any():
        return {}
    by_seed = group.set_index("seed")[column] - base.set_index("seed")[column]
    return {int(seed): float(value) for seed, value in by_seed.dropna().items()}


def paired_table(runs: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """`differences` in text: mean difference ± the half-width of its 95% interval.

    Empty if there is none.
    """
    digits = dict(columns(runs).values())
    rows = {}
    for arm, by_heading in differences(runs, against).items():
        row = {"seeds": str(max(len(point.seeds) for point in by_heading.values()))}
        for heading, point in by_heading.items():
            places, half = digits[heading], point.high - point.effect
            row[heading] = f"{point.effect:+.{places}f} ± {half:.{places}f}"
        rows[f"{arm} minus {against or 'none'}"] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arms")


def _number(values: Any, digits: int) -> str:
    mean, half = interval(values)
    if math.isnan(mean):
        return "-"
    text = f"{mean:.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def progress(step: int, total: int | None) -> str:
    """How far a run is, such as ``2 of 4``; the step alone if its length is not known."""
    return str(step) if total is None else f"{step} of {total}"


def problems(runs: pd.DataFrame, folder: Path) -> list[str]:
    """A line for each run that is not finished, was changed or is damaged, and for failed jobs.

    A failed job has a line of its own only if no run gives its reason.
    """
    lines = [f"left out: {line}" for line in runs.attrs.get(DAMAGED, [])]
    for row in runs.itertuples():
        name = Path(str(row.folder)).name
        if row.changed:
            changed = f"changed after the run finished, as its {STATUS} shows"
            lines.append(f"{changed}: {row.changed} of {name}")
        if row.state == "failed":
            lines.append(f"failed: {name}: {row.reason}")
        elif row.state == "unknown":
            lines.append(f"unknown, since it has no {STATUS}: {name}")
        elif row.state != "finished":
            lines.append(f"{row.state} at step {progress(row.step, row.total_steps)}: {name}")
    listed = "\n".join(lines)
    reasons = [str(reason) for reason in runs["reason"].dropna()]
    unlisted = []
    for failure in failures(folder):
        reason = str(failure["reason"])
        if reason not in listed and not any(known in reason for known in reasons):
            unlisted.append(failure)
    return lines + failure_lines(unlisted)
