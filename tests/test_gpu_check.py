"""The checks of scripts/gpu_check.py: how they run, and the checks themselves.

Those that need a GPU are marked ``gpu``.
"""

import json
import os
import runpy
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "gpu_check.py"))


def call(script, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["gpu_check.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    return ended.value.code


def test_the_checks_that_need_no_gpu_pass_and_the_others_are_skipped(
    script, monkeypatch, tmp_path, capfd
):
    out = tmp_path / "out.json"
    assert (
        call(
            script,
            monkeypatch,
            "--device",
            "cpu",
            "--only",
            "environment,average,waits",
            "--out",
            out,
        )
        == 0
    )
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["PASS", "environment"],
        ["PASS", "average"],
        ["SKIP", "waits"],
    ]
    found = json.loads(out.read_text())["checks"]
    assert [each["outcome"] for each in found] == ["PASS", "PASS", "SKIP"]
    assert found[2]["found"] == "needs a CUDA device"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masks", "twice", "resume"])
def test_a_longer_check_that_needs_no_gpu(script, name, tmp_path):
    assert script["outcome"](name, torch.device("cpu"), tmp_path)[0] == "PASS"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        "environment",
        "masks",
        "twice",
        "resume",
        "average",
        "graphs",
        "against_cpu",
        "waits",
        "attention",
        "same_attention",
        "trainer",
        "copies",
        "probe_memory",
        "workers",
    ],
)
def test_on_a_gpu(script, name):
    limit = script["CHECKS"][name].limit
    state, words, _ = script["limited"](name, "cuda", limit)
    if state == "SKIP":
        pytest.skip(words)
    assert state == "PASS", words


def replaced(script, monkeypatch, run):
    check = type(script["CHECKS"]["average"])
    monkeypatch.setitem(script["CHECKS"], "average", check(run))


def hangs(device, folder):
    time.sleep(60)


def dies(device, folder):
    os._exit(7)


def breaks(device, folder):
    raise ZeroDivisionError("by nothing\nmore")


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (hangs, "no answer within 0.5 s"),
        (dies, "its process ended with 7"),
        (breaks, "ZeroDivisionError: by nothing"),
    ],
)
def test_a_check_that_hangs_dies_or_breaks_has_failed(
    script, monkeypatch, tmp_path, capfd, run, says
):
    replaced(script, monkeypatch, run)
    arguments = [
        "--device",
        "cpu",
        "--only",
        "average",
        "--out",
        tmp_path / "x.json",
        "--limit",
        "0.5" if run is hangs else "30",
    ]
    assert call(script, monkeypatch, *arguments) == 1
    said = capfd.readouterr().out
    assert said.startswith("FAIL average")
    assert said.rstrip().endswith(says)


def test_what_is_no_check_and_a_gpu_that_is_not_there_are_refused(script, monkeypatch, capsys):
    assert call(script, monkeypatch, "--only", "mask") == 2
    assert "--only has mask: expected some of environment, masks" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(script, monkeypatch) == 2
    assert "torch finds no GPU: give --device cpu" in capsys.readouterr().err


def test_a_mask_with_the_wrong_share_is_found(script, monkeypatch):
    """A check of masks that cannot fail says nothing: here a layer drops at half of its rate."""
    from gpu_check import numbers
    from gpu_check.base import FailedError
    from torch import nn

    layers = numbers.LAYERS | {"Dropout": (lambda rate: nn.Dropout(rate / 2), (256, 256), True)}
    monkeypatch.setattr(numbers, "LAYERS", layers)

    class Constant:
        def __init__(self, *arguments, **more):
            pass

    monkeypatch.setattr(numbers.earlydrop, "DropoutScheduler", Constant)
    monkeypatch.setattr(numbers, "compiler_problem", lambda device: "none")
    with pytest.raises(
        FailedError,
        match=r"Dropout, native masks, eager: 0\.12\d* of the values are dropped, expected 0\.25",
    ):
        numbers.check_masks(torch.device("cpu"), None)
