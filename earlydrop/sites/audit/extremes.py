"""Extreme values in the place of random numbers, to find out whether a result depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from earlydrop.exact import home

_DEVIATIONS = 8.0  # standard deviations from the mean to an extreme value of a normal distribution


def extremes(name: str, values: Mapping[str, Any], drawn: Any) -> list[Tensor] | None:
    """Tensors within the range of a random operation: smallest, largest, rising, falling.

    For a permutation, four permutations. For a single number, its smallest and largest value.
    ``name`` is the operation in torch's dispatcher, ``values`` are its arguments by name. None for
    operations whose result is not followed.
    """
    if not isinstance(drawn, Tensor) or values.get("out") is not None:
        return None
    if drawn.is_complex() or drawn.is_meta:
        return None
    if name == "randperm":
        rising = torch.arange(drawn.numel(), dtype=drawn.dtype, device=drawn.device)
        return [rising, rising.flip(0), rising.roll(1), rising.roll(-1)]
    span = _span(name, values, drawn)
    if span is None:
        return None
    low, high = span
    ends = [torch.full_like(drawn, low), torch.full_like(drawn, high)]
    if drawn.numel() < 2:
        return ends
    slope = torch.linspace(0.0, 1.0, drawn.numel(), dtype=torch.float64, device=home(drawn.device))
    rising = low + slope * (float(high) - float(low))
    rising = rising.clamp(float(low), float(high)).to(drawn.dtype).reshape(drawn.shape)
    if not drawn.is_floating_point():
        rising = torch.where(slope.reshape(drawn.shape) < 1, rising, ends[1].to(slope.device))
    rising = rising.to(drawn.device)
    return [*ends, rising, rising.flatten().flip(0).reshape(drawn.shape)]


def _span(name: str, values: Mapping[str, Any], drawn: Tensor) -> tuple[float, float] | None:
    """The smallest and the largest number that an operation draws."""
    if name in ("rand", "rand_like", "uniform_"):
        low, high = float(values.get("from", 0.0)), float(values.get("to", 1.0))
        # A number just above low. In float32 low itself is drawn only once in 2 ** 24 times, and
        # with it "draw > rate" would seem to drop at rate 0.
        return low + (high - low) * 2.0**-24, high - (high - low) * torch.finfo(drawn.dtype).eps
    if name in ("randn", "randn_like", "normal_", "normal"):
        mean, deviation = values.get("mean", 0.0), values.get("std", 1.0)
        if isinstance(mean, Tensor) or isinstance(deviation, Tensor):
            return None
        return mean - _DEVIATIONS * deviation, mean + _DEVIATIONS * deviation
    if name in ("randint", "randint_like"):
        return values.get("low", 0), values["high"] - 1
    if name == "random_" and not drawn.is_floating_point():
        largest = 1 if drawn.dtype == torch.bool else torch.iinfo(drawn.dtype).max
        first, end = values.get("from"), values.get("to")
        return (0 if first is None else first), (largest if end is None else end - 1)
    return None
