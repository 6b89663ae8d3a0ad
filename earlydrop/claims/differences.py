"""The paired differences of a claim: the runs of its two arms, and their values by seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from earlydrop.analysis.arms import Arm, text
from earlydrop.analysis.runs import runs_of
from earlydrop.claims.declare import Claim, Settings, Study
from earlydrop.claims.measured import WindowError, value_of

_COLUMNS = ("arm", "seed", "fingerprint", "step", "total_steps", "history")
"""The columns that `_value` reads. A frame of runs has about a hundred others."""


class _Sides(NamedTuple):
    """The finished runs of a claim's two arms."""

    arm: pd.DataFrame
    against: pd.DataFrame
    remark: str = ""


class _Value(NamedTuple):
    """The value of one run, with the run's fingerprint."""

    value: float
    fingerprint: str


class Differences(NamedTuple):
    """The values of two arms by seed, and the runs that they come from.

    Attributes:
        values: The value of ``arm`` minus that of ``against``, by seed.
        arm: The values of the arm, by seed.
        against: The values of the arm that it is compared with, by seed.
        seconds: The time of one run of each arm, in seconds. For a sensitivity, the sum of one run
            at each value of the setting. The second number is 0 if the same runs give the values of
            both arms.
        fingerprints: The fingerprints of the runs.
        names: The names of the two arms.
        remark: The settings in which the runs differ from the declaration, or the reason why a run
            has no value; empty for none.
        steps: The length of the longest run, in optimizer steps.
        value_missing: Whether a run has no value in the window, so that there are no differences.
    """

    values: dict[int, float]
    arm: dict[int, float]
    against: dict[int, float]
    seconds: tuple[float, float]
    fingerprints: list[str]
    names: tuple[str, str]
    remark: str
    steps: int = 0
    value_missing: bool = False


def differences(
    runs: pd.DataFrame,
    study: Study,
    claim: Claim,
    seeds: Iterable[int],
) -> Differences:
    """The values of a claim's two arms over the seeds that both have finished.

    If the loss of a run does not cross the claim's whole window of losses, there are no
    differences, and the remark says why. Leaving out only the seed of that run would bias the
    selection of seeds.

    Args:
        runs: The runs of the study, from `Summaries.of`.
        study: The study.
        claim: The claim.
        seeds: The seeds to use.

    Raises:
        ValueError: Two finished runs of one arm and seed that both measured the metric, or runs of
            several configurations.
    """
    try:
        return _with_sensitivity(runs, study, claim, list(seeds))
    except WindowError as error:
        return Differences(
            values={},
            arm={},
            against={},
            seconds=(0.0, 0.0),
            fingerprints=[],
            names=(study.arm(claim.arm).words, study.arm(claim.against).words),
            remark=str(error),
            value_missing=True,
        )


def _with_sensitivity(
    runs: pd.DataFrame,
    study: Study,
    claim: Claim,
    seeds: list[int],
) -> Differences:
    """`differences`, which raises a `WindowError` if a run has no value in the window."""
    if claim.sensitivity is None:
        return _differences(runs, study, claim, seeds)
    parts = [_differences(runs, study, part, seeds) for part in claim.parts]
    arm = sensitivities([part.arm for part in parts], claim.sensitivity.at_most)
    against = sensitivities([part.against for part in parts], claim.sensitivity.at_most)
    remarks = dict.fromkeys(part.remark for part in parts if part.remark)
    fingerprints: list[str] = []
    for part in parts:
        fingerprints += part.fingerprints
    return Differences(
        values={seed: arm[seed] - against[seed] for seed in arm},
        arm=arm,
        against=against,
        seconds=(sum(part.seconds[0] for part in parts), sum(part.seconds[1] for part in parts)),
        fingerprints=fingerprints,
        names=(study.arm(claim.arm).words, study.arm(claim.against).words),
        remark="; ".join(remarks),
        steps=max(part.steps for part in parts),
    )


def sensitivities(by_setting: list[dict[int, float]], at_most: float) -> dict[int, float]:
    """The sensitivity of each seed that has a value at every setting.

    The mean of the values minus the smallest of them (Wortsman et al. 2023, section 2.2).

    Args:
        by_setting: The values by seed, for each value of the setting.
        at_most: Larger values count as this one.

    >>> sensitivities([{7: 2.0}, {7: 1.0}, {7: 9.0}], at_most=3.0)
    {7: 1.0}
    """
    shared = [seed for seed in by_setting[0] if all(seed in values for values in by_setting)]
    by_seed = {}
    for seed in shared:
        values = [min(values[seed], at_most) for values in by_setting]
        by_seed[seed] = sum(values) / len(values) - min(values)
    return by_seed


def _differences(runs: pd.DataFrame, study: Study, claim: Claim, seeds: list[int]) -> Differences:
    """The values of a claim's metric in its two arms."""
    sides = _sides(runs, study, claim)
    arm_rows = list(sides.arm[list(_COLUMNS)].itertuples(index=False))
    against_rows = list(sides.against[list(_COLUMNS)].itertuples(index=False))
    arm: dict[int, float] = {}
    against: dict[int, float] = {}
    fingerprints: list[str] = []
    for seed in seeds:
        arm_value = _value(arm_rows, study, claim, metric=claim.metric, seed=seed)
        against_metric = claim.against_metric or claim.metric
        against_value = _value(against_rows, study, claim, metric=against_metric, seed=seed)
        if arm_value is not None and against_value is not None:
            arm[seed], against[seed] = arm_value.value, against_value.value
            fingerprints += [arm_value.fingerprint, against_value.fingerprint]
    seconds = (_seconds(sides.arm), _seconds(sides.against))
    if sides.arm["fingerprint"].tolist() == sides.against["fingerprint"].tolist():
        seconds = (seconds[0], 0.0)  # one run gives both values
    return Differences(
        values={seed: arm[seed] - against[seed] for seed in arm},
        arm=arm,
        against=against,
        seconds=seconds,
        fingerprints=fingerprints,
        names=(_name(sides.arm, study, claim.arm), _name(sides.against, study, claim.against)),
        remark=sides.remark,
        steps=max(_length(sides.arm), _length(sides.against)),
    )


