"""The device of a run: its choice, its arithmetic, and its errors in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from earlydrop.training.config import Config, TrainerConfig
from earlydrop.training.fields import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""Sizes of cuBLAS's workspace that make its products repeatable, by NVIDIA's documentation."""


@contextmanager
def deterministic(required: bool) -> Iterator[None]:
    """Within it torch uses only algorithms that give the same bits twice, and refuses others.

    Raises:
        ConfigError: The environment has a cuBLAS workspace under which matrix products differ from
            run to run.
    """
    if not required:
        yield
        return
    workspace = os.environ.get(_WORKSPACE)
    if workspace not in (None, *_WORKSPACES):
        raise ConfigError(
            f"trainer.deterministic is true, and {_WORKSPACE} is {workspace!r}: expected "
            f"{' or '.join(_WORKSPACES)}; leave it out of the "
            "environment"
        )
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags = cudnn.deterministic, cudnn.benchmark
    # Read when the first matrix product asks for its workspace.
    os.environ[_WORKSPACE] = workspace or _WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            del os.environ[_WORKSPACE]


@contextmanager
def arithmetic(options: TrainerConfig, device: torch.device) -> Iterator[None]:
    """Within it a device computes as ``trainer.deterministic`` and ``trainer.precision`` say.

    Torch's own default on a GPU multiplies in tf32 in convolutions, and not in matrix products.
    """
    with deterministic(options.deterministic):
        if device.type != "cuda":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = options.precision == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def refuse_precision(precision: str, device: torch.device) -> None:
    """Refuse ``trainer.precision=tf32`` where nothing computes in it.

    Raises:
        ConfigError: With the choices that there are.
    """
    if precision != "tf32":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"trainer.precision is 'tf32': {device.type} does not compute in it; give float32 or "
            "bf16"
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"trainer.precision is 'tf32': {torch.cuda.get_device_name(device)} does not compute "
            "in it, which NVIDIA's GPUs do from Ampere "
            "on; give float32"
        )


def in_force() -> dict[str, object]:
    """Torch's present settings of determinism, for the record."""
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
            f"the GPU has too little memory ({line}): raise trainer.accumulate, which is "
            f"{trainer.accumulate} and so puts {part} images "
            "through the model at once (the numbers change), lower evaluation.batch_size, which "
            f"is {config.evaluation.batch_size}, or "
            "take a GPU with more memory"
        )
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(
        error
    ):
        operation = line.partition(" does not have")[0]
        return (
            f"trainer.deterministic is true, and {operation} has no implementation that gives the "
            "same bits twice: set "
            "trainer.deterministic=false, or change the model"
        )
    return None


_GPU_WORDS = ("gpu", "nvidia", "geforce")


def choose_device(name: str) -> torch.device:
    """Choose the device that a configuration names; ``auto`` is the accelerator, or the CPU.

    A GPU with a number becomes this process's present one, so that nothing that names no device
    lands on the first.

    Raises:
        ConfigError: It is not a device, or not on this machine.
    """
    device_name = (_accelerator() or "cpu") if name == "auto" else name
    if device_name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.device_count() != 1:
        # of the workers on a node each has its own; one GPU in sight is a worker's own
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(device_name)
    except RuntimeError:
        hint = "did you mean cuda? " if device_name.partition(":")[0].lower() in _GPU_WORDS else ""
        raise ConfigError(
            f"device={name} is not a device that torch knows; {hint}on this machine {_advice()}"
        ) from None
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        worker = (
            f" for worker {device.index} of it"
            if device.index is not None and device_name != name and _accelerator()
            else ""
        )
        raise ConfigError(
            f"device={name} is not available on this machine{worker}; {_advice()}"
        ) from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def device_of_job(name: str, job: int) -> str:
    """The device of one of several runs side by side.

    They take the GPUs in turn where the configuration gives no number.
    """
    kind = _accelerator() if name == "auto" else name
    if kind not in ("cuda", "xpu") or kind != _accelerator():
        return name
    return f"{kind}:{job % torch.accelerator.device_count()}"


def _accelerator() -> str | None:
    """The kind of accelerator that this machine has, as torch finds it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else None


def _advice() -> str:
    """Advice on the devices of this machine."""
    kind = _accelerator()
    if kind is None:
        return "use device=cpu or device=auto"
    count = torch.accelerator.device_count()
    there = (
        f" (there is {kind}:0)" if count == 1 else f" (there are {kind}:0 to {kind}:{count - 1})"
    )
    return f"use device=cpu, device={kind}{there} or device=auto"
