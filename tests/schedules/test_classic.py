import math
from fractions import Fraction

import pytest

import earlydrop


def test_classic_schedules_follow_their_formulas():
    annealed = earlydrop.annealed(0.4, "50%").resolve(20)
    curriculum = earlydrop.curriculum(0.4).resolve(20)
    ramp = earlydrop.ramp(0.4, "50%").resolve(20)
    for t in range(25):
        assert annealed(t) == pytest.approx(max(0, 1 - t / 10) * 0.4)
        assert curriculum(t) == pytest.approx(0.4 * (1 - math.exp(-t * 10 / 20)))
        assert ramp(t) == pytest.approx(0.4 * min(1, t / 10))
    assert earlydrop.schedules.from_config(curriculum.to_config()) == curriculum
    assert earlydrop.ramp(0.4, 0)(0) == 0.4
    assert earlydrop.annealed(0.4, 0)(0) == 0.0


@pytest.mark.parametrize("gamma", [0, -0.1, float("nan"), float("inf"), "x"])
def test_a_gamma_that_does_not_rise_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma is .*: expected more than 0"):
        earlydrop.curriculum(0.5, gamma)


def test_a_curriculum_checks_its_rate():
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        earlydrop.curriculum(1.5)
    assert type(earlydrop.curriculum(Fraction(1, 2)).rate) is float


@pytest.mark.parametrize("make", [earlydrop.annealed, earlydrop.ramp])
def test_bad_rates_and_cutoffs_are_refused(make):
    with pytest.raises(ValueError, match=r"1\.2"):
        make(1.2)
    with pytest.raises(ValueError, match="-3"):
        make(0.1, -3)
    with pytest.raises(ValueError, match="resolve"):
        make(0.1, "20%")(0)


def test_a_gamma_that_is_given_is_kept():
    given = earlydrop.curriculum(0.4, 0.25)
    assert given.resolve(1_000) is given
    assert [given(step) for step in (0, 1, 8)] == pytest.approx(
        [0.0, 0.4 * (1 - math.exp(-0.25)), 0.4 * (1 - math.exp(-2))]
    )
    assert earlydrop.curriculum(0.4, 1)(1) == pytest.approx(0.4 * (1 - math.exp(-1)))
    assert earlydrop.curriculum(0.4).resolve(20).gamma == 0.5
