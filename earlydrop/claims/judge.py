"""Verdicts on claims, from the paired difference (arm minus the arm that it is held against, seed by seed).

A claim that one arm is lower (or higher) takes two tests, and Holm adjusts both over all claims of the family:

- *absent*: the two arms are equivalent: two one-sided tests show a difference smaller than the smallest effect that matters;
- *reproduced*: they are not, and the difference is not 0, in the predicted direction, at the 5% level;
- *opposite*: likewise, in the other direction;
- *not resolved*: none of these, with the seeds that would resolve it and their price;
- *incomplete*: not all declared seeds have finished, so nothing is said yet.

A file may declare looks (a group-sequential design). Then a claim is judged at each look whose seeds have all finished, its p-values are
those of `earlydrop.analysis.sequential.sequential_p`, and its interval is the repeated confidence interval of Jennison and Turnbull (1989).

A claim of equivalence is *reproduced* if the two one-sided tests show it, *opposite* if the difference lies beyond the margin. A claim that
an arm is not lower is *reproduced* if a one-sided test shows that it is not lower by the smallest effect, *opposite* if it is lower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from earlydrop.analysis.arms import Arm, text
from earlydrop.analysis.nonparametric import Within, median_difference, share_difference, time_difference
from earlydrop.analysis.runs import runs_of
from earlydrop.analysis.sequential import nominal_level, sequential_p
from earlydrop.analysis.stats import (
    LEVEL,
    Paired,
    at_level,
    bootstrap,
    holm,
    p_above,
    p_beyond,
    p_within,
    paired,
)
from earlydrop.claims.declare import (
    EQUIVALENT,
    FIRST,
    LABEL,
    NOT_LOWER,
    Claim,
    Declaration,
    Looks,
    Settings,
    Study,
)
from earlydrop.claims.measured import WindowError, value_of
from earlydrop.claims.power import Price, first_level, price
from earlydrop.claims.summaries import Summaries

BOOTSTRAP_FROM = 20

_MEASURED = ("seed", "fingerprint", "step", "total_steps", "history")
"""What a difference is taken from: a frame of runs has some hundred columns more."""

DECIDED = ("reproduced", "opposite", "absent")
"""The verdicts that answer."""

OPEN = "not resolved"


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim.

    Attributes:
        study: The study.
        round: Which of its rounds of seeds.
        claim: The claim.
        arms: What the runs of its two arms are called; their schedules where there are no runs.
        expected: How many seeds were declared.
        paired: The paired difference; None without two seeds.
        smallest: The smallest effect that matters, in the metric's units; None without two seeds.
        p: p-value of the test that decided, after Holm; where nothing did, that of the difference.
        price: What would resolve a claim that is not resolved; None also where its differences do not scatter.
        verdict: ``reproduced``, ``opposite``, ``absent``, ``not resolved``, ``incomplete`` or ``not run``.
        bootstrap: 95% interval by bootstrap (BCa), from 20 seeds on.
        fingerprints: The runs behind it.
        remark: How the runs differ from what was declared; empty if they do not.
        seconds: What a run of each of its two arms takes.
        look: At which look it was judged, from 1; 0 where no looks are declared.
        looks: How many looks are declared.
        lower: In how many seeds the arm's value is lower; None without a paired difference.
    """

    study: str
    round: str
    claim: Claim
    arms: tuple[str, str]
    expected: int
    paired: Paired | None
    smallest: float | None
    p: float | None
    price: Price | None
    verdict: str
    bootstrap: tuple[float, float] | None
    fingerprints: tuple[str, ...]
    remark: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    look: int = 0
    looks: int = 0
    lower: int | None = None


class _Sides(NamedTuple):
    """The finished runs of a claim's two arms."""

    arm: pd.DataFrame
    against: pd.DataFrame
    remark: str


class Differences(NamedTuple):
    """The values of two arms by seed, and the runs behind them.

    Attributes:
        values: Arm minus against, by seed.
        arm: The values of the arm, by seed.
        against: Those of the arm that it is held against.
        seconds: What a run of each arm takes.
        fingerprints: The runs.
        names: What the arms are called.
        remark: How the runs differ from the declaration.
        steps: The length of a run.
    """

    values: dict[int, float]
    arm: dict[int, float]
    against: dict[int, float]
    seconds: tuple[float, float]
    fingerprints: list[str]
    names: tuple[str, str]
    remark: str
    steps: int = 0


