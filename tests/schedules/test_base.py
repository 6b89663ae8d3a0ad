import copy
import pickle

import numpy as np
import pytest

import earlydrop
from earlydrop.schedules import from_config


@pytest.mark.parametrize(
    "schedule",
    [
        earlydrop.none(),
        earlydrop.constant(0.1),
        earlydrop.early(0.1, "20%", "cosine"),
        earlydrop.late(0.1, 50),
        earlydrop.piecewise("0,0@0.20,0.5@3ep,0"),
        earlydrop.piecewise("0,0@0.20,0.5@3ep,0").resolve(103, 20),
    ],
)
def test_schedules_are_values(schedule):
    for same in (
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        from_config(schedule.to_config()),
    ):
        assert same == schedule
        assert hash(same) == hash(schedule)
        assert repr(same) == repr(schedule)
        if schedule.resolved:
            assert same(40) == schedule(40)
    with pytest.raises(AttributeError):
        schedule.rate = 0.2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: earlydrop.constant(1.2), "rate is 1.2"),
        (lambda: earlydrop.early(-0.1, 5), "rate is -0.1"),
        (lambda: earlydrop.late(float("nan"), 5), "rate is nan"),
        (lambda: earlydrop.constant(1), r"rate is 1.*\[0, 1\)"),
        (lambda: earlydrop.constant("0.1"), "rate is '0.1'"),
        (lambda: earlydrop.early(0.1, -3), "cutoff is -3.*negative"),
        (lambda: earlydrop.early(0.1, "-3%"), "cutoff is '-3%'.*negative"),
        (lambda: earlydrop.early(0.1, 0.2), r"cutoff is 0.2.*'20%'"),
        (lambda: earlydrop.early(0.1, True), "cutoff is True"),
        (lambda: earlydrop.early(0.1, "20 epochs"), "cutoff is '20 epochs'.*'50ep'"),
        (lambda: earlydrop.early(0.1, "120%"), "past the end"),
        (
            lambda: earlydrop.early(0.1, 500).resolve(100),
            "cutoff is 500.*past the end of the run of 100 steps",
        ),
        (
            lambda: earlydrop.early(0.1, "9ep").resolve(100, 20),
            r"'9ep' \(180 steps\): past the end",
        ),
        (lambda: earlydrop.early(0.1, "9ep").resolve(100), "steps_per_epoch"),
        (lambda: earlydrop.early(0.1, "20%")(0), r"resolve\(total_steps"),
        (lambda: earlydrop.early(0.1, 10, "square"), "shape is 'square'.*'linear'"),
        (lambda: earlydrop.late(0.1, 10, "linear"), "shape is 'linear'.*'constant'"),
        (lambda: earlydrop.early(0.1, 10)(-1), "step is -1"),
        (lambda: earlydrop.early(0.1, 10)(2.5), "step is 2.5"),
        (lambda: earlydrop.early(0.1, 10).resolve(0), "total_steps is 0"),
        (lambda: earlydrop.piecewise("0.1"), "at least a first and a last"),
        (lambda: earlydrop.piecewise("0,x@0.5,0"), "'x' is not a rate"),
        (lambda: earlydrop.piecewise("0,0.1@y,0"), "position 'y'"),
        (lambda: earlydrop.piecewise("0,1.5@0.5,0"), "1.5"),
        (lambda: earlydrop.piecewise("0@0.1,0.5,0"), "no position"),
        (lambda: earlydrop.piecewise("0,0.1@0.7,0.2@0.5,0"), "must rise"),
        (lambda: earlydrop.piecewise(["0,0"]), "Kaldi"),
        (lambda: earlydrop.piecewise("0,0.1@9ep,0").resolve(100, 20), "must rise"),
        (lambda: from_config({"name": "erly"}), "'erly'.*early"),
        (
            lambda: from_config({"name": ["early"]}),
            r"schedule name is \['early'\]: expected one of",
        ),
        (lambda: from_config("early"), "schedule is 'early': expected a mapping"),
        (lambda: earlydrop.early(0.1, "2ep").resolve(100, 0), "steps_per_epoch is 0: expected the"),
        (lambda: earlydrop.early(0.1, "2ep").resolve(100, -5), "steps_per_epoch is -5: expected"),
        (lambda: earlydrop.early(0.1, "2ep").resolve(100, "5"), "steps_per_epoch is '5': expected"),
        (lambda: earlydrop.piecewise("0,0.1@9ep,0").resolve(100, 0), "steps_per_epoch is 0"),
        (lambda: from_config({"name": "early", "rate": 0.1}), "cutoff"),
    ],
)
def test_bad_input_names_the_value_and_the_remedy(make, says):
    with pytest.raises(ValueError, match=says):
        make()


