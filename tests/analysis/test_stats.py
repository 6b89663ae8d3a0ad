import numpy as np
import pytest
import scipy.stats

from earlydrop.analysis.stats import (
    bootstrap,
    first_enough,
    holm,
    interval,
    p_above,
    p_beyond,
    p_within,
    paired,
    power_of_bound,
    power_of_difference,
)  # fmt: skip


def test_paired_t_is_scipys():
    values = np.random.default_rng(1).normal(0.3, 1, 7)
    found = paired(dict(enumerate(values)))
    theirs = scipy.stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert paired({0: 1.0}) is None


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([]) == []


SAMPLES = [(0.3, 7), (-0.3, 7), (0.02, 12), (-1.0, 4), (0.0, 30)]


def sample(mean, n):
    return np.random.default_rng(n).normal(mean, 0.4, n)


def one_sided(values, bound, alternative):
    return scipy.stats.ttest_1samp(values, bound, alternative=alternative).pvalue


@pytest.mark.parametrize(("mean", "n"), SAMPLES)
@pytest.mark.parametrize("margin", [0.05, 0.5])
def test_one_sided_tests_are_scipys(mean, n, margin):
    values = sample(mean, n)
    found = paired(dict(enumerate(values)))
    above, below = one_sided(values, -margin, "greater"), one_sided(values, margin, "less")
    assert p_within(found, margin) == pytest.approx(max(above, below))
    assert p_above(found, margin) == pytest.approx(one_sided(values, margin, "greater"))
    beyond = one_sided(values * np.sign(values.mean()), margin, "greater")
    assert p_beyond(found, margin) == pytest.approx(min(1.0, 2 * beyond))
    assert p_beyond(found, 0.0) == pytest.approx(found.p)
    assert found.error == pytest.approx(scipy.stats.sem(values))


@pytest.mark.parametrize("effect", [0.0, 0.25, -0.25])
def test_differences_without_scatter(effect):
    """The same runs twice are equivalent; any other difference without scatter decides nothing."""
    found = paired(dict.fromkeys(range(5), effect))
    assert (found.seeds, found.effect, found.spread, found.error, found.p) == (
        tuple(range(5)),
        effect,
        0.0,
        0.0,
        1.0,
    )
    assert (found.low, found.high) == (effect, effect)
    assert p_within(found, 1.0) == (0.0 if effect == 0 else 1.0)
    assert p_beyond(found, 0.1) == 1.0
    assert p_above(found, 0.1) == 1.0
    assert p_above(found, 0.0) == 1.0
    assert p_above(found, -0.1) == (0.0 if effect == 0 else 1.0)


def test_a_scatter_of_rounding_errors_is_none():
    exact = [0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.1]
    assert paired(dict(enumerate(exact))).spread == 0.0
    assert paired(dict(enumerate([0.1, 0.1 + 1e-6, 0.1]))).spread > 0.0
    assert paired({0: 1.0, 1: 2.0}).spread == pytest.approx(0.5**0.5)


def test_interval_is_scipys():
    values = sample(0.3, 9)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = interval(values)
    assert (mean - half, mean + half) == pytest.approx(theirs)
    assert interval([1.0, 3.0])[0] == 2.0
    assert np.isfinite(interval([1.0, 3.0])[1])
    assert interval([2.0])[0] == 2.0
    assert np.isnan(interval([2.0])[1])
    assert np.isnan(interval([])).all()


def test_the_bootstrap_interval_covers_as_students_does_for_normal_values():
    values = np.random.default_rng(0).normal(2.0, 1.0, 60)
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(list(values))  # the same every time
    mean, half = interval(values)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.03)


def test_holm_caps_at_one_and_keeps_the_order():
    assert holm([0.9, 0.8, 0.01]) == pytest.approx([1.0, 1.0, 0.03])
    assert holm([0.2, 0.001]) == pytest.approx([0.2, 0.002])


@pytest.mark.parametrize(
    ("spread", "effect", "n", "level"),
    [(1.0, 0.8, 10, 0.05), (0.5, -0.3, 20, 0.01), (1.0, 0.0, 6, 0.05)],
)
def test_power_of_a_difference_is_the_share_of_simulated_studies_that_find_it(
    spread, effect, n, level
):
    studies = np.random.default_rng(3).normal(abs(effect), spread, (20_000, n))
    found = scipy.stats.ttest_1samp(studies, 0, axis=1)
    share = ((found.pvalue < level) & (found.statistic > 0)).mean()
    assert power_of_difference(spread, abs(effect), n, level) == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize(
    ("spread", "margin", "n", "level"), [(1.0, 0.8, 10, 0.05), (0.5, 0.6, 8, 0.01)]
)
def test_power_of_a_bound_is_the_share_of_simulated_studies_within_it(spread, margin, n, level):
    studies = np.random.default_rng(4).normal(0.0, spread, (20_000, n))
    below = scipy.stats.ttest_1samp(studies, margin, axis=1, alternative="less").pvalue < level
    above = scipy.stats.ttest_1samp(studies, -margin, axis=1, alternative="greater").pvalue < level
    assert power_of_bound(spread, margin, n, level, 1) == pytest.approx(below.mean(), abs=0.012)
    assert power_of_bound(spread, margin, n, level, 2) == pytest.approx(
        max(0.0, below.mean() + above.mean() - 1.0), abs=0.02
    )
    assert power_of_bound(spread, margin, n, level, 2) <= (below & above).mean() + 0.012


def test_power_of_two_bounds_out_of_reach_is_none():
    assert power_of_bound(1.0, 0.01, 3, 0.05, 2) == 0.0


@pytest.mark.parametrize("smallest", [2, 3, 4, 5, 31, 32, 33, 99, 100])
def test_the_first_that_is_enough_is_found_up_to_the_most(smallest):
    asked = []

    def enough(n):
        asked.append(n)
        return n >= smallest

    assert first_enough(enough, 100) == smallest
    assert max(asked) <= 100
    assert len(asked) <= 15
    assert first_enough(enough, smallest - 1) is None or smallest <= 2


def test_holm_equivalence_and_power_are_those_of_statsmodels():
    """To more digits than any table prints."""
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import TTestPower

    random = np.random.default_rng(3)
    p_values = random.uniform(0, 0.2, 11)
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)

    values = random.normal(0.1, 1, 9)
    found = paired(dict(enumerate(values)))
    for margin in (0.2, 0.5, 2.0):
        p, *_ = weightstats.ttost_paired(values, np.zeros(9), -margin, margin)
        assert p_within(found, margin) == pytest.approx(p, rel=1e-9)

    for n in (5, 20, 60):
        theirs = TTestPower().power(0.6, n, 0.025, alternative="larger")
        assert power_of_bound(1.0, 0.6, n, 0.025, sides=1) == pytest.approx(theirs, rel=1e-6)
        # A difference that is found in the wrong direction is no success.
        assert power_of_difference(1.0, 0.6, n, 0.05) == pytest.approx(theirs, rel=1e-6)


def test_the_bootstrap_is_seeded():
    values = [0.1, 0.4, -0.2, 0.3, 0.9, 0.0, 0.2]
    expected = scipy.stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0))
    assert bootstrap(values) == tuple(expected.confidence_interval)
