"""Verdicts on claims, from the paired differences by seed: arm minus the arm it is compared with.

A claim that one arm is lower (or higher) takes a test of difference and a test of equivalence. Holm
adjusts the p-values of all claims of a family together. The verdicts are:

- *absent*: the arms are equivalent. Two one-sided tests show a difference smaller than the smallest
  effect that matters;
- *reproduced*: the claim is not absent, and the difference is significant at the 5% level, in the
  predicted direction;
- *opposite*: the claim is not absent, and the difference is significant at the 5% level, in the
  other direction;
- *not resolved*: none of these. For the t test, the verdict gives the number of seeds that would
  resolve the claim, and their time;
- *incomplete*: not all declared seeds have a value in both arms, the round has one seed, or a run
  has no value in the window of losses;
- *not run*: no seed has a value in both arms, and no run lacks a value in the window of losses.

A file may declare looks (a group-sequential design). Then a claim is judged at each look whose
seeds have all finished. Its p-values are those of `earlydrop.analysis.sequential.sequential_p`.
With the t test, its interval is the repeated confidence interval of Jennison and Turnbull (1989).

A claim of equivalence is *reproduced* if the two one-sided tests show equivalence. Otherwise it is
*opposite* if a test shows that the difference is beyond the margin. A claim that an arm is not
lower is *reproduced* if a one-sided test shows a difference above minus the smallest effect.
Otherwise it is *opposite* if a two-sided test shows that the arm is lower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from earlydrop.analysis.nonparametric import (
    Within,
    median_difference,
    share_difference,
    time_difference,
)
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
)
from earlydrop.claims.differences import Differences, differences
from earlydrop.claims.power import first_level, price
from earlydrop.claims.summaries import Summaries
from earlydrop.claims.verdict import DECIDED, OPEN, UNJUDGED, Verdict

_UNTESTED = ""
"""The word of a verdict before its tests, where all seeds have finished."""

_BOOTSTRAP_FROM = 20
"""From this number of seeds on, a verdict has a bootstrap interval."""


class _Tests(NamedTuple):
    """The test of a claim's difference, and its test of equivalence.

    ``within`` is None for the t test: there ``paired`` gives both.
    """

    paired: Paired | None
    within: Within | None


class _PValues(NamedTuple):
    """The p-values of a claim's two tests, which depend on its direction.

    - lower, higher: ``primary`` of a difference (two-sided), ``secondary`` of equivalence;
    - equivalent: ``primary`` of equivalence, ``secondary`` of a difference beyond the margin;
    - not lower: ``primary`` of not being lower by the smallest effect, ``secondary`` of a
      difference.
    """

    primary: float
    secondary: float


Adjust = Callable[[Claim, _PValues], _PValues]
"""Turns the p-values of a claim's two tests into those that Holm's procedure takes."""


def _sequential(looks: Looks) -> Adjust:
    """A function that turns the p-values of a claim at the next look into sequential ones.

    It is called once for each claim and look whose seeds have all finished, in the order of the
    looks.
    """
    before: dict[str, list[_PValues]] = {}

    def add_look(claim: Claim, at_look: _PValues) -> _PValues:
        so_far = before.setdefault(claim.id, [])
        so_far.append(at_look)
        # Tests of equivalence and of not-lower are one-sided, tests of a difference two-sided.
        sides = (1, 2) if claim.direction in (EQUIVALENT, NOT_LOWER) else (2, 1)
        primary = [p.primary for p in so_far]
        secondary = [p.secondary for p in so_far]
        return _PValues(
            sequential_p(primary, looks.seeds, looks.boundary, sides[0]),
            sequential_p(secondary, looks.seeds, looks.boundary, sides[1]),
        )

    return add_look


def judge(
    declaration: Declaration,
    study_name: str,
    round_name: str,
    runs: pd.DataFrame,
) -> list[Verdict]:
    """Judge a file's claims from one study's runs and one round of seeds.

    Where the file declares looks, the round ``first`` of its main study is judged at the looks
    whose seeds have all finished.

    Args:
        declaration: The file of claims.
        study_name: One of its studies.
        round_name: A round of that study.
        runs: The runs of the study, from `Summaries.of`.

    Returns:
        One verdict per claim, in the order of the file.

    Raises:
        ValueError: Two finished runs of one arm and seed, or runs of several configurations.
    """
    seeds = declaration.studies[study_name].rounds[round_name]
    at_looks = round_name == FIRST and study_name == declaration.main_study
    if declaration.looks is not None and at_looks:
        return _judge_looks(declaration, declaration.looks, runs, seeds)
    return _judge_seeds(declaration, study_name, round_name, runs, seeds=seeds)


def _judge_looks(
    declaration: Declaration,
    looks: Looks,
    runs: pd.DataFrame,
    seeds: tuple[int, ...],
) -> list[Verdict]:
    """For each claim, the verdict at the first look that decides it.

    If no look decides it, this is the verdict at the last look whose seeds have all finished. If no
    look's seeds have all finished, it is the verdict at the first look.
    """
    adjust = _sequential(looks)
    chosen: list[Verdict] = []
    for i, count in enumerate(looks.seeds):
        at_look = _judge_seeds(
            declaration,
            study_name=declaration.main_study,
            round_name=FIRST,
            runs=runs,
            seeds=seeds[:count],
            adjust=adjust,
        )
        at_look = [_with_look(verdict, looks, i) for verdict in at_look]
        if chosen:
            at_look = [_later(*pair) for pair in zip(chosen, at_look, strict=True)]
        chosen = at_look
    return chosen


def _with_look(verdict: Verdict, looks: Looks, look_index: int) -> Verdict:
    """The verdict with its look, and with its interval at the level of that look.

    ``look_index`` counts from 0, but `Verdict.look` counts from 1.
    """
    paired_test = verdict.paired
    if paired_test is not None and verdict.claim.test is None:
        level = nominal_level(LEVEL, looks.seeds, look_index, looks.boundary)
        paired_test = at_level(paired_test, level)
    return dataclasses.replace(
        verdict,
        paired=paired_test,
        look=look_index + 1,
        looks=len(looks.seeds),
    )


def _later(before: Verdict, at_look: Verdict) -> Verdict:
    """The verdict after a further look.

    A decision stays. A look whose seeds have not all finished is ignored. If a run has no value in
    the window of losses, the earlier verdict stays and is marked.
    """
    if before.verdict in DECIDED:
        return before
    if at_look.value_missing:  # no further seed can decide the claim
        return dataclasses.replace(before, value_missing=True, remark=at_look.remark)
    return before if at_look.verdict in UNJUDGED else at_look


def _judge_seeds(
    declaration: Declaration,
    study_name: str,
    round_name: str,
    runs: pd.DataFrame,
    seeds: tuple[int, ...],
    adjust: Adjust | None = None,
) -> list[Verdict]:
    """Verdicts from some seeds; ``adjust`` changes the p-values before Holm's procedure."""
    study = declaration.studies[study_name]
    verdicts: list[Verdict] = []
    tests: list[_Tests] = []
    for claim in declaration.claims:
        measured = differences(runs, study, claim, seeds)
        paired_test, within = _compare(claim, measured)
        verdict = _before_tests(claim, measured, paired_test, len(seeds))
        verdicts.append(dataclasses.replace(verdict, study=study_name, round=round_name))
        tests.append(_Tests(paired_test if verdict.verdict == _UNTESTED else None, within))
    for i, p_values in enumerate(_adjusted_p_values(verdicts, tests, adjust)):
        tested = tests[i].paired
        if tested is not None and verdicts[i].smallest is not None:
            verdicts[i] = _with_decision(declaration, verdicts[i], tested, p_values)
    return verdicts