def _value(rows: list[Any], study: Study, claim: Claim, metric: str, seed: int) -> _Value | None:
    """The value of the run with this seed, among the runs of one arm; None without a value."""
    measured = []
    for run in rows:
        if run.seed == seed:
            value = value_of(run, claim, metric)
            if math.isfinite(value):
                measured.append(_Value(value, str(run.fingerprint)))
    if len(measured) > 1:
        fingerprints = ", ".join(run.fingerprint for run in measured)
        runs_of_seed = f"{len(measured)} finished runs of {rows[0].arm} with seed {seed}"
        message = f"study {study.name} has {runs_of_seed} ({fingerprints})"
        raise ValueError(f"{message}: keep one configuration a study")
    return measured[0] if measured else None


def _seconds(rows: pd.DataFrame) -> float:
    """The time of a run of an arm: the lower quartile, since other work only slows runs down."""
    return float(rows["seconds"].quantile(0.25)) if "seconds" in rows and len(rows) else 0.0


def _length(rows: pd.DataFrame) -> int:
    """The number of steps of the longest run of an arm."""
    return int(rows["total_steps"].max()) if len(rows) else 0


def _name(rows: pd.DataFrame, study: Study, settings: Settings) -> str:
    """The name of an arm: that of its runs, or its schedule where there are no runs."""
    return str(rows["arm"].iloc[0]) if len(rows) else study.arm(settings).words


def _sides(runs: pd.DataFrame, study: Study, claim: Claim) -> _Sides:
    """The runs of a claim's two arms.

    These are the runs with all settings as declared. If an arm has no such run, the settings that
    neither the claim nor its study names may differ. The runs must then be of one configuration,
    and the remark says how they differ from the declaration.

    Raises:
        ValueError: An arm has no run as declared, and the runs that fit are of several
            configurations.
    """
    done = runs[runs["state"] == "finished"]
    declared = (study.arm(claim.arm), study.arm(claim.against))
    exact = _Sides(_of_arm(done, declared[0]), _of_arm(done, declared[1]))
    if len(exact.arm) and len(exact.against):
        return exact
    arm_settings = {**study.config, **claim.arm}
    against_settings = {**study.config, **claim.against}
    arm_rows, against_rows = _like(done, arm_settings), _like(done, against_settings)
    named_keys = {*arm_settings, *against_settings}
    pairs = _as_declared(_pairs(arm_rows, against_rows, named_keys), declared)
    if not pairs:
        return exact
    if len(pairs) > 1:
        message = f"claim {claim.id} fits runs of several configurations, {_several(pairs)}"
        expected = "name the one that it is about in the study's config"
        raise ValueError(f"study {study.name}: {message}: {expected}")
    ((arm, against),) = pairs
    remarks = dict.fromkeys([_differs(arm, declared[0]), _differs(against, declared[1])])
    return _Sides(
        arm=_of_arm(arm_rows, arm),
        against=_of_arm(against_rows, against),
        remark="; ".join(filter(None, remarks)),
    )


def _of_arm(runs: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """The runs of an arm."""
    return runs_of(runs, lambda other: other == arm)


def _like(runs: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The runs whose arms have these settings; a setting that is not in use is ignored."""
    needed = {}
    for key, value in Arm.of(settings).values:
        if key in settings or key == "schedule.name":
            needed[key] = value
    return runs_of(runs, lambda arm: all(arm.get(key) == value for key, value in needed.items()))


def _pairs(
    arm_rows: pd.DataFrame,
    against_rows: pd.DataFrame,
    named_keys: set[str],
) -> list[tuple[Arm, Arm]]:
    """The pairs of arms that agree in the settings both use, except named keys and schedules."""
    pairs = []
    for arm in dict.fromkeys(arm_rows["settings"]):
        for against in dict.fromkeys(against_rows["settings"]):
            if arm.agrees(against, named_keys):
                pairs.append((arm, against))
    return pairs


def _as_declared(pairs: list[tuple[Arm, Arm]], declared: tuple[Arm, Arm]) -> list[tuple[Arm, Arm]]:
    """The pairs with the declared schedules; all pairs if none has them."""
    schedules = [arm.schedule for arm in declared]
    scheduled = [pair for pair in pairs if [arm.schedule for arm in pair] == schedules]
    return scheduled or pairs


def _several(pairs: list[tuple[Arm, Arm]]) -> str:
    """The first setting in which an arm differs between pairs, with its values."""
    for arms in zip(*pairs, strict=True):
        settings = [dict(arm.values) for arm in arms]
        for key in dict.fromkeys(itertools.chain.from_iterable(settings)):
            values = {arm_settings.get(key) for arm_settings in settings}
            if len(values) > 1:
                words = sorted({text(value, exact=True) for value in values})
                return f"{key}={' and '.join(words)}"
    raise AssertionError(f"these pairs of arms are one: {pairs}")


def _differs(ran: Arm, declared: Arm) -> str:
    """The settings in which the runs of an arm differ from the declaration."""
    ran_values, declared_values = dict(ran.values), dict(declared.values)
    differing = []
    for key in {**ran_values, **declared_values}:
        if ran_values.get(key) != declared_values.get(key):
            differing.append(f"{key}={text(ran_values.get(key))}")
    return ", ".join(differing)
