"""Exact sums: in float64, on the device of the numbers where it has that type, else on the host.

Small differences of large sums need more than float32 everywhere in this package. Apple's GPUs (``mps``) and some others have no float64:
what is to be summed is brought to the host, and summed there in the same way. This is the one place that says which devices these are.
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
    """Whether a device has float64; a kind that is not known is tried once.

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
    """Where the sums of a device's numbers are carried: on the device itself, or on the host if it has no float64."""
    return device if has_float64(device) else HOST


def brought_home(values: Tensor) -> Tensor:
    """A tensor where its sums are carried: itself, on a device with float64."""
    return values.to(home(values.device))


def exact(values: Tensor) -> Tensor:
    """A tensor in float64, where its sums are carried."""
    return brought_home(values).double()


def exact_norm(values: Tensor) -> Tensor:
    """The Euclidean norm of a tensor, 0-d in float64, where its sums are carried."""
    norm: Tensor = torch.linalg.vector_norm(brought_home(values), dtype=torch.float64)
    return norm