def _before_tests(
    claim: Claim,
    measured: Differences,
    paired_test: Paired | None,
    expected: int,
) -> Verdict:
    """The verdict of a claim before its p-values are known.

    ``Verdict.verdict`` is empty if there are two or more seeds, and each has a value in both arms.
    """
    all_finished = paired_test is not None and len(measured.values) == expected
    if all_finished:
        word = _UNTESTED
    elif measured.values or measured.value_missing:
        word = "incomplete"
    else:
        word = "not run"
    has_spread = paired_test is not None and paired_test.spread > 0
    has_bootstrap = (
        all_finished and has_spread and expected >= _BOOTSTRAP_FROM and claim.test is None
    )
    lower = sum(value < 0 for value in measured.values.values())
    higher = sum(value > 0 for value in measured.values.values())
    smallest = None
    if paired_test is not None:
        smallest = smallest_effect(claim, list(measured.against.values()))
    return Verdict(
        study="",
        round="",
        claim=claim,
        arms=measured.names,
        expected=expected,
        paired=paired_test,
        smallest=smallest,
        p=None,
        price=None,
        verdict=word,
        bootstrap=bootstrap(measured.values.values()) if has_bootstrap else None,
        fingerprints=tuple(measured.fingerprints),
        remark=measured.remark,
        seconds=measured.seconds,
        lower=lower if paired_test else None,
        higher=higher if paired_test else None,
        value_missing=measured.value_missing,
    )


