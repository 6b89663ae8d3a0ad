import re

import numpy as np
import pytest

import earlydrop


@pytest.mark.parametrize(
    ("points", "fraction", "rate"),
    [  # Kaldi's own self-test
        ("0.0,0.5,0.0", 0.75, 0.25),
        ("0.0,0.3@0.75,0.0", 0.5, 0.2),
        ("0.0,0.3@0.75,0.0", 0.25, 0.1),
        ("0.0,0.5@0.25,0.0,0.6@0.75,0.0", 0.1, 0.2),
        ("0.0,0.3,0.0@0.75,0.9", 0.9, 0.54),
        (
            "0.0,0.1@0.5,0.4@0.5,0.2",
            0.5,
            0.4,
        ),  # two rates at one position: the second holds from there on
    ],
)
def test_piecewise_reads_kaldis_notation(points, fraction, rate):
    assert earlydrop.piecewise(points).resolve(1_000)(int(fraction * 1_000)) == pytest.approx(rate)


def test_piecewise_positions_in_epochs_and_percent_are_the_same_places():
    by_fraction = earlydrop.piecewise("0.1,0.1@0.25,0").resolve(1_000)
    for points in ("0.1,0.1@25%,0", "0.1,0.1@5ep,0"):
        resolved = earlydrop.piecewise(points).resolve(1_000, steps_per_epoch=50)
        assert [resolved(s) for s in range(1_100)] == [by_fraction(s) for s in range(1_100)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [7, 100, 1_009])
def test_piecewise_is_numpys_interpolation(seed, steps):
    draw = np.random.default_rng(seed)
    places = [0.0, *np.sort(draw.uniform(0.05, 0.95, 4)).round(3).tolist(), 1.0]
    rates = draw.uniform(0, 0.99, 6).round(3).tolist()
    inner = ",".join(
        f"{rate}@{place}" for rate, place in zip(rates[1:-1], places[1:-1], strict=True)
    )
    schedule = earlydrop.piecewise(f"{rates[0]},{inner},{rates[-1]}").resolve(steps)
    found = [schedule(step) for step in range(2 * steps)]
    assert found == pytest.approx(np.interp(np.arange(2 * steps) / steps, places, rates).tolist())


def test_a_schedule_of_two_rates_is_a_line_and_a_point_without_a_position_stands_at_half():
    line = earlydrop.piecewise("0.2,0.6").resolve(4)
    assert [line(step) for step in range(6)] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.6])
    assert earlydrop.piecewise("0,0.4,0").resolve(8)(4) == 0.4


def test_points_at_the_ends_and_in_epochs():
    jump = earlydrop.piecewise("0.1,0.5@0,0.3@1,0").resolve(10)
    assert [jump(0), jump(5), jump(10)] == pytest.approx([0.5, 0.4, 0.0])
    resolved = earlydrop.piecewise("0,0.4@2ep,0").resolve(12, 3)
    assert resolved.points == "0.0,0.4@1/2,0.0"
    assert resolved.total_steps == 12
    assert resolved.resolve(12) is resolved
    with pytest.raises(ValueError, match="was resolved for 12 steps, not for 13"):
        resolved.resolve(13)
    with pytest.raises(ValueError, match="in epochs: give steps_per_epoch"):
        earlydrop.piecewise("0,0.4@2ep,0").resolve(12)
    assert (
        earlydrop.piecewise("0,0.4@4ep,0").resolve(12, 3)(12) == 0.0
    )  # the end of the run is a place


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ("0,0.1@abcep,0", "position 'abcep' should be a fraction of the run"),
        ("0,0.1@1.5,0", "position '1.5' should be a fraction of the run"),
        ("0,0.1@-0.1,0", "position '-0.1' should be a fraction of the run"),
        ("0,0.1@1/0,0", "position '1/0' should be"),
        (
            "0,0.1@2ep,0.2@y,0",
            "position 'y' should be",
        ),  # at once, though the epochs are not known yet
        (
            "0,0.1@0.5,0@1",
            (
                "the first and last rates stand at the start and end of the run, "
                "so '0@1' takes no position"
            ),
        ),
        ("0,0.1@120%,0", "past the end of the run"),
        ("0,-0.1@0.5,0", "a rate in points '0,-0.1@0.5,0' is -0.1"),
        ("1,0", "a rate in points '1,0' is 1.0"),
        (None, "points is None: expected Kaldi's notation"),
    ],
)
def test_what_is_no_schedule_in_points(points, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        earlydrop.piecewise(points)


def test_a_point_may_stand_at_the_end_and_two_at_one_position():
    schedule = earlydrop.piecewise("0,0.1@0.5,0.3@0.5,0.2@1,0").resolve(100)
    assert schedule(50) == pytest.approx(0.3)
    assert schedule(100) == 0
    with pytest.raises(ValueError, match=r"1\.01"):
        earlydrop.piecewise("0,0.2@1.01,0.1").resolve(100)
