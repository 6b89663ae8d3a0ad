"""The device of a run: which one, whether it computes the same bits twice, and what goes wrong on it in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""The sizes of cuBLAS's workspace with which its matrix products are the same twice, by NVIDIA's and torch's documentation."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it torch takes algorithms alone that give the same bits twice, on a GPU too, and refuses operations that have none.

    Raises:
        ConfigError: The environment has a cuBLAS workspace under which matrix products differ from run to run.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.get(_WORKSPACE)
    if workspace not in (None, *_WORKSPACES):
        raise ConfigError(
            f"trainer.deterministic is true, and {_WORKSPACE} is {workspace!r}: expected {' or '.join(_WORKSPACES)}; leave it out of the "
            "environment"
        )
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    os.environ[_WORKSPACE] = workspace or _WORKSPACES[0]  # read when the first matrix product asks for its workspace
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            del os.environ[_WORKSPACE]


def in_force() -> dict[str, object]:
    """What of determinism is asked of torch at present, for the record."""
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get(_WORKSPACE),
    }


def device_problem(error: Exception, config: Config) -> str | None:
    """An error of the device that a person can mend, in one line; None for any other error."""
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        trainer = config.trainer
        part = trainer.batch_size // trainer.accumulate
        return (
            f"the GPU has too little memory ({line}): raise trainer.accumulate, which is {trainer.accumulate} and so puts {part} images "
            f"through the model at once (the numbers change), lower evaluation.batch_size, which is {config.evaluation.batch_size}, or "
            "take a GPU with more memory"
        )
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error):
        operation = line.partition(" does not have")[0]
        return (
            f"trainer.deterministic is true, and {operation} has no implementation that gives the same bits twice: set "
            "trainer.deterministic=false, or change the model"
        )
    return None


_GPU_WORDS = ("gpu", "nvidia", "geforce")


def choose_device(name: str) -> torch.device:
    """The device that a configuration names; ``auto`` is the accelerator that torch finds, or the CPU.

    A GPU with a number becomes this process's present one, so that nothing that names no device lands on the first.

    Raises:
        ConfigError: It is not a device, or not on this machine.
    """
    wanted = (_accelerator() or "cpu") if name == "auto" else name
    if wanted == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.device_count() != 1:
        wanted = f"cuda:{os.environ['LOCAL_RANK']}"  # of the workers on a node each has its own; one GPU in sight is a worker's own
    try:
        device = torch.device(wanted)
    except RuntimeError:
        hint = "did you mean cuda? " if wanted.partition(":")[0].lower() in _GPU_WORDS else ""
        raise ConfigError(f"device={name} is not a device that torch knows; {hint}on this machine {_advice()}") from None
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        worker = f" for worker {device.index} of it" if device.index is not None and wanted != name and _accelerator() else ""
        raise ConfigError(f"device={name} is not available on this machine{worker}; {_advice()}") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def device_of_job(name: str, job: int) -> str:
    """The device of one of several runs that go on side by side: the GPUs in sight in turn, where a GPU is asked for by no number."""
    kind = _accelerator() if name == "auto" else name
    if kind not in ("cuda", "xpu") or kind != _accelerator():
        return name
    return f"{kind}:{job % torch.accelerator.device_count()}"


def _accelerator() -> str | None:
    """The kind of accelerator that this machine has, as torch finds it."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None else None


def _advice() -> str:
    """What can be given instead, on this machine."""
    kind = _accelerator()
    if kind is None:
        return "use device=cpu or device=auto"
    count = torch.accelerator.device_count()
    there = f" (there is {kind}:0)" if count == 1 else f" (there are {kind}:0 to {kind}:{count - 1})"
    return f"use device=cpu, device={kind}{there} or device=auto"
