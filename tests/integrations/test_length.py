import pytest

from earlydrop import constant, curriculum, early, late, piecewise
from earlydrop.integrations.length import RunLength, in_steps

KNOWN = RunLength(40, 10)
ENDLESS = RunLength(None, 10, no_total="nobody says when it ends")
STREAM = RunLength(40, None, no_epoch="the loader has no length")
NOTHING = RunLength(
    None, None, no_total="nobody says when it ends", no_epoch="the loader has no length"
)


def test_durations_become_steps():
    assert in_steps(early(0.5, "1.5ep"), KNOWN) == early(0.5, 15)
    assert in_steps(late(0.5, "50%"), KNOWN) == late(0.5, 20)
    assert in_steps(piecewise("0,0.5@1ep,0"), KNOWN) == piecewise("0,0.5@1ep,0").resolve(40, 10)
    with pytest.raises(ValueError, match=r"cutoff is 41.*past the end of the run of 40 steps"):
        in_steps(early(0.5, 41), KNOWN)


def test_what_needs_no_length_works_without_one():
    for schedule in (early(0.5, 1_000), constant(0.5), curriculum(0.5, gamma=0.1)):
        assert in_steps(schedule, NOTHING) == schedule
    assert in_steps(early(0.5, "2ep"), ENDLESS) == early(0.5, 20)
    assert in_steps(late(0.5, "50%"), STREAM) == late(0.5, 20)


@pytest.mark.parametrize("length", [ENDLESS, NOTHING])
@pytest.mark.parametrize(
    "schedule", [early(0.5, "20%"), curriculum(0.5), piecewise("0,0.5@0.2,0")], ids=str
)
def test_what_depends_on_an_unknown_length_is_refused(schedule, length):
    with pytest.raises(
        ValueError, match="depends on the length of the run, but nobody says when it ends"
    ):
        in_steps(schedule, length)


@pytest.mark.parametrize("length", [STREAM, NOTHING])
@pytest.mark.parametrize("schedule", [early(0.5, "1ep"), piecewise("0,0.5@1ep,0")], ids=str)
def test_epochs_of_an_unknown_length_are_refused(schedule, length):
    with pytest.raises(
        ValueError, match="has a duration in epochs, but the loader has no length: give it in steps"
    ):
        in_steps(schedule, length)


def test_epochs_of_an_unknown_length_are_named_even_past_the_end_of_the_run():
    short = RunLength(10, None, no_epoch="the loader has no length")
    with pytest.raises(ValueError, match="in epochs, but the loader has no length: give it in st"):
        in_steps(early(0.1, "50ep"), short)


def test_a_resolved_schedule_needs_no_length():
    """A piecewise schedule cannot be given in steps, so it is resolved beforehand."""
    points = piecewise("0,0.5@0.5,0").resolve(1_000)
    assert in_steps(points, NOTHING) is points
    with pytest.raises(ValueError, match="was resolved for 1000 steps, not for 40"):
        in_steps(points, KNOWN)


def test_a_function_is_taken_as_it_is_and_anything_else_refused():
    def rate(step):
        return 0.5

    assert in_steps(rate, NOTHING) is rate
    with pytest.raises(ValueError, match=r"schedule is 'early': expected a schedule such as"):
        in_steps("early", KNOWN)
