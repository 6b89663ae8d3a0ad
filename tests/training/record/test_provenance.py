import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest
import torch

from earlydrop.training.record import provenance
from earlydrop.training.record.provenance import collect, driver_version, environment
from earlydrop.training.run import run

KERNEL = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  "
    "Release Build  (dvs-builder)  Tue Mar  5\n"
    "GCC version:  gcc version 13.2.0 (Ubuntu 13.2.0-23ubuntu4)\n"
)


def test_a_gpu_is_named_with_all_that_computes_there_and_without_the_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 21, 5))
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    monkeypatch.setattr(provenance, "driver_version", lambda: "550.54.15")
    assert environment(torch.device("cuda:1"), workers=2) == {
        "device": "cuda NVIDIA H100",
        "torch": str(torch.__version__),
        "cuda": "12.4",
        "cudnn": 90100,
        "nccl": "2.21.5",
        "driver": "550.54.15",
        "workers": 2,
    }


def test_a_cpu_is_named_as_before():
    found = environment(torch.device("cpu"))
    assert list(found) == ["device", "threads", "torch"]
    assert found["threads"] == torch.get_num_threads()


def test_the_driver_is_read_from_the_kernel_else_asked_for(monkeypatch, tmp_path):
    (tmp_path / "version").write_text(KERNEL)
    assert driver_version(tmp_path / "version") == "550.54.15"
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    )
    assert driver_version(tmp_path / "version") == "535.183.01"
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "560.1\n560.1\n")
    )
    assert driver_version(tmp_path / "none") == "560.1"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), subprocess.CalledProcessError(9, "nvidia-smi")]
)
def test_without_a_driver_there_is_none(monkeypatch, tmp_path, error):
    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert driver_version(tmp_path / "none") is None


def test_a_run_records_its_classes_sizes_and_epochs(config):
    folder = Path(run(config(trainer__epochs=1))["folder"])
    recorded = json.loads((folder / "provenance.json").read_text())["data"]
    assert recorded == {"classes": 10, "images": {"train": 300, "test": 2500}, "steps_per_epoch": 9}


def test_the_remains_of_a_broken_installation_are_left_out(monkeypatch, tmp_path):
    (tmp_path / "broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = collect(torch.device("cpu"), "fingerprint", "digest")["packages"]
    assert packages["torch"] == importlib.metadata.version("torch")
