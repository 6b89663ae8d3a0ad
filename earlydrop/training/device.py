"""The device of a run: its choice, its arithmetic, and one-line messages for its errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from earlydrop.training.config import Config, TrainerConfig
from earlydrop.training.fields import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""Workspaces with which cuBLAS is deterministic, according to NVIDIA's documentation."""


@contextmanager
def deterministic(required: bool) -> Iterator[None]:
    """Context in which torch uses only deterministic algorithms, and refuses others.

    If ``required`` is false, the context changes nothing.

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
            f"{' or '.join(_WORKSPACES)}; set it to one of these, or unset it"
        )
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags = cudnn.deterministic, cudnn.benchmark
    # cuBLAS reads the variable at the first matrix product.
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
    """Context with the arithmetic of ``trainer.deterministic`` and ``trainer.precision``.

    On a GPU, tf32 is on in convolutions and matrix products if ``trainer.precision`` is ``tf32``,
    and off in both otherwise. Torch's default is tf32 in convolutions only.
    """
    with deterministic(options.deterministic):
        if device.type != "cuda":
            yield
            return
        flags, on, off = _tf32_flags()
        before = [getattr(place, name) for place, name in flags]
        for place, name in flags:
            setattr(place, name, on if options.precision == "tf32" else off)
        try:
            yield
        finally:
            for (place, name), value in zip(flags, before, strict=True):
                setattr(place, name, value)


def _tf32_flags() -> tuple[list[tuple[Any, str]], object, object]:
    """Torch's flags of tf32 as (object, attribute), and their values for on and off."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:  # this process has used torch's newer flags, which do not mix with these
        places = (matmul, cudnn.conv, cudnn.rnn)
        return [(place, "fp32_precision") for place in places], "tf32", "ieee"
    return [(matmul, "allow_tf32"), (cudnn, "allow_tf32")], True, False


def refuse_precision(precision: str, device: torch.device) -> None:
    """Refuse ``trainer.precision=tf32`` on a device that does not support it."""
    if precision != "tf32":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"trainer.precision is 'tf32': {device.type} does not support it; give float32 or bf16"
        )
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"trainer.precision is 'tf32': {torch.cuda.get_device_name(device)} does not support "
            "it; expected an NVIDIA GPU from Ampere on; give float32"
        )


def determinism_settings() -> dict[str, object]:
    """Torch's present settings of determinism, for ``provenance.json``."""
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get(_WORKSPACE),
    }


def device_problem(error: Exception, config: Config) -> str | None:
    """Describe a device error that the user can fix, in one line; None for any other error."""
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        trainer = config.trainer
        part = trainer.batch_size // trainer.accumulate
        return (
            f"the GPU has too little memory ({line}): raise trainer.accumulate (now "
            f"{trainer.accumulate}: {part} images go through the model at once; another value "
            "changes the numbers), lower evaluation.batch_size (now "
            f"{config.evaluation.batch_size}), or use a GPU with more memory"
        )
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(
        error
    ):
        operation = line.partition(" does not have")[0]
        return (
            f"trainer.deterministic is true, and {operation} has no deterministic implementation: "
            "set trainer.deterministic=false, or change the model"
        )
    return None


_GPU_WORDS = ("gpu", "nvidia", "geforce", "cuda")


def choose_device(name: str) -> torch.device:
    """Choose the device that a configuration names; ``auto`` is the accelerator, or the CPU.

    A GPU with a number becomes the current device of this process, so that ``cuda`` without a
    number means this GPU too.

    Raises:
        ConfigError: The name is not a device, or the device is not on this machine.
    """
    device_name = (_accelerator() or "cpu") if name == "auto" else name
    of_worker = False
    if device_name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.device_count() != 1:
        # Each worker on a node has its own GPU. If only one is visible, it is this worker's.
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
        of_worker = _accelerator() is not None
    try:
        device = torch.device(device_name)
    except RuntimeError:
        is_gpu = device_name.partition(":")[0].lower() in _GPU_WORDS
        hint = " (did you mean cuda?)" if is_gpu else ""
        raise ConfigError(
            f"device={name} is not a device that torch knows{hint}; on this machine {_advice()}"
        ) from None
    problem = _problem(device)
    if problem is not None:
        worker = f" (worker {device.index})" if of_worker else ""
        raise ConfigError(
            f"device={name} is not available on this machine{worker}{problem}; {_advice()}"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _problem(device: torch.device) -> str | None:
    """Why this process cannot compute on a device, in brackets or empty; None if it can.

    ``meta`` holds no numbers. For a device that is present, the reason is torch's.
    """
    if device.type == "meta":
        return ""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        line = (str(error).splitlines() or [""])[0]
        is_accelerator = device.type == _accelerator()
        is_present = is_accelerator and (device.index or 0) < torch.accelerator.device_count()
        return f" ({line})" if line and is_present else ""
    return None


def device_of_job(name: str, job: int) -> str:
    """The device of one of several runs in parallel.

    If the configuration gives no number, the runs take the GPUs in turn.
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
