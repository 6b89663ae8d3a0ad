import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from earlydrop.training import device as devices
from earlydrop.training.device import (
    arithmetic,
    choose_device,
    deterministic,
    device_of_job,
    device_problem,
    refuse_precision,
)
from earlydrop.training.endings import TrainingFailed
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model, try_forward
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.states import assert_same, final_state

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def gpus(monkeypatch):
    """A machine that seems to have so many GPUs; which of them became the present one."""
    present = []

    def seem(count):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
        )
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: present.append(str(device)))

        def empty(size, device):
            if (device.index or 0) >= count:
                raise RuntimeError("invalid device ordinal")

        monkeypatch.setattr(devices.torch, "empty", empty)
        return present

    return seem


def test_jobs_side_by_side_take_the_gpus_in_turn(gpus):
    gpus(3)
    assert [device_of_job("cuda", job) for job in range(5)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:0",
        "cuda:1",
    ]
    assert device_of_job("auto", 4) == "cuda:1"
    assert [device_of_job(name, 4) for name in ("cpu", "cuda:2", "mps")] == ["cpu", "cuda:2", "mps"]


def test_without_a_gpu_jobs_keep_the_device_that_they_name(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert [device_of_job(name, 4) for name in ("auto", "cuda")] == ["auto", "cuda"]


def test_a_gpu_with_a_number_becomes_the_present_one(gpus, monkeypatch):
    present = gpus(4)
    assert choose_device("cuda:2") == torch.device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda:3")
    assert present == ["cuda:2", "cuda:3", "cuda:3"]


def test_the_one_gpu_in_sight_is_a_workers_own(gpus, monkeypatch):
    """As where SLURM gives each task the sight of its own."""
    gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda")


def test_more_workers_than_gpus_are_refused(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(
        ConfigError,
        match=r"device=cuda is not available on this machine \(worker 3\); .*cuda:0 to cuda:1",
    ):
        choose_device("cuda")


def test_a_gpu_that_is_there_and_busy_is_refused_with_torchs_reason(gpus, monkeypatch):
    gpus(1)

    def busy(*sizes, device):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy\nmore lines")

    monkeypatch.setattr(torch, "empty", busy)
    with pytest.raises(ConfigError, match=r"this machine \(CUDA error: .* is/are busy\); use"):
        choose_device("auto")


@pytest.mark.parametrize("flag", ["matmul.fp32_precision", "matmul.allow_tf32", ""])
def test_tf32_is_set_and_taken_back_whichever_flags_the_process_used(flag):
    """In another process: the two sorts of flags of torch do not mix."""
    setting = {
        "": "pass",
        "matmul.allow_tf32": "torch.backends.cuda.matmul.allow_tf32 = True",
        "matmul.fp32_precision": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    }[flag]
    code = f"""
import torch
from earlydrop.training.config import TrainerConfig
from earlydrop.training.device import arithmetic
{setting}
places = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
def present():  # "none" of a matrix product is "ieee"
    return [place.fp32_precision.replace("none", "ieee") for place in places]
before = present()
for precision, allowed in (("float32", ("ieee", "none")), ("tf32", ("tf32",))):
    with arithmetic(TrainerConfig(precision=precision), torch.device("cuda:0")):
        assert all(place.fp32_precision in allowed for place in places), precision
    assert present() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_determinism_is_asked_for_and_taken_back(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert devices.determinism_settings() == {
            "algorithms": True,
            "cudnn_deterministic": True,
            "cudnn_benchmark": False,
            "cublas_workspace": ":4096:8",
        }
    assert not torch.are_deterministic_algorithms_enabled()
    assert devices.determinism_settings()["cublas_workspace"] is None
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with (
        pytest.raises(
            ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0': expected :4096:8 or :16:8"
        ),
        deterministic(True),
    ):
        pass


def test_a_deterministic_run_says_so_and_trains_as_before_on_a_cpu(config, monkeypatch):
    asked = []
    original = Trainer.train_step

    def spy(self, parts):
        asked.append(torch.are_deterministic_algorithms_enabled())
        original(self, parts)

    monkeypatch.setattr(Trainer, "train_step", spy)
    plain, exact = run(config()), run(config(trainer__deterministic=True))
    assert asked == [False] * 18 + [True] * 18
    assert plain["folder"] != exact["folder"]
    assert_same(final_state(plain["folder"])["model"], final_state(exact["folder"])["model"])
    provenance = [
        json.loads((Path(each["folder"]) / "provenance.json").read_text())
        for each in (plain, exact)
    ]
    assert "deterministic" not in provenance[0]
    assert provenance[1]["deterministic"]["algorithms"] is True


def failing(error):
    def train_step(self, parts):
        raise error

    return train_step


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
UNDETERMINED = RuntimeError(
    "cumsum_cuda_kernel does not have a deterministic implementation, but you set ..."
)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OUT_OF_MEMORY,
            (
                r"too little memory \(CUDA out of memory. Tried to allocate 2.00 GiB\): "
                r"raise trainer.accumulate \(now 2: 16 i"
            ),
        ),
        (
            UNDETERMINED,
            "trainer.deterministic is true, and cumsum_cuda_kernel has no deterministic",
        ),
    ],
)
def test_what_a_device_cannot_do_ends_a_run_in_one_line(config, monkeypatch, error, says):
    monkeypatch.setattr(Trainer, "train_step", failing(error))
    settings = config(trainer__accumulate=2)
    with pytest.raises(TrainingFailed, match=says) as caught:
        run(settings)
    assert len(str(caught.value).splitlines()) == 1
    status = json.loads((make_plan(settings).folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "Traceback" not in status["reason"]


def test_a_model_that_the_gpu_cannot_hold_is_not_called_one_for_other_images(config):
    plan = make_plan(config())
    model, _ = scheduled_model(plan)

    def full(module, inputs):
        raise OUT_OF_MEMORY

    model.register_forward_pre_hook(full)
    with pytest.raises(ConfigError, match="the GPU has too little memory"):
        try_forward(model, plan)


def test_other_errors_are_left_alone(config):
    assert device_problem(RuntimeError("shapes do not fit"), config()) is None


@pytest.fixture
def tf32():
    """What torch does with float32 on a GPU, put back after the test."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in flags]
    yield lambda: [each.allow_tf32 for each in flags]
    for each, value in zip(flags, before, strict=True):
        each.allow_tf32 = value


@pytest.mark.parametrize(
    ("precision", "allowed"), [("float32", False), ("tf32", True), ("bf16", False)]
)
def test_on_a_gpu_float32_is_float32_in_convolutions_too(config, tf32, precision, allowed):
    before = tf32()
    with arithmetic(config(trainer__precision=precision).trainer, torch.device("cuda:0")):
        assert tf32() == [allowed, allowed]
    assert tf32() == before
    with arithmetic(config(trainer__precision=precision).trainer, torch.device("cpu")):
        assert tf32() == before


def test_tf32_is_refused_where_nothing_computes_in_it(config, monkeypatch):
    with pytest.raises(
        ConfigError,
        match=r"trainer\.precision is 'tf32': cpu does not support it; give float32 or bf16",
    ):
        run(config(trainer__precision="tf32"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(
        ConfigError, match=r"Tesla T4 does not support it; expected an NVIDIA GPU from Ampere on"
    ):
        refuse_precision("tf32", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    refuse_precision("tf32", torch.device("cuda"))
