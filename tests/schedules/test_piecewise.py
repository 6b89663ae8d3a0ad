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
        ("0.0,0.1@0.5,0.4@0.5,0.2", 0.5, 0.4),  # two rates at one position: the second holds from there on
    ],
)
def test_piecewise_reads_kaldis_notation(points, fraction, rate):
    assert earlydrop.piecewise(points).resolve(1_000)(int(fraction * 1_000)) == pytest.approx(rate)


def test_piecewise_positions_in_epochs_and_percent_are_the_same_places():
    by_fraction = earlydrop.piecewise("0.1,0.1@0.25,0").resolve(1_000)
    for points in ("0.1,0.1@25%,0", "0.1,0.1@5ep,0"):
        resolved = earlydrop.piecewise(points).resolve(1_000, steps_per_epoch=50)
        assert [resolved(s) for s in range(1_100)] == [by_fraction(s) for s in range(1_100)]
