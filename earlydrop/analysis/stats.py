"""Statistics of paired comparisons: intervals, differences seed by seed, equivalence, and many tests at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.stats

LEVEL = 0.05
_ROUNDING = 1e-9
"""Differences that scatter by less than this share of their mean are the same but for rounding."""


@dataclass(frozen=True)
class Paired:
    """A paired difference over seeds.

    Attributes:
        seeds: The seeds that both arms have finished.
        effect: Mean difference.
        low: Lower end of its 95% interval (Student's t).
        high: Upper end.
        p: Two-sided p-value against 0.
        spread: Standard deviation of the differences. Where it is 0, runs that are the same (differences of 0) are equivalent; any other
            difference has a scatter that the metric is too coarse to show, and no test finds anything.
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
    """Mean and half-width of its 95% interval (Student's t); the half-width of one value is NaN."""
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return float(values.mean()) if n else math.nan, math.nan
    return float(values.mean()), float(scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)


def paired(values: Mapping[int, float]) -> Paired | None:
    """Paired t of the differences by seed; None with fewer than two.

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
    return Paired(tuple(values), mean, mean - half, mean + half, _two_sided(mean, spread, n), spread)


def at_level(found: Paired, level: float) -> Paired:
    """The same difference with its interval at another level, such as that of one look of several."""
    half = float(scipy.stats.t.ppf(1 - level / 2, len(found.seeds) - 1)) * found.error
    return replace(found, low=found.effect - half, high=found.effect + half)


def _two_sided(mean: float, spread: float, n: int) -> float:
    if spread == 0:
        return 1.0
    return float(2 * scipy.stats.t.sf(abs(mean) / spread * n**0.5, n - 1))


def p_within(found: Paired, margin: float) -> float:
    """p-value of equivalence within ± a margin: the larger of two one-sided tests."""
    if found.error == 0:
        return float(found.effect != 0)
    n = len(found.seeds)
    return float(max(scipy.stats.t.cdf((sign * found.effect - margin) / found.error, n - 1) for sign in (1, -1)))


def p_beyond(found: Paired, margin: float) -> float:
    """p-value of a difference beyond ± a margin."""
    if found.error == 0:
        return 1.0
    return float(min(1.0, 2 * scipy.stats.t.sf((abs(found.effect) - margin) / found.error, len(found.seeds) - 1)))


def holm(p_values: Iterable[float]) -> list[float]:
    """p-values adjusted by Holm's step-down procedure.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = list(p_values)
    adjusted, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap(values: Iterable[float]) -> tuple[float, float]:
    """95% interval of the mean by bootstrap (BCa)."""
    sample = np.array(list(values))
    result = scipy.stats.bootstrap((sample,), np.mean, confidence_level=1 - LEVEL, rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def p_above(found: Paired, bound: float) -> float:
    """p-value of a difference above a bound (one-sided)."""
    if found.error == 0:
        return float(found.effect != 0 or bound >= 0)
    return float(scipy.stats.t.sf((found.effect - bound) / found.error, len(found.seeds) - 1))


def power_of_difference(spread: float, effect: float, n: int, level: float) -> float:
    """Power of the two-sided paired t test at a level, with n pairs whose differences have this spread about a true effect."""
    critical = scipy.stats.t.ppf(1 - level / 2, n - 1)
    return float(scipy.stats.nct.sf(critical, n - 1, effect / spread * math.sqrt(n)))


def power_of_bound(spread: float, margin: float, n: int, level: float, sides: int) -> float:
    """Power of one (``sides`` 1) or two one-sided tests against a margin at a level, where the true difference is 0.

    Two sides: from the probability of each (Bonferroni), so rather too low.
    """
    critical = scipy.stats.t.ppf(1 - level, n - 1)
    one = float(scipy.stats.nct.sf(critical, n - 1, margin / spread * math.sqrt(n)))
    return max(0.0, 1.0 - sides * (1.0 - one))


def first_enough(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest n from 2 on that is enough, if being enough is kept by every larger n; None above ``most``."""
    low, high = 1, 2
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
