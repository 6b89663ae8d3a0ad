"""Comparisons of two arms for values with two peaks, where a mean says little.

Each function returns a `Paired` and a function that gives the p-value of equivalence within a
margin. Sources: Wilcoxon's signed-rank test (1945), McNemar's exact test (1947) with the interval
of Agresti and Min (2005), and the log-rank test (Mantel 1966).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy.stats

from earlydrop.analysis.stats import LEVEL, Paired, p_within, paired

Within = Callable[[float], float]
"""The p-value of equivalence within plus or minus a margin."""


def median_difference(values: Mapping[int, float]) -> tuple[Paired, Within] | None:
    """The median of paired differences, with its exact interval and Wilcoxon's signed-rank test.

    Args:
        values: Differences by seed.

    Returns:
        The comparison and its test of equivalence; None with fewer than two seeds. The p-value is 1
        if the ranks point to the other side than the median.

    >>> comparison, _ = median_difference({0: 1.0, 1: 2.0, 2: 9.0})
    >>> comparison.effect
    2.0
    """
    differences = np.array(list(values.values()), float)
    if len(differences) < 2:
        return None
    interval = scipy.stats.quantile_test(differences, p=0.5).confidence_interval(1 - LEVEL)
    median = float(np.median(differences))
    side = "less" if median < 0 else "greater"
    agrees = median != 0 and _signed_rank(differences, side) < 0.5
    comparison = Paired(
        seeds=tuple(values),
        effect=median,
        # Not finite with too few values.
        low=float(interval.low) if math.isfinite(interval.low) else -math.inf,
        high=float(interval.high) if math.isfinite(interval.high) else math.inf,
        p=_signed_rank(differences, "two-sided") if agrees else 1.0,
        spread=float(differences.std(ddof=1)),
    )

    def within(margin: float) -> float:
        below = _signed_rank(differences - margin, "less")
        above = _signed_rank(differences + margin, "greater")
        return max(below, above)

    return comparison, within


def _signed_rank(differences: np.ndarray, alternative: str) -> float:
    if not differences.any():  # every pair is equal
        return 1.0
    return float(scipy.stats.wilcoxon(differences, alternative=alternative).pvalue)


def share_difference(
    arm: Mapping[int, float],
    against: Mapping[int, float],
) -> tuple[Paired, Within] | None:
    """The difference of two shares over the same seeds, with McNemar's exact test.

    Args:
        arm: By seed, 1 for a run that has the property to compare, else 0.
        against: Those of the other arm, with the same seeds.

    Returns:
        The comparison and its test of equivalence; None with fewer than two seeds. The interval
        is that of Agresti and Min, which adds half a pair to each of the four cells.
    """
    n = len(arm)
    if n < 2:
        return None
    gained = sum(1 for seed in arm if arm[seed] > against[seed])
    lost = sum(1 for seed in arm if arm[seed] < against[seed])
    p = float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    center = (gained - lost) / (n + 2)
    squares = (gained + lost + 1) / (n + 2)
    error = math.sqrt((squares - center**2) / (n + 2))
    half = float(scipy.stats.norm.ppf(1 - LEVEL / 2)) * error
    comparison = Paired(
        seeds=tuple(arm),
        effect=(gained - lost) / n,
        low=max(-1.0, center - half),
        high=min(1.0, center + half),
        p=p,
        spread=error * math.sqrt(n),
    )

    def within(margin: float) -> float:
        return float(scipy.stats.norm.sf((margin - abs(center)) / error))

    return comparison, within


def time_difference(
    arm: Mapping[int, float],
    against: Mapping[int, float],
    limit: float,
) -> tuple[Paired, Within] | None:
    """The difference of the steps at which runs reach a bound, with the log-rank test.

    The log-rank test does not use the pairing; the interval and the test of equivalence do.

    Args:
        arm: By seed, the step at which a run first reaches the bound; ``limit`` if it never does.
        against: Those of the other arm, with the same seeds.
        limit: The length of a run in steps. A run with this value has not reached the bound.

    Returns:
        The mean difference of the steps, cut at the limit, with Student's interval and the p-value
        of the log-rank test; and its test of equivalence (paired t). None with fewer than two
        seeds. The p-value is 1 if the log-rank test points to the other side than the mean.
    """
    differences = paired({seed: arm[seed] - against[seed] for seed in arm})
    if differences is None:
        return None
    steps = [list(arm.values()), list(against.values())]
    samples = [_censored(values, limit) for values in steps]
    p = 1.0
    if min(steps[0] + steps[1]) < limit:
        with np.errstate(invalid="ignore"):  # 0 / 0 if all runs reach the bound at the same step
            test = scipy.stats.logrank(*samples)
        # The statistic is above 0 if the arm reaches the bound sooner: its effect is negative.
        if test.statistic * differences.effect < 0:
            p = float(test.pvalue)
    comparison = replace(differences, p=p)
    return comparison, lambda margin: p_within(differences, margin)


def _censored(steps: Sequence[float], limit: float) -> scipy.stats.CensoredData:
    return scipy.stats.CensoredData(
        uncensored=[step for step in steps if step < limit],
        right=[step for step in steps if step >= limit],
    )