def _adjusted_p_values(
    verdicts: list[Verdict],
    tests: list[_Tests],
    adjust: Adjust | None,
) -> list[_PValues]:
    """The p-values of each claim's two tests, after Holm over the claims of its family."""
    families: dict[str, list[int]] = {}
    for i, verdict in enumerate(verdicts):
        families.setdefault(verdict.claim.family, []).append(i)
    pairs = [_PValues(1.0, 1.0)] * len(verdicts)
    for members in families.values():
        p_values: list[float] = []
        for i in members:
            of_claim = _p_values(verdicts[i], tests[i])
            if adjust is not None and tests[i].paired is not None:
                of_claim = adjust(verdicts[i].claim, of_claim)
            p_values += of_claim
        adjusted = holm(p_values)
        for k, i in enumerate(members):
            pairs[i] = _PValues(adjusted[2 * k], adjusted[2 * k + 1])
    return pairs


def _with_decision(
    declaration: Declaration,
    verdict: Verdict,
    tested: Paired,
    p_values: _PValues,
) -> Verdict:
    """The verdict, with its word and p-value filled in, and its price if it is *not resolved*."""
    word, p = _word_and_p(verdict.claim, tested, p_values)
    cost = None
    can_be_priced = tested.spread > 0 and verdict.claim.test is None
    # For a claim of equivalence, the price assumes the observed effect, or 0 if that is not
    # significant.
    assumed_effect = tested.effect if tested.p < LEVEL else 0.0
    if word == OPEN and can_be_priced and verdict.smallest is not None:
        cost = price(
            verdict.claim,
            spread=tested.spread,
            smallest=verdict.smallest,
            level=first_level(declaration.claims, verdict.claim),
            seconds=verdict.seconds,
            assumed=assumed_effect,
        )
    return dataclasses.replace(verdict, p=p, price=cost, verdict=word)


def smallest_effect(claim: Claim, against: list[float]) -> float:
    """The smallest effect of a claim that matters, in its metric's units.

    Args:
        claim: The claim.
        against: The values of the arm that it is compared with.
    """
    if claim.relative:
        return claim.smallest * abs(sum(against) / len(against))
    return claim.smallest


def _compare(claim: Claim, measured: Differences) -> _Tests:
    """The comparison of a claim's two arms by its test."""
    if claim.test is None:
        return _Tests(paired(measured.values), None)
    if claim.test.kind == "median":
        compared = median_difference(measured.values)
    elif claim.test.kind == "share above":
        compared = share_difference(measured.arm, measured.against)
    else:
        compared = time_difference(measured.arm, measured.against, measured.steps)
    return _Tests(*compared) if compared is not None else _Tests(None, None)


def _p_values(verdict: Verdict, tests: _Tests) -> _PValues:
    """p-values of a claim's two tests.

    Both are 1 for a claim that is not tested, so that Holm's procedure counts it too.
    """
    tested, smallest = tests.paired, verdict.smallest
    if tested is None or smallest is None:
        return _PValues(1.0, 1.0)
    if tests.within is not None:
        return _PValues(tested.p, tests.within(smallest))
    if verdict.claim.direction == EQUIVALENT:
        return _PValues(p_within(tested, smallest), p_beyond(tested, smallest))
    if verdict.claim.direction == NOT_LOWER:
        return _PValues(p_above(tested, -smallest), tested.p)
    return _PValues(tested.p, p_within(tested, smallest))


def _word_and_p(claim: Claim, tested: Paired, p_values: _PValues) -> tuple[str, float]:
    """The verdict from the p-values after Holm, with the p-value that decided.

    If none did, it is the primary one.
    """
    primary, secondary = p_values
    if claim.direction in (EQUIVALENT, NOT_LOWER):
        if primary < LEVEL:
            return "reproduced", primary
        may_be_opposite = claim.direction == EQUIVALENT or tested.effect < 0
        if secondary < LEVEL and may_be_opposite:
            return "opposite", secondary
        return OPEN, primary
    if secondary < LEVEL:
        return "absent", secondary
    if primary >= LEVEL:
        return OPEN, primary
    is_lower = tested.effect < 0
    claims_lower = claim.direction == "lower"
    return ("reproduced" if is_lower == claims_lower else "opposite"), primary


def judge_all(declarations: list[Declaration], summaries: Summaries) -> list[Verdict]:
    """Judge every claim in each study and round that has runs, except the round ``label``.

    Claims that were not run are listed only for the round ``first`` of a main study, if any claim
    has runs there. Other rounds and studies may cover only some of the claims.
    """
    verdicts = []
    for declaration in declarations:
        for study in declaration.studies.values():
            runs = summaries.of(study.name)
            for round_name in study.rounds:
                if round_name == LABEL:
                    continue
                judged = judge(declaration, study.name, round_name, runs)
                ran = [verdict for verdict in judged if verdict.verdict != "not run"]
                main = round_name == FIRST and study.name == declaration.main_study
                if ran and main:
                    verdicts += judged
                else:
                    verdicts += ran
    return verdicts
