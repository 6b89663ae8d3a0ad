"""Comparing the runs of a study: a table of its arms, and their paired differences to the arm without dropout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.runs import DAMAGED, runs_of
from earlydrop.analysis.stats import Paired, interval, paired
from earlydrop.metrics import METRICS, is_own
from earlydrop.training.record.failures import failure_lines, failures
from earlydrop.training.record.folder import STATUS

COLUMNS = {f"{m.column}/{name}": (m.heading or name, m.digits) for name, m in METRICS.items() if m.column} | {
    "seconds": ("seconds", 0)
}
"""Column of `earlydrop.analysis.load_runs`: its heading and digits."""


def columns(runs: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """`COLUMNS`, and the early mean of every measure of somebody's own that the runs have."""
    own = [name for name in runs if str(name).startswith("early/") and is_own(str(name).removeprefix("early/"))]
    return COLUMNS | {name: (f"early {name.removeprefix('early/probe/')}", 4) for name in own}


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in text: the mean over its finished runs, a seed counting once, with its 95% interval where there are several."""
    rows = {}
    for arm, group in runs.groupby("arm", sort=True):
        done = group[group["state"] == "finished"]
        row = {"runs": f"{len(done)}" if len(done) == len(group) else f"{len(done)} of {len(group)}"}
        for column, (heading, digits) in columns(runs).items():
            if column in runs and runs[column].notna().any():
                row[heading] = _number(done.groupby("seed")[column].mean().dropna().to_numpy(float), digits)
        rows[str(arm)] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def differences(runs: pd.DataFrame, against: str | None = None) -> dict[str, dict[str, Paired]]:
    """By arm and heading: every arm minus another, over two or more common seeds.

    ``against`` is the name of the other arm; None is, for each arm, the arm without dropout that shares its other settings.
    """
    found: dict[str, dict[str, Paired]] = {}
    done = runs[runs["state"] == "finished"]
    for arm, group in done.groupby("arm", sort=True):
        settings = group["settings"].iloc[0]
        base = done[done["study"] == group["study"].iloc[0]]
        if against is not None:
            base, same = base[base["arm"] == against], arm == against
        else:
            base, same = runs_of(base, lambda each, base=settings.base: each.values == base), settings.without_dropout  # type: ignore[misc]
        if same or group["seed"].duplicated().any() or base["seed"].duplicated().any():
            continue
        joined = group.merge(base, on="seed", suffixes=("", "|none"))
        for column, (heading, _) in columns(runs).items():
            if column in runs and runs[column].notna().any() and column != "seconds":
                values = (joined[column] - joined[f"{column}|none"]).set_axis(joined["seed"]).dropna()
                summary = paired({int(seed): float(value) for seed, value in values.items()})  # type: ignore[call-overload]
                if summary is not None:
                    found.setdefault(str(arm), {})[heading] = summary
    return found


def paired_table(runs: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """`differences` in text: mean difference ± the half-width of its 95% interval. Empty if there is none."""
    digits = dict(columns(runs).values())
    rows = {}
    for arm, by_heading in differences(runs, against).items():
        seeds = max(len(point.seeds) for point in by_heading.values())
        rows[f"{arm} minus {against or 'none'}"] = {"seeds": str(seeds)} | {
            heading: f"{point.effect:+.{digits[heading]}f} ± {point.high - point.effect:.{digits[heading]}f}"
            for heading, point in by_heading.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arms")


def _number(values: Any, digits: int) -> str:
    mean, half = interval(values)
    if math.isnan(mean):
        return "-"
    text = f"{mean:.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def problems(runs: pd.DataFrame, folder: Path) -> list[str]:
    """A line for each run of a study's folder that is not finished, and for each job that failed before it had a folder."""
    lines = [f"left out: {line}" for line in runs.attrs.get(DAMAGED, [])]
    for row in runs.itertuples():
        if row.changed:
            lines.append(
                f"changed after the run finished, by the digest in its {STATUS}: {row.changed} of {Path(str(row.folder)).name}"
            )
        if row.state == "failed":
            lines.append(f"failed: {Path(str(row.folder)).name}: {row.reason}")
        elif row.state == "unknown":
            lines.append(f"unknown, since it has no {STATUS}: {Path(str(row.folder)).name}")
        elif row.state != "finished":
            lines.append(f"{row.state} at step {row.step} of {row.total_steps}: {Path(str(row.folder)).name}")
    known = "\n".join(lines)
    new = [failure for failure in failures(folder) if str(failure["reason"]) not in known
           and not any(str(reason) in str(failure["reason"]) for reason in runs["reason"].dropna())]  # fmt: skip
    return lines + failure_lines(new)
