import numpy as np
import pytest
import scipy.stats

from tests.claims.made_up import LOSS, made_up, verdict


def test_the_resolvable_effect_has_the_power_it_says():
    noise = 0.02
    finding = verdict(LOSS, made_up(effect=0.0, noise=noise))
    spread = finding.paired.spread
    random = np.random.default_rng(0)
    values = finding.resolvable + spread * random.standard_normal((4000, 6))
    power = (scipy.stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.03)