def _sides(runs: pd.DataFrame, study: Study, claim: Claim) -> _Sides:
    """The runs of a claim's two arms.

    Those whose every setting is as declared, whatever else is in the folder. Where no run is, the runs that have the settings that the
    claim and its study name count, as long as they are of one configuration; the remark says how they differ from the declaration.

    Raises:
        ValueError: Such runs are of several configurations.
    """
    done = runs[runs["state"] == "finished"]
    wanted = [study.arm(settings) for settings in (claim.arm, claim.against)]
    exact = [runs_of(done, arm.__eq__) for arm in wanted]
    named = [{**study.config, **settings} for settings in (claim.arm, claim.against)]
    like = [_like(done, names) for names in named]
    if all(len(rows) for rows in exact) or any(rows.empty for rows in like):
        return _Sides(exact[0], exact[1], "")
    free = set(named[0]) | set(named[1])
    pairs = [
        (one, other)
        for one in dict.fromkeys(like[0]["settings"])
        for other in dict.fromkeys(like[1]["settings"])
        if one.agrees(other, free)
    ]
    if not pairs:
        return _Sides(exact[0], exact[1], "")
    as_scheduled = [pair for pair in pairs if all(ran.schedule == arm.schedule for ran, arm in zip(pair, wanted, strict=True))]
    pairs = as_scheduled or pairs
    if len(pairs) > 1:
        raise ValueError(
            f"study {study.name}: claim {claim.id} fits runs of several configurations, {_several(pairs)}: say which it is about in the "
            "study's config:"
        )
    arms = pairs[0]
    rows = [runs_of(side, arm.__eq__) for arm, side in zip(arms, like, strict=True)]
    return _Sides(rows[0], rows[1], _differs(arms[0], wanted[0]) or _differs(arms[1], wanted[1]))


def _like(runs: pd.DataFrame, names: Settings) -> pd.DataFrame:
    """The runs that have the settings that are named and in use."""
    wanted = {key: value for key, value in Arm.of(names).values if key in names or key == "schedule.name"}
    return runs_of(runs, lambda arm: all(arm.get(key) == value for key, value in wanted.items()))


def _several(pairs: list[tuple[Arm, Arm]]) -> str:
    """The first setting that an arm of several pairs has in several values, and these."""
    for arms in zip(*pairs, strict=True):
        values = [dict(arm.values) for arm in arms]
        for key in dict.fromkeys(key for each in values for key in each):
            if len({each.get(key) for each in values}) > 1:
                return f"{key}={' and '.join(sorted({text(each.get(key)) for each in values}))}"
    raise AssertionError(f"these pairs of arms are one: {pairs}")


def _differs(ran: Arm, declared: Arm) -> str:
    ours, theirs = dict(ran.values), dict(declared.values)
    return ", ".join(f"{key}={text(ours.get(key))}" for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))


def differences(runs: pd.DataFrame, study: Study, claim: Claim, seeds: Iterable[int]) -> Differences:
    """Arm minus against, of the seeds that both have finished.

    Raises:
        ValueError: Two finished runs of one arm and seed that both measured the metric.
    """
    seeds = list(seeds)
    if claim.sensitivity is None:
        return _differences(runs, study, claim, seeds)
    parts = [_differences(runs, study, part, seeds) for part in claim.parts]
    arm = sensitivities([part.arm for part in parts], claim.sensitivity.at_most)
    against = sensitivities([part.against for part in parts], claim.sensitivity.at_most)
    return Differences(
        values={seed: arm[seed] - against[seed] for seed in arm},
        arm=arm,
        against=against,
        seconds=(sum(part.seconds[0] for part in parts), sum(part.seconds[1] for part in parts)),
        fingerprints=[fingerprint for part in parts for fingerprint in part.fingerprints],
        names=(study.arm(claim.arm).words, study.arm(claim.against).words),
        remark="; ".join(dict.fromkeys(part.remark for part in parts if part.remark)),
        steps=max(part.steps for part in parts),
    )


