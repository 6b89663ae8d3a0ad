import copy
import pickle

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
    for same in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), from_config(schedule.to_config())):
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
        (lambda: earlydrop.early(0.1, 500).resolve(100), "cutoff is 500.*past the end of the run of 100 steps"),
        (lambda: earlydrop.early(0.1, "9ep").resolve(100, 20), r"'9ep' \(180 steps\): past the end"),
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
        (lambda: from_config({"name": "early", "rate": 0.1}), "cutoff"),
    ],
)
def test_bad_input_names_the_value_and_the_remedy(make, says):
    with pytest.raises(ValueError, match=says):
        make()
