"""The lines of ``timing.jsonl``."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch

from earlydrop.training import pace as pace_module
from earlydrop.training.pace import Pace
from earlydrop.training.plan import make_plan
from earlydrop.training.record.folder import read_timing
from earlydrop.training.run import run


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told to."""
    now = [100.0]
    monkeypatch.setattr(pace_module.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_the_share_of_waiting_for_data_is_that_of_the_interval(clock):
    def batches():
        for i in range(4):
            clock(3.0)  # the data
            yield i

    pace = Pace(torch.device("cpu"), step=10, batch_size=8)
    timed = pace.waiting(batches())
    for _ in range(2):
        next(timed)
        clock(1.0)  # the step
    line = pace.record(12)
    assert line == {
        "step": 12,
        "images_per_second": 2 * 8 / 8.0,
        "seconds": 8.0,
        "data_wait": 6 / 8,
    }
    clock(50.0)  # an evaluation
    pace.restart(12)
    next(timed)
    clock(9.0)
    line = pace.record(13)
    assert line["data_wait"] == 3 / 12
    assert line["images_per_second"] == 8 / 12
    assert line["seconds"] == 70.0


def test_waiting_gives_every_item_and_ends():
    pace = Pace(torch.device("cpu"), step=0, batch_size=1)
    assert list(pace.waiting(iter(range(5)))) == list(range(5))


def test_on_a_gpu_there_are_utilisation_and_memory(clock, monkeypatch):
    cuda = torch.device("cuda", 1)
    resets = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda device: 7 * 10**9 if device == cuda else 0
    )
    pace = Pace(cuda, step=0, batch_size=100, utilisation_per_image=0.002)
    clock(2.0)
    line = pace.record(4)  # 200 images/s
    assert line["mfu"] == pytest.approx(0.4)
    assert line["peak_memory"] == 7 * 10**9
    assert resets == [cuda]


def test_a_run_on_a_cpu_times_its_data_and_counts_no_operations(config, monkeypatch):
    monkeypatch.setattr(
        "earlydrop.training.flops.training_flops", lambda *_: pytest.fail("it costs time")
    )
    source = type(make_plan(config()).source)
    original = source.batches

    def slow(self, keyed, split, augmented):
        training = augmented is not None and augmented[1] == "augment"
        for batch in original(self, keyed, split, augmented):
            time.sleep(0.02 if training else 0.0)
            yield batch

    monkeypatch.setattr(source, "batches", slow)
    folder = Path(run(config(probe__at=[], trainer__precision="bf16"))["folder"])
    lines = read_timing(folder / "timing.jsonl")
    assert lines
    for line in lines:
        assert line.keys() == {"step", "images_per_second", "seconds", "data_wait"}
        assert 0 < line["data_wait"] <= 1
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    first = json.loads((folder / "timing.jsonl").read_text().splitlines()[0])
    waited = first["data_wait"] * first["seconds"]
    assert waited >= 0.02 * first["step"]


def test_intervals_leave_out_what_is_recorded_between_them(clock):
    pace = Pace(torch.device("cpu"), step=0, batch_size=2)
    rates = []
    for step in itertools.islice(itertools.count(1), 3):
        clock(1.0)
        rates.append(pace.record(step)["images_per_second"])
        clock(5.0)
        pace.restart(step)
    assert rates == [2.0, 2.0, 2.0]