def sensitivities(by_setting: list[dict[int, float]], at_most: float) -> dict[int, float]:
    """The sensitivity of each seed that has a value at every setting (Wortsman et al. 2023, section 2.2).

    >>> sensitivities([{7: 2.0}, {7: 1.0}, {7: 9.0}], at_most=3.0)
    {7: 1.0}
    """
    shared = [seed for seed in by_setting[0] if all(seed in values for values in by_setting)]
    found = {}
    for seed in shared:
        values = [min(values[seed], at_most) for values in by_setting]
        found[seed] = sum(values) / len(values) - min(values)
    return found


def _differences(runs: pd.DataFrame, study: Study, claim: Claim, seeds: list[int]) -> Differences:
    """Arm minus against of one claim's metric."""
    sides = _sides(runs, study, claim)
    metrics = (claim.metric, claim.against_metric or claim.metric)
    measurements = [list(rows[list(_MEASURED)].itertuples(index=False)) for rows in sides[:2]]
    arm: dict[int, float] = {}
    against: dict[int, float] = {}
    fingerprints: list[str] = []
    for seed in seeds:
        found = []
        for rows, side, metric in zip(sides[:2], measurements, metrics, strict=True):
            measured = [
                (value, str(run.fingerprint))
                for run in side
                if run.seed == seed and math.isfinite(value := value_of(run, claim, metric))
            ]
            if len(measured) > 1:
                raise ValueError(
                    f"study {study.name} has {len(measured)} finished runs of {rows['arm'].iloc[0]} with seed {seed} "
                    f"({', '.join(fingerprint for _, fingerprint in measured)}): keep one configuration a study"
                )
            found += measured
        if len(found) == 2:
            arm[seed], against[seed] = found[0][0], found[1][0]
            fingerprints += [fingerprint for _, fingerprint in found]
    names = [
        str(rows["arm"].iloc[0]) if len(rows) else study.arm(settings).words
        for rows, settings in zip(sides[:2], (claim.arm, claim.against), strict=True)
    ]
    # The lower quartile: what else a machine does slows runs down.
    seconds = [float(rows["seconds"].quantile(0.25)) if "seconds" in rows and len(rows) else 0.0 for rows in sides[:2]]
    if sides.arm["fingerprint"].tolist() == sides.against["fingerprint"].tolist():
        seconds[1] = 0.0  # one run gives both values
    return Differences(
        values={seed: arm[seed] - against[seed] for seed in arm},
        arm=arm,
        against=against,
        seconds=(seconds[0], seconds[1]),
        fingerprints=fingerprints,
        names=(names[0], names[1]),
        remark=sides.remark,
        steps=int(max((rows["total_steps"].max() for rows in sides[:2] if len(rows)), default=0)),
    )


def difference(runs: pd.DataFrame, study: Study, claim: Claim, seeds: Iterable[int]) -> Paired | None:
    """The paired difference of a claim's two arms over some seeds; None with fewer than two.

    Raises:
        ValueError: Two finished runs of one arm and seed, or runs of several configurations.
    """
    return paired(differences(runs, study, claim, seeds).values)


Adjust = Callable[[Claim, float, float], tuple[float, float]]
"""Turns the p-values of a claim's two tests into those that Holm's procedure takes."""


def judge(declaration: Declaration, study_name: str, round_name: str, runs: pd.DataFrame) -> list[Verdict]:
    """Verdicts on a file's claims from one study's runs, from `Summaries.of`, and one round of seeds: one a claim.

    Where the file declares looks, its main study's round ``first`` is judged at the looks that are whole.

    Raises:
        ValueError: Two finished runs of one arm and seed, or runs of several configurations.
    """
    seeds = declaration.studies[study_name].rounds[round_name]
    if declaration.looks is None or round_name != FIRST or study_name != declaration.main_study:
        return _judge_seeds(declaration, study_name, round_name, runs, seeds)
    return _judge_looks(declaration, declaration.looks, runs, seeds)


