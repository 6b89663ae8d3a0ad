import re
from fractions import Fraction

import pytest

import earlydrop
from earlydrop.schedules.durations import check_duration, duration_to_steps, exact_steps


def test_resolve_rounds_down_and_is_idempotent():
    assert earlydrop.early(0.1, "20%").resolve(1_009).cutoff == 201
    assert earlydrop.late(0.1, "1.5ep").resolve(1_000, steps_per_epoch=25).cutoff == 37
    assert earlydrop.early(0.1, "0.7%").resolve(1_000).cutoff == 7  # exactly, not 6.999...
    resolved = earlydrop.early(0.1, 50).resolve(100)
    assert resolved.resolve(100) == resolved == earlydrop.early(0.1, 50)
    assert earlydrop.early(0.1, "100%").resolve(77).cutoff == 77


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (0, 0),
        (7, 7),
        ("7", 7),
        (" 20 % ", "20%"),
        ("1.5ep", "1.5ep"),
        ("0%", "0%"),
        ("100%", "100%"),
        ("6/2", 3),
        ("1/3ep", "1/3ep"),
    ],
)
def test_durations_in_their_plain_form(given, plain):
    assert check_duration(given, "it") == plain


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("1.5", "it is '1.5': expected"),
        ("1/0ep", "it is '1/0ep': expected"),
        ("", "it is '': expected"),
        ("%", "it is '%': expected"),
        ("-1ep", "it is '-1ep': a duration cannot be negative"),
        ("-1", "it is '-1': a duration cannot be negative"),
        (-1, "it is -1: a duration cannot be negative"),
        ("100.1%", "it is '100.1%': past the end of the run; expected at most '100%'"),
        (False, "it is False: expected"),
        (None, "it is None: expected"),
    ],
)
def test_what_is_no_duration(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        check_duration(given, "it")


def test_exact_steps_are_fractions():
    assert exact_steps(7, 10, None, "it") == 7
    assert exact_steps("33.3%", 10, None, "it") == Fraction(333, 100)
    assert exact_steps("1/3ep", 10, 7, "it") == Fraction(7, 3)
    with pytest.raises(ValueError, match="it is '2ep', in epochs: give steps_per_epoch"):
        exact_steps("2ep", 10, None, "it")


def test_the_end_of_the_run_is_the_last_cutoff():
    assert (
        duration_to_steps(10, 10)
        == duration_to_steps("100%", 10)
        == duration_to_steps("2ep", 10, 5)
        == 10
    )
    assert duration_to_steps(0, 10) == duration_to_steps("9%", 10) == 0
    for past in (11, "2.2ep"):
        with pytest.raises(
            ValueError,
            match=(
                r"duration is .* \(11 steps\): past the end of the run of 10 steps; give at most 10"
            ),
        ):
            duration_to_steps(past, 10, 5)
    assert duration_to_steps("2.1ep", 10, 5) == 10  # 10.5 steps, rounded down
