"""Statistics of paired comparisons: intervals, differences, equivalence, and many tests at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.stats

LEVEL = 0.05
_ROUNDING = 1e-9
"""Differences whose spread is below this share of their mean are equal but for rounding."""


@dataclass(frozen=True)
class Paired:
    """A paired difference over seeds.

    The attributes are described for the paired t test (`paired`). The functions of
    `earlydrop.analysis.nonparametric` fill them with the values of their own tests.

    Attributes:
        seeds: The seeds that both arms have finished.
        effect: Mean difference.
        low: Lower end of its 95% interval (Student's t).
        high: Upper end.
        p: Two-sided p-value against 0.
        spread: Standard deviation of the differences. If it is 0 and the effect is 0, the arms
            count as equivalent. If it is 0 and the effect is not, the metric is too coarse to show
            the spread, and the p-values of all tests are 1.
    """

    seeds: tuple[int, ...]
    effect: float
    low: float
    high: float
    p: float
    spread: float

    @property
    def error(self) -> float:
        """Standard error of the mean difference."""
        return float(self.spread / math.sqrt(len(self.seeds)))


def interval(values: Any) -> tuple[float, float]:
    """Mean of some values and the half-width of its 95% interval (Student's t).

    The half-width of one value is NaN.
    """
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return float(values.mean()) if n else math.nan, math.nan
    quantile = scipy.stats.t.ppf(0.975, n - 1)
    return float(values.mean()), float(quantile * values.std(ddof=1) / n**0.5)


def paired(values: Mapping[int, float]) -> Paired | None:
    """Paired t of some differences.

    Args:
        values: Differences by seed.

    Returns:
        The comparison; None with fewer than two seeds.

    >>> paired({0: 1.0, 1: 2.0, 2: 3.0}).effect
    2.0
    """
    array = np.array(list(values.values()), float)
    n = len(array)
    if n < 2:
        return None
    mean, spread = float(array.mean()), float(array.std(ddof=1))
    if spread <= _ROUNDING * abs(mean):
        spread = 0.0
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * spread / n**0.5
    p = 1.0
    if spread > 0:
        p = float(2 * scipy.stats.t.sf(abs(mean) / spread * n**0.5, n - 1))
    return Paired(
        seeds=tuple(values),
        effect=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        spread=spread,
    )


def at_level(found: Paired, level: float) -> Paired:
    """The same difference with its interval at another level, such as that of one look."""
    half = float(scipy.stats.t.ppf(1 - level / 2, len(found.seeds) - 1)) * found.error
    return replace(found, low=found.effect - half, high=found.effect + half)


def p_within(found: Paired, margin: float) -> float:
    """p-value of equivalence within ± a margin: the larger of two one-sided tests."""
    if found.error == 0:
        return float(found.effect != 0)
    freedom = len(found.seeds) - 1
    above = scipy.stats.t.cdf((found.effect - margin) / found.error, freedom)
    below = scipy.stats.t.cdf((-found.effect - margin) / found.error, freedom)
    return float(max(above, below))


def p_beyond(found: Paired, margin: float) -> float:
    """p-value of a difference beyond ± a margin (two-sided)."""
    if found.error == 0:
        return 1.0
    distance = (abs(found.effect) - margin) / found.error
    return float(min(1.0, 2 * scipy.stats.t.sf(distance, len(found.seeds) - 1)))


def holm(p_values: Iterable[float]) -> list[float]:
    """p-values adjusted by Holm's step-down procedure.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = list(p_values)
    adjusted, largest = [1.0] * len(values), 0.0
    ascending = sorted(range(len(values)), key=values.__getitem__)
    for rank, index in enumerate(ascending):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap(values: Iterable[float]) -> tuple[float, float]:
    """95% interval of a mean by bootstrap (BCa)."""
    sample = np.array(list(values))
    result = scipy.stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=1 - LEVEL,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def p_above(found: Paired, bound: float) -> float:
    """p-value of a difference above a bound (one-sided)."""
    if found.error == 0:
        return float(found.effect != 0 or bound >= 0)
    return float(scipy.stats.t.sf((found.effect - bound) / found.error, len(found.seeds) - 1))


def power_of_difference(spread: float, effect: float, n: int, level: float) -> float:
    """Power of the two-sided paired t test to find an effect in its true direction.

    Args:
        spread: Standard deviation of the differences.
        effect: Their true mean, above 0.
        n: Number of pairs.
        level: Level of the test.
    """
    critical = scipy.stats.t.ppf(1 - level / 2, n - 1)
    return float(scipy.stats.nct.sf(critical, n - 1, effect / spread * math.sqrt(n)))


def power_of_bound(spread: float, margin: float, n: int, level: float, sides: int) -> float:
    """Power of one-sided tests against a margin, if the true difference is 0.

    Args:
        spread: Standard deviation of the differences.
        margin: The margin.
        n: Number of pairs.
        level: Level of each test.
        sides: 1, or 2 for both sides; then the power is a lower bound (Bonferroni).
    """
    critical = scipy.stats.t.ppf(1 - level, n - 1)
    power_of_one = float(scipy.stats.nct.sf(critical, n - 1, margin / spread * math.sqrt(n)))
    return max(0.0, 1.0 - sides * (1.0 - power_of_one))


def first_enough(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 2 on that is enough; None if that is above ``most``.

    Args:
        enough: Whether a number is enough. If one is, every larger number must be, too.
        most: The largest number that is tried.
    """
    low, high = 1, 2
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