def _judge_looks(declaration: Declaration, looks: Looks, runs: pd.DataFrame, seeds: tuple[int, ...]) -> list[Verdict]:
    """Verdicts at the first look that decides a claim, else at the last look that is whole."""
    p_values: dict[str, tuple[list[float], list[float]]] = {claim.id: ([], []) for claim in declaration.claims}

    def adjust(claim: Claim, first: float, second: float) -> tuple[float, float]:
        firsts, seconds = p_values[claim.id]
        firsts.append(first)
        seconds.append(second)
        sides = (1, 2) if claim.direction in (EQUIVALENT, NOT_LOWER) else (2, 1)
        return (
            sequential_p(firsts, looks.seeds, looks.boundary, sides[0]),
            sequential_p(seconds, looks.seeds, looks.boundary, sides[1]),
        )

    chosen: list[Verdict] = []
    for i, count in enumerate(looks.seeds):
        at_look = _judge_seeds(declaration, declaration.main_study, FIRST, runs, seeds[:count], adjust)
        level = nominal_level(LEVEL, looks.seeds, i, looks.boundary)
        for j, verdict in enumerate(at_look):
            whole = verdict.verdict not in ("incomplete", "not run")
            if i and (chosen[j].verdict in DECIDED or not whole):
                continue  # it stopped at an earlier look, or this look is not whole yet
            summary = verdict.paired
            if summary is not None and verdict.claim.test is None:
                summary = at_level(summary, level)
            at_look[j] = dataclasses.replace(verdict, paired=summary, look=i + 1, looks=len(looks.seeds))
            chosen[j : j + 1] = [at_look[j]]
    return chosen


def _judge_seeds(
    declaration: Declaration,
    study_name: str,
    round_name: str,
    runs: pd.DataFrame,
    seeds: tuple[int, ...],
    adjust: Adjust | None = None,
) -> list[Verdict]:
    """Verdicts from some seeds of a round; ``adjust`` changes the p-values before Holm's procedure."""
    study = declaration.studies[study_name]
    verdicts: list[Verdict] = []
    tests: dict[str, list[tuple[int, Paired | None, Within | None]]] = {}  # by family: which verdict, and its tests
    for claim in declaration.claims:
        try:
            measured = differences(runs, study, claim, seeds)
        except WindowError as error:  # no seed is left out for it: that would choose among the seeds
            called = (study.arm(claim.arm).words, study.arm(claim.against).words)
            measured = Differences({}, {}, {}, (0.0, 0.0), [], called, str(error))
        summary, within = _compare(claim, measured)
        whole = summary is not None and len(measured.values) == len(seeds)
        state = "" if whole else "incomplete" if measured.values or "window" in measured.remark else "not run"
        sampled = whole and len(seeds) >= BOOTSTRAP_FROM and claim.test is None
        smallest = smallest_effect(claim, list(measured.against.values())) if summary else None
        tests.setdefault(claim.family, []).append((len(verdicts), summary if whole else None, within))
        verdicts.append(
            Verdict(
                study=study_name,
                round=round_name,
                claim=claim,
                arms=measured.names,
                expected=len(seeds),
                paired=summary,
                smallest=smallest,
                p=None,
                price=None,
                verdict=state,
                bootstrap=bootstrap(measured.values.values()) if sampled else None,
                fingerprints=tuple(measured.fingerprints),
                remark=measured.remark,
                seconds=measured.seconds,
                lower=sum(value < 0 for value in measured.values.values()) if summary else None,
            )
        )
    for family in tests.values():
        p_values: list[float] = []
        for index, tested, within in family:
            first, second = _p_values(verdicts[index], tested, within)
            if adjust is not None and tested is not None:
                first, second = adjust(verdicts[index].claim, first, second)
            p_values += [first, second]
        adjusted = holm(p_values)
        for (index, tested, _), first, second in zip(family, adjusted[::2], adjusted[1::2], strict=True):
            if tested is not None and verdicts[index].smallest is not None:
                verdicts[index] = _decided(declaration, verdicts[index], tested, first, second)
    return verdicts


