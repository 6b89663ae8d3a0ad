"""The result of a study in sentences: which arm ended better than no dropout, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.analysis.compare import differences_by_seed, metric_of
from earlydrop.analysis.stats import Paired
from earlydrop.metrics import METRICS, Metric

_SCHEDULES = {"constant": "standard", "none": "no"}  # as papers call them
_KINDS = {"unit": "dropout", "path": "stochastic depth", "all": "dropout and stochastic depth"}
_COMPARED_METRICS = ("train_eval/loss", "test/accuracy")
"""The metrics that sentences are about."""
_LABELS = {"train_eval/loss": "training loss"}


@dataclass(frozen=True)
class Answer:
    """The result of a study in sentences.

    Attributes:
        first: The main sentence.
        more: A sentence for each further arm and metric.
    """

    first: str
    more: tuple[str, ...]


def answer(runs: pd.DataFrame, found: Mapping[str, Mapping[str, Paired]]) -> Answer:
    """Compare each arm of some runs with the arm without dropout, in sentences.

    The first sentence is about the training loss if arms can be compared by it, and about early
    dropout if it is one of these arms.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        found: Their differences, from `earlydrop.analysis.compare.differences`.

    Returns:
        The sentences. If nothing can be compared, one sentence says why.
    """
    settings = {str(row["arm"]): row["settings"] for row in runs.to_dict("records")}
    names = _names(settings)
    early_first = sorted(
        found, key=lambda arm: (settings[arm].get("schedule.name") != "early", arm)
    )
    sentences = []
    for metric in (METRICS[name] for name in _COMPARED_METRICS):
        for arm in early_first:
            paired = found[arm].get(metric.heading or "")
            if paired is not None:
                better, equal = _better_and_equal_seeds(runs, arm, metric)
                sentences.append(sentence(names[arm], metric, paired, better, equal))
    if sentences:
        return Answer(sentences[0], tuple(sentences[1:]))
    if found:
        metrics = " nor ".join(_COMPARED_METRICS)
        why = f"Nothing to compare in a sentence: neither {metrics} was measured."
        return Answer(f"{why} Add train_eval or test to evaluation.splits.", ())
    return Answer(_why_not(runs), ())


def sentence(arm: str, metric: Metric, paired: Paired, better: int, equal: int = 0) -> str:
    """One comparison in words; it begins with "Undecided" if the difference is not `decided`.

    Args:
        arm: The arm in words, such as "early dropout".
        metric: A metric that has a better direction.
        paired: Arm minus no dropout.
        better: In how many seeds the arm is better.
        equal: In how many seeds the two are equal.

    Returns:
        The sentence.

    >>> import textwrap
    >>> paired = Paired((0, 1, 2), -0.026, -0.05, -0.003, 0.04, 0.009)
    >>> text = sentence("early dropout", METRICS["test/accuracy"], paired, better=0)
    >>> print(textwrap.fill(text, 95))
    Early dropout ended with a lower test accuracy than no dropout in 3 of 3 seeds (-0.026, 95%
    interval -0.050 to -0.003).
    """
    n = len(paired.seeds)
    words = _LABELS.get(metric.name, metric.label)
    largest = max(abs(paired.low), abs(paired.high))
    digits = 3 if largest >= 0.02 else 4 if largest >= 0.002 else 5
    effect = f"{paired.effect:+.{digits}f}"
    interval = f"95% interval {paired.low:+.{digits}f} to {paired.high:+.{digits}f}"
    if not decided(paired):
        return (
            f"Undecided: with {arm} the final {words} differs from that without dropout by "
            f"{effect} ({interval}; {metric.better} in {better} of {n} seeds)."
        )
    side = "higher" if paired.effect > 0 else "lower"
    count = better if side == metric.better else n - better - equal
    text = f"{arm} ended with a {side} {words} than no dropout in {count} of {n} seeds"
    return f"{text[:1].upper()}{text[1:]} ({effect}, {interval})."


def decided(paired: Paired) -> bool:
    """Whether the interval of a difference leaves out 0.

    Differences that are equal in all seeds decide nothing: the metric is too coarse.
    """
    return paired.spread > 0 and (paired.low > 0 or paired.high < 0)


def _better_and_equal_seeds(runs: pd.DataFrame, arm: str, metric: Metric) -> tuple[int, int]:
    """In how many seeds an arm ended better than the arm without dropout, and in how many equal."""
    by_seed = differences_by_seed(runs, arm, f"final/{metric.name}")
    sign = -1 if metric.better == "lower" else 1
    better = sum(sign * difference > 0 for difference in by_seed.values())
    equal = sum(difference == 0 for difference in by_seed.values())
    return better, equal


def _names(arms: Mapping[str, Arm]) -> dict[str, str]:
    """By arm, its schedule in words.

    It is ``arm <name>`` if several arms have the same words, or if the schedule is the user's own.
    """
    words = {arm: _in_words(settings) for arm, settings in arms.items()}
    counts = pd.Series(list(words.values())).value_counts()
    names = {}
    for arm, name in words.items():
        names[arm] = name if counts[name] == 1 and ":" not in name else f"arm {arm}"
    return names


def _in_words(arm: Arm) -> str:
    name = str(arm.get("schedule.name"))
    kind = _KINDS.get(str(arm.get("schedule.kind")), "dropout")
    return f"{_SCHEDULES.get(name, name)} {kind}"


def _why_not(runs: pd.DataFrame) -> str:
    """Why there is nothing to compare, and what would give a comparison."""
    if len(runs) == 1:
        why = "One run: nothing to compare it with."
    elif not any(settings.without_dropout for settings in runs["settings"]):
        why = "Nothing to compare: no run is without dropout."
    else:
        why = (
            "Nothing to compare: no arm shares two seeds, each finished once, with an arm without "
            "dropout that has the same other settings."
        )
    return f"{why} A sweep such as earlydrop -m schedule=none,early seed=0,1,2 gives a comparison."


def in_numbers(found: Mapping[str, Mapping[str, Paired]], heading: str) -> dict[str, str]:
    """The differences of one metric, by arm: mean, interval and seeds.

    Args:
        found: From `earlydrop.analysis.compare.differences`.
        heading: The metric's heading.

    Returns:
        By arm, a line such as ``early: -0.0260 (95% interval -0.0500 to -0.0020, 3 seeds)``.
    """
    metric = metric_of(heading)
    digits = metric.digits if metric is not None else 4
    numbers = {}
    for arm, by_heading in found.items():
        if heading in by_heading:
            point = by_heading[heading]
            low, high = f"{point.low:+.{digits}f}", f"{point.high:+.{digits}f}"
            interval = f"95% interval {low} to {high}, {len(point.seeds)} seeds"
            numbers[arm] = f"{arm}: {point.effect:+.{digits}f} ({interval})"
    return numbers
