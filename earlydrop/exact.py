"""Exact sums, in float64: on the device of the numbers, or on the host where the device lacks it.

This package takes small differences of large sums, which need more than float32. Apple's GPUs
(``mps``) and some others have no float64. Numbers of such a device are moved to the host and summed
there in the same way. Only this file tells which devices have float64.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

HOST = torch.device("cpu")
_WITH_FLOAT64 = ("cpu", "cuda", "meta")
_WITHOUT_FLOAT64 = ("mps",)


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device has float64. An unknown kind of device is tried once.

    >>> has_float64(torch.device("cpu")), has_float64(torch.device("mps"))
    (True, False)
    """
    if device.type in _WITH_FLOAT64 or device.type in _WITHOUT_FLOAT64:
        return device.type in _WITH_FLOAT64
    try:
        return float(torch.ones((), dtype=torch.float64, device=device) / 3) == 1 / 3
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def home(device: torch.device) -> torch.device:
    """The device of the sums: the device itself, or the host for a device without float64."""
    return device if has_float64(device) else HOST


def brought_home(values: Tensor) -> Tensor:
    """A tensor on the device of its sums (`home`): itself, on a device with float64."""
    return values.to(home(values.device))


def exact(values: Tensor) -> Tensor:
    """A tensor in float64, on the device of its sums (`home`)."""
    return brought_home(values).double()


def exact_norm(values: Tensor) -> Tensor:
    """The Euclidean norm of a tensor, 0-d in float64, on the device of its sums (`home`)."""
    norm: Tensor = torch.linalg.vector_norm(brought_home(values), dtype=torch.float64)
    return norm