EVERY = {  # each schedule with a duration in steps, and the largest rate that it reaches
    "none": (earlydrop.none(), 0.0),
    "constant": (earlydrop.constant(0.3), 0.3),
    "early": (earlydrop.early(0.4, 5), 0.4),
    "late": (earlydrop.late(0.2, 5), 0.2),
    "annealed": (earlydrop.annealed(0.1, 5), 0.1),
    "ramp": (earlydrop.ramp(0.6, 5), 0.6),
    "curriculum": (earlydrop.curriculum(0.5, 0.1), 0.5),
    "piecewise": (earlydrop.piecewise("0,0.7@0.5,0.1").resolve(10), 0.7),
}


@pytest.mark.parametrize("name", EVERY)
def test_peak_name_and_resolved(name):
    schedule, peak = EVERY[name]
    assert schedule.peak == peak
    assert schedule.resolved
    assert schedule.resolve(10) == schedule
    assert schedule.to_config()["name"] == schedule.name == name
    assert max(schedule(step) for step in range(200)) <= peak


@pytest.mark.parametrize(
    "schedule",
    [
        earlydrop.early(0.1, "20%"),
        earlydrop.late(0.1, "2ep"),
        earlydrop.curriculum(0.1),
        earlydrop.piecewise("0,0.1@0.5,0"),
    ],
    ids=lambda schedule: schedule.name,
)
def test_what_has_no_length_yet_is_not_called(schedule):
    assert not schedule.resolved
    with pytest.raises(
        ValueError, match=r"call schedule.resolve\(total_steps, steps_per_epoch\) first"
    ):
        schedule(0)
    assert schedule.resolve(100, 10).resolved


@pytest.mark.parametrize("length", [0, -5, True, 2.0, "9", None])
@pytest.mark.parametrize("name", EVERY)
def test_every_schedule_refuses_what_is_no_length(name, length):
    with pytest.raises(
        ValueError,
        match=r"total_steps is .*: expected the number of optimizer steps of the run, at least 1",
    ):
        EVERY[name][0].resolve(length)


def test_the_shortest_run_has_one_step():
    assert earlydrop.early(0.1, "100%").resolve(1).cutoff == 1
    assert earlydrop.early(0.1, "99%").resolve(np.int64(1)).cutoff == 0
    assert earlydrop.none().resolve(1) == earlydrop.none()


def test_the_base_class_is_no_schedule():
    with pytest.raises(TypeError, match="Schedule is not a schedule by itself"):
        earlydrop.schedules.Schedule()(0)


def test_steps_and_rates_of_other_libraries_are_numbers_too():
    schedule = earlydrop.early(np.float64(0.5), np.int32(5))
    assert (type(schedule.rate), type(schedule.cutoff)) == (float, int)
    assert schedule(np.int64(1)) == schedule(1) == 0.375
    assert earlydrop.constant(0).rate == 0.0
    with pytest.raises(ValueError, match="rate is True: expected a number"):
        earlydrop.constant(True)
    with pytest.raises(
        ValueError, match=r"rate is -1e-09: expected a drop probability in \[0, 1\)"
    ):
        earlydrop.constant(-1e-9)


def test_what_a_config_may_hold():
    assert earlydrop.early(0.1, "20%").to_config() == {
        "name": "early",
        "rate": 0.1,
        "cutoff": "20%",
        "shape": "linear",
    }
    assert earlydrop.none().to_config() == {"name": "none"}
    assert from_config(
        {"name": "early", "rate": 0.1, "cutoff": "20%", "total_steps": 100}
    ) == earlydrop.early(0.1, 20)
    with pytest.raises(ValueError, match=r"schedule 'constant' with .*: .*cutoff"):
        from_config({"name": "constant", "rate": 0.1, "cutoff": 5})
    with pytest.raises(ValueError, match="schedule name is None: expected one of none, constant"):
        from_config({})
    assert repr(earlydrop.late(0.1, "5ep")) == "late(rate=0.1, cutoff='5ep', shape='constant')"
