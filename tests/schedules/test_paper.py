import numpy as np
import pytest

import earlydrop


@pytest.mark.oldest
@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3, 0.0])
@pytest.mark.parametrize("cutoff", [1, 2, 3, 7, 100, 62_550])
def test_early_linear_is_the_released_arithmetic_to_the_bit(rate, cutoff):
    schedule = earlydrop.early(rate, cutoff)
    assert [schedule(step) for step in range(cutoff)] == np.linspace(rate, 0, cutoff).tolist()
    assert schedule(cutoff) == schedule(10 * cutoff) == 0


def test_complete_lists_of_values():
    def values(schedule, n=6):
        return [round(schedule(step), 12) for step in range(n)]

    assert values(earlydrop.none()) == [0] * 6
    assert values(earlydrop.constant(0.3)) == [0.3] * 6
    assert values(earlydrop.early(0.4, 3, "constant")) == [0.4, 0.4, 0.4, 0, 0, 0]
    assert values(earlydrop.early(0.4, 5, "cosine")) == [
        0.4,
        round(0.2 * (1 + 2**-0.5), 12),
        0.2,
        round(0.2 * (1 - 2**-0.5), 12),
        0,
        0,
    ]
    assert values(earlydrop.early(0.4, 0)) == [0] * 6
    assert values(earlydrop.late(0.4, 4)) == [0, 0, 0, 0, 0.4, 0.4]
    assert values(earlydrop.late(0.4, 0)) == [0.4] * 6


def test_each_part_of_a_curve():
    """At the start, before the end, at the end and past it; against the closed form."""
    cosine, line = earlydrop.early(0.6, 9, "cosine"), earlydrop.early(0.6, 9)
    for step in range(9):
        assert cosine(step) == pytest.approx(0.3 * (1 + np.cos(np.pi * step / 8)), abs=1e-12)
        assert line(step) == pytest.approx(0.6 * (1 - step / 8), abs=1e-12)
    assert cosine(8) == line(8) == cosine(9) == 0.0
    for shape in ("linear", "cosine", "constant"):
        assert [earlydrop.early(0.6, 1, shape)(step) for step in range(3)] == [0.6, 0.0, 0.0]
        assert earlydrop.early(0.6, 0, shape)(0) == 0.0
        assert earlydrop.early(0.6, 2, shape)(1) == (0.6 if shape == "constant" else 0.0)
    assert [earlydrop.late(0.6, 1)(step) for step in range(3)] == [0.0, 0.6, 0.6]


@pytest.mark.parametrize("cutoff", [*range(2, 60), 1_001])
def test_the_last_rate_of_early_dropout_is_zero_to_the_bit(cutoff):
    """As numpy's linspace; the plain arithmetic leaves up to 1e-17 at some cutoffs."""
    for rate in (0.1, 0.3, 0.7):
        assert earlydrop.early(rate, cutoff)(cutoff - 1) == 0.0
        assert earlydrop.early(rate, cutoff, "cosine")(cutoff - 1) == 0.0
