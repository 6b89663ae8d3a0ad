import json
from pathlib import Path

import pytest

from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.profile import Profiler
from earlydrop.training.run import run
from tests.training.states import assert_same, final_state


def steps_in(trace):
    return sum(
        event.get("name", "").startswith("Optimizer.step")
        for event in json.loads(trace.read_text())["traceEvents"]
    )


def test_the_steps_of_a_window_are_traced_and_nothing_changes(config):
    plain = run(config())
    before = final_state(plain["folder"])
    traced = run(config(trainer__profile="3:5", resume="never"))
    assert traced["folder"] == plain["folder"]
    assert steps_in(Path(traced["folder"]) / "trace-3-5.json") == 2
    assert_same(final_state(traced["folder"])["model"], before["model"])


def test_a_run_that_ends_in_its_window_writes_what_there_is(config):
    result = run(config(trainer__profile="16:99"))
    assert steps_in(Path(result["folder"]) / "trace-16-18.json") == 2


def test_a_run_that_stops_in_its_window_says_which_steps_it_traced(tmp_path, caplog):
    caplog.set_level("INFO", logger="earlydrop")
    list(Profiler("2:9", tmp_path).around(iter("abc"), 1))
    assert "wrote the trace of steps 2 to 3 to" in caplog.text
    resumed = Profiler("2:9", tmp_path).around(iter("abc"), 4)
    next(resumed)
    resumed.close()  # the loop over the steps was left in the first of them
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace-2-4.json", "trace-4-5.json"]


def test_a_window_that_has_passed_is_said(tmp_path, caplog):
    assert list(Profiler("2:4", tmp_path).around(iter("ab"), 4)) == ["a", "b"]
    assert "the run is at step 4, so steps 2 to 3 have passed" in caplog.text
    assert not list(tmp_path.iterdir())


def test_other_workers_than_the_first_trace_nothing(tmp_path):
    assert list(Profiler("0:4", None).around(iter("ab"), 0)) == ["a", "b"]


@pytest.mark.parametrize("window", ["10", "5:5", "7:3", "a:b", "1:2:3", "-1:2"])
def test_what_is_no_window_is_refused(config, window):
    with pytest.raises(
        ConfigError, match=r"trainer\.profile is '.*': expected two steps such as 10:20"
    ):
        make_plan(config(trainer__profile=window))


def test_a_window_behind_the_end_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"trainer\.profile is '18:20': the run ends after 18 steps"
    ):
        make_plan(config(trainer__profile="18:20"))
