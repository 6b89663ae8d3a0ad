import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from earlydrop.claims.power import MOST_SEEDS, Price, needed_seeds, price
from earlydrop.claims.sizing import power_table
from tests.claims.made_up import LOSS, SAME, declaration, made_up, study, verdict

LEVEL = 0.05


def power(claim, spread, smallest, n, repeats=20_000):
    """The shares of experiments that resolve a claim: with the smallest effect, and none."""
    noise = np.random.default_rng(0).standard_normal((repeats, n)) * spread
    sees = scipy.stats.ttest_1samp(noise + smallest, 0, axis=1).pvalue < LEVEL
    above = scipy.stats.ttest_1samp(noise, -smallest, axis=1, alternative="greater").pvalue < LEVEL
    below = scipy.stats.ttest_1samp(noise, smallest, axis=1, alternative="less").pvalue < LEVEL
    none = {"not lower": above}.get(claim.direction, above & below)
    return (1.0 if claim.direction == "equivalent" else sees.mean()), none.mean()


@pytest.mark.parametrize("direction", ["lower", "equivalent", "not lower"])
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_the_needed_seeds_have_the_power_that_they_say_and_no_fewer_do(direction, ratio):
    claim = dataclasses.replace(LOSS, direction=direction)
    n = needed_seeds(claim, ratio, 1.0, LEVEL)
    assert min(power(claim, ratio, 1.0, n)) > 0.89
    assert min(power(claim, ratio, 1.0, n - 1)) < 0.915


@pytest.mark.parametrize("seen", [0.0, 0.6, -0.6, 1.5])
def test_a_claim_of_equivalence_is_sized_by_the_difference_that_was_seen(seen):
    n = needed_seeds(SAME, 1.0, 1.0, LEVEL, seen)

    def resolved(n):
        noise = np.random.default_rng(0).standard_normal((20_000, n)) + seen
        above = scipy.stats.ttest_1samp(noise, -1.0, axis=1, alternative="greater").pvalue < LEVEL
        below = scipy.stats.ttest_1samp(noise, 1.0, axis=1, alternative="less").pvalue < LEVEL
        # Two-sided: before the runs, nobody knows which of the two bounds the effect passes.
        higher = scipy.stats.ttest_1samp(noise, 1.0, axis=1, alternative="greater").pvalue
        beyond = 2 * higher < LEVEL
        return (beyond if abs(seen) > 1 else above & below).mean()

    assert resolved(n) > 0.89
    assert resolved(n - 1) < 0.915
    assert needed_seeds(SAME, 1.0, 1.0, LEVEL, 1.0) is None  # exactly between the two


def test_a_price_is_seeds_times_the_time_of_both_arms():
    assert price(SAME, 1e-9, 0.1, LEVEL, (1800, 1800)) == Price(2, 2.0)
    assert needed_seeds(SAME, 1e3, 0.1, LEVEL) is None
    assert str(price(SAME, 1e3, 0.1, LEVEL, (1, 1))) == f"more than {MOST_SEEDS:,} seeds"


def test_differences_that_do_not_scatter_size_no_round():
    with pytest.raises(ValueError, match="standard deviation of 0"):
        needed_seeds(SAME, 0.0, 0.1, LEVEL)
    declared = declaration(LOSS, studies=[study(label=range(10, 14), first=range(30, 40))])
    (row,) = power_table([declared], made_up(seeds=range(10, 14), noise=0.0)).itertuples()
    assert row.spread == 0
    assert pd.isna(row.seeds)
    assert pd.isna(row.hours)


def test_what_is_not_resolved_says_its_price():
    found = verdict(LOSS, made_up(effect=0.05, noise=0.05, seconds=3600.0))
    assert found.verdict == "not resolved"
    assert found.price.seeds > 6
    assert found.price.hours == pytest.approx(2 * found.price.seeds)
    assert verdict(LOSS, made_up(effect=-0.2)).price is None


def test_the_power_table_comes_from_label_seeds_alone():
    summaries = made_up(seeds=range(10, 20), noise=0.03, seconds=36.0)
    declared = declaration(LOSS, studies=[study(label=range(10, 14), first=range(30, 40))])
    table = power_table([declared], summaries)
    (row,) = table.itertuples()
    losses = pd.Series(
        {
            (r.arm, r.seed): r.history["train_eval/loss"].iloc[-1]
            for r in summaries.of("toy").itertuples()
        }
    )
    values = [losses["early", seed] - losses["none", seed] for seed in range(10, 14)]
    assert row.spread == pytest.approx(np.std(values, ddof=1))
    assert row.seeds == needed_seeds(LOSS, row.spread, 0.05, LEVEL / 2)
    assert row.n == 4
