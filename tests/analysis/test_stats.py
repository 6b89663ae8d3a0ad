import numpy as np
import pytest
import scipy.stats

from earlydrop.analysis.stats import holm, paired


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
