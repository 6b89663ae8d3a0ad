"""Comparisons of runs that fall into two groups, against closed forms and scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from earlydrop.analysis.nonparametric import median_difference, share_difference, time_difference


def by_seed(values):
    return dict(enumerate(map(float, values)))


def test_the_median_has_wilcoxons_p_and_an_interval_of_order_statistics():
    values = np.random.default_rng(1).normal(-0.5, 1.0, 21)
    found, within = median_difference(by_seed(values))
    assert found.effect == np.median(values)
    assert found.p == scipy.stats.wilcoxon(values).pvalue
    ordered = np.sort(values)
    # Binomial(21, 1/2): P(5 <= X <= 15) is the widest coverage of at least 95%
    assert (found.low, found.high) == (ordered[5], ordered[15])
    assert within(5.0) < 0.001
    assert within(0.01) > 0.05
    assert within(1.0) == max(
        scipy.stats.wilcoxon(values - 1.0, alternative="less").pvalue,
        scipy.stats.wilcoxon(values + 1.0, alternative="greater").pvalue,
    )


def test_equal_pairs_give_no_evidence_of_a_difference():
    found, _ = median_difference(by_seed([0.0] * 6))
    assert found.p == 1.0
    assert median_difference({0: 1.0}) is None
    assert share_difference({0: 1.0}, {0: 0.0}) is None
    assert time_difference({0: 1.0}, {0: 2.0}, 10) is None


def test_ranks_that_point_to_the_other_side_are_no_evidence_for_the_median():
    draws = np.random.default_rng(0)
    values = np.concatenate([draws.normal(-1, 0.01, 31), draws.normal(10, 0.01, 29)])
    assert scipy.stats.wilcoxon(values).pvalue < 0.01
    found, _ = median_difference(by_seed(values))
    assert found.effect < 0
    assert found.p == 1.0
    zeros, _ = median_difference(by_seed([0.0] * 11 + [-2.0] * 10))
    assert (zeros.effect, zeros.p) == (0.0, 1.0)


def test_a_log_rank_test_that_points_to_the_other_side_is_no_evidence_for_the_mean():
    """Most runs of the arm are a little slower; a few of the other never reach the bound."""
    arm = by_seed([11.0] * 36 + [10.0] * 4)
    against = by_seed([10.0] * 36 + [1000.0] * 4)
    both_sides = scipy.stats.logrank([11.0] * 36 + [10.0] * 4, [10.0] * 36 + [1000.0] * 4).pvalue
    assert both_sides < 0.05
    found, _ = time_difference(arm, against, 1000)
    assert found.effect < 0
    assert found.p == 1.0


def test_few_values_have_no_finite_interval_of_the_median():
    found, _ = median_difference(by_seed([1.0, 2.0, 3.0]))
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_shares_have_mcnemars_exact_p():
    arm, against = by_seed([0] * 30), by_seed([1] * 5 + [0] * 25)
    found, within = share_difference(arm, against)
    assert found.effect == pytest.approx(-5 / 30)
    assert found.p == pytest.approx(2 * 0.5**5)
    # Agresti and Min: half a pair in each cell, so b = 0.5, c = 5.5, n = 32
    center, n = -5 / 32, 32
    half = 1.959964 * math.sqrt((0.5 + 5.5) - (0.5 - 5.5) ** 2 / n) / n
    assert (found.low, found.high) == pytest.approx((center - half, center + half), abs=1e-6)
    assert within(0.5) < 0.05 < within(0.1)


def test_shares_that_never_differ():
    found, _ = share_difference(by_seed([0] * 10), by_seed([0] * 10))
    assert (found.effect, found.p) == (0.0, 1.0)
    assert found.low < 0 < found.high


def test_times_have_the_p_of_the_log_rank_test():
    arm, against = by_seed([200, 250, 300, 350, 400]), by_seed([400, 500, 600, 1000, 1000])
    found, within = time_difference(arm, against, limit=1000)
    # the log-rank statistic by hand: observed minus expected events of the arm at each event time
    observed, expected, variance = 0.0, 0.0, 0.0
    a, b = list(arm.values()), list(against.values())
    for time in sorted({t for t in a + b if t < 1000}):
        at_risk = [sum(t >= time for t in side) for side in (a, b)]
        events = [sum(t == time for t in side) for side in (a, b)]
        total, died = sum(at_risk), sum(events)
        observed += events[0]
        expected += died * at_risk[0] / total
        if total > 1:
            variance += (
                died * (at_risk[0] / total) * (at_risk[1] / total) * (total - died) / (total - 1)
            )
    p = 2 * scipy.stats.norm.sf(abs(observed - expected) / math.sqrt(variance))
    assert found.p == pytest.approx(p)
    assert found.effect == pytest.approx(
        np.mean([200 - 400, 250 - 500, 300 - 600, 350 - 1000, 400 - 1000])
    )
    assert within(2000.0) < 0.001


def test_times_that_nobody_reaches_say_nothing():
    found, _ = time_difference(by_seed([10] * 4), by_seed([10] * 4), limit=10)
    assert found.p == 1.0
