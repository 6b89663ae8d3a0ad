"""Boundaries against the tables of Jennison and Turnbull (2000), and against a simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from earlydrop.analysis.sequential import (
    OBRIEN_FLEMING,
    POCOCK,
    SHAPES,
    constant_of,
    level_of,
    nominal_level,
    sequential_p,
)

TABLES = {  # Jennison and Turnbull 2000, tables 2.1 and 2.3: two-sided, equal steps
    OBRIEN_FLEMING: {
        (2, 0.05): 1.977,
        (3, 0.05): 2.004,
        (5, 0.05): 2.040,
        (10, 0.05): 2.087,
        (2, 0.01): 2.580,
        (5, 0.1): 1.751,
    },
    POCOCK: {
        (2, 0.05): 2.178,
        (3, 0.05): 2.289,
        (5, 0.05): 2.413,
        (10, 0.05): 2.555,
        (2, 0.01): 2.772,
        (5, 0.1): 2.122,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_boundaries_are_those_of_the_tables(shape):
    for (count, level), constant in TABLES[shape].items():
        looks = tuple(range(1, count + 1))
        assert constant_of(level, looks, shape, 2) == pytest.approx(constant, abs=6e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sides", [1, 2])
def test_unequal_looks_keep_their_level(shape, sides):
    looks = (20, 30, 60)
    data = np.random.default_rng(0).standard_normal((100_000, 60))
    z = np.stack([data[:, :n].sum(1) / n**0.5 for n in looks], axis=1)
    p = sides * scipy.stats.norm.sf(np.abs(z) if sides == 2 else z)
    levels = [nominal_level(0.05, looks, i, shape, sides) for i in range(3)]
    assert (p < levels).any(axis=1).mean() == pytest.approx(0.05, abs=0.003)


def test_one_look_is_the_test_itself():
    for shape in SHAPES:
        for sides in (1, 2):
            assert nominal_level(0.05, (40,), 0, shape, sides) == pytest.approx(0.05, abs=1e-6)
            for p in (1e-30, 0.003, 0.4):
                assert sequential_p([p], (40,), shape, sides) == pytest.approx(p, rel=1e-3)
    assert sequential_p([0.9], (40,), POCOCK, 1) == pytest.approx(0.9, rel=1e-3)
    assert sequential_p([1.0], (40,), POCOCK, 2) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_p_value_is_significant_where_its_look_crosses_the_boundary(shape):
    looks = (20, 40, 60)
    for i in range(3):
        level = nominal_level(0.05, looks, i, shape)
        before = [0.9] * i
        assert sequential_p([*before, 0.99 * level], looks, shape) < 0.05
        assert sequential_p([*before, 1.01 * level], looks, shape) > 0.05


def test_a_later_look_never_takes_a_decision_back():
    looks = (20, 40, 60)
    first = sequential_p([0.0004], looks, OBRIEN_FLEMING)
    assert first < 0.05
    assert sequential_p([0.0004, 0.5, 0.9], looks, OBRIEN_FLEMING) == first
    assert sequential_p([0.0004, 1e-8], looks, OBRIEN_FLEMING) < 1e-5


def test_a_p_value_is_never_below_that_of_the_last_look_alone():
    looks = (20, 40, 60)
    for p in (1e-60, 1e-20, 1e-9):
        z = scipy.stats.norm.isf(p / 2) * math.sqrt(1 / 3)
        assert sequential_p([p], looks, OBRIEN_FLEMING) >= 2 * scipy.stats.norm.sf(z)


def test_more_p_values_than_looks_are_refused():
    with pytest.raises(ValueError, match="3 p-values for 2 looks: expected from 1 to 2"):
        sequential_p([0.1, 0.1, 0.1], (10, 20), POCOCK)
    assert level_of(0.0, (10, 20), POCOCK, 2) == 1.0