def _decided(declaration: Declaration, verdict: Verdict, tested: Paired, first: float, second: float) -> Verdict:
    """The verdict with its word and p-value, and, where nothing is decided, what would decide it."""
    words, p = _decide(verdict.claim, tested, first, second)
    cost = None
    if words == OPEN and tested.spread > 0 and verdict.claim.test is None and verdict.smallest is not None:
        level = first_level(declaration.claims, verdict.claim)
        seen = tested.effect if tested.p < LEVEL else 0.0
        cost = price(verdict.claim, tested.spread, verdict.smallest, level, verdict.seconds, seen)
    return dataclasses.replace(verdict, p=p, price=cost, verdict=words)


def smallest_effect(claim: Claim, base: list[float]) -> float:
    """The smallest effect of a claim that matters in its metric's units, given the values of the arm that it is held against."""
    return claim.smallest * abs(sum(base) / len(base)) if claim.relative else claim.smallest


def _compare(claim: Claim, found: Differences) -> tuple[Paired | None, Within | None]:
    """The comparison of a claim's two arms by its test; with its test of equivalence where that is not the paired t test."""
    if claim.test is None:
        return paired(found.values), None
    if claim.test.kind == "median":
        compared = median_difference(found.values)
    elif claim.test.kind == "share above":
        compared = share_difference(found.arm, found.against)
    else:
        compared = time_difference(found.arm, found.against, found.steps)
    return compared if compared is not None else (None, None)


def _p_values(verdict: Verdict, found: Paired | None, within: Within | None) -> tuple[float, float]:
    """p-values of a claim's two tests; 1 where it is not tested, for every declared claim counts."""
    if found is None or verdict.smallest is None:
        return 1.0, 1.0
    if within is not None:
        return found.p, within(verdict.smallest)
    if verdict.claim.direction == EQUIVALENT:
        return p_within(found, verdict.smallest), p_beyond(found, verdict.smallest)
    if verdict.claim.direction == NOT_LOWER:
        return p_above(found, -verdict.smallest), found.p
    return found.p, p_within(found, verdict.smallest)


def _decide(claim: Claim, found: Paired, first: float, second: float) -> tuple[str, float]:
    """The verdict, and the p-value of the test that it comes from, of `_p_values` after Holm."""
    if claim.direction == EQUIVALENT:
        return ("reproduced", first) if first < LEVEL else ("opposite", second) if second < LEVEL else (OPEN, first)
    if claim.direction == NOT_LOWER:
        if first < LEVEL:
            return "reproduced", first
        return ("opposite", second) if second < LEVEL and found.effect < 0 else (OPEN, first)
    if second < LEVEL:
        return "absent", second
    if first >= LEVEL:
        return OPEN, first
    return ("reproduced" if (found.effect < 0) == (claim.direction == "lower") else "opposite"), first


def judge_all(declarations: list[Declaration], summaries: Summaries) -> list[Verdict]:
    """Verdicts on every claim, by file, study and round of seeds, for each study and round that has runs."""
    verdicts = []
    for declaration in declarations:
        for study in declaration.studies.values():
            runs = summaries.of(study.name)
            for name in study.rounds:
                if name != LABEL:
                    found = judge(declaration, study.name, name, runs)
                    ran = [verdict for verdict in found if verdict.verdict != "not run"]
                    main = name == "first" and study.name == declaration.main_study
                    verdicts += found if ran and main else ran  # other rounds and studies may take up some of the claims
    return verdicts


def regime(runs: pd.DataFrame, study: Study, standard: Settings, seeds: Iterable[int]) -> tuple[str, Paired | None]:
    """The regime of a study by the paper's definition, from seeds that enter no verdict.

    ``underfit`` if the model generalises better without standard dropout, ``overfit`` if better with it, ``unclear`` if the interval of the
    difference in test accuracy holds 0; and that difference, standard minus none.
    """
    seeds = list(seeds)
    if not seeds:
        return "unclear", None
    claim = Claim("regime", "", "", standard, {**standard, "schedule.name": "none"}, "test/accuracy", None, "lower", 1.0)
    found = difference(runs, study, claim, seeds)
    if found is None or found.low <= 0 <= found.high:
        return "unclear", found
    return ("underfit" if found.high < 0 else "overfit"), found
