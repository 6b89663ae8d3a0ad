"""One look for each schedule in every figure."""

from earlydrop.analysis.styles import styles
from earlydrop.schedules import MAKERS


def test_a_schedule_looks_the_same_whatever_else_is_drawn():
    alone = styles(["early-0.1-20%"])["early-0.1-20%"]
    among = styles(["constant-0.1", "early-0.1-20%", "late-0.1-20%", "none"])
    assert among["early-0.1-20%"] == alone
    assert styles(["early-0.2-50%"])["early-0.2-50%"] == alone
    assert styles(["text: early-0.1-20%"])["text: early-0.1-20%"] == alone


def test_every_schedule_has_a_colour_and_a_marker_of_its_own():
    looks = styles(MAKERS).values()
    assert (
        len({look["color"] for look in looks})
        == len({look["marker"] for look in looks})
        == len(MAKERS)
    )


def test_no_two_arms_of_a_figure_look_alike():
    arms = [
        "none",
        *(f"early-{rate}-20%" for rate in (0.05, 0.1, 0.2, 0.3)),
        "waves-5",
        "waves-7",
        "waves-9",
        "steps-3",
        "early-0.1-20%-path",
    ]
    looks = [
        (look["color"], str(look["linestyle"]), look["marker"]) for look in styles(arms).values()
    ]
    assert len(set(looks)) == len(arms)
