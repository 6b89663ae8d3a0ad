"""Extreme values in the place of random numbers, to learn whether a result depends on them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from earlydrop.exact import home

_FAR = 8.0  # standard deviations


def extremes(name: str, values: Mapping[str, Any], drawn: Any) -> list[Tensor] | None:
    """What a random operation could have drawn: all smallest, all largest, rising, falling.

    Args:
        name: The operation, of torch's dispatcher.
        values: Its arguments by name.
        drawn: What it drew.

    Returns:
        Tensors like ``drawn``; None for operations whose result is not followed.
    """
    if not isinstance(drawn, Tensor) or values.get("out") is not None or drawn.is_complex() or drawn.is_meta:
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
    rising = (low + slope * (float(high) - float(low))).clamp(float(low), float(high)).to(drawn.dtype).reshape(drawn.shape)
    if not drawn.is_floating_point():
        rising = torch.where(slope.reshape(drawn.shape) < 1, rising, ends[1].to(slope.device))
    rising = rising.to(drawn.device)
    return [*ends, rising, rising.flatten().flip(0).reshape(drawn.shape)]


def _span(name: str, values: Mapping[str, Any], drawn: Tensor) -> tuple[float, float] | None:
    """The smallest and the largest number that an operation draws."""
    if name in ("rand", "rand_like", "uniform_"):
        low, high = float(values.get("from", 0.0)), float(values.get("to", 1.0))
        # Not low itself, which is drawn once in 2 ** 24 times: "draw > rate" at rate 0 is no dropout.
        return low + (high - low) * 2.0**-24, high - (high - low) * torch.finfo(drawn.dtype).eps
    if name in ("randn", "randn_like", "normal_", "normal"):
        mean, deviation = values.get("mean", 0.0), values.get("std", 1.0)
        if isinstance(mean, Tensor) or isinstance(deviation, Tensor):
            return None
        return mean - _FAR * deviation, mean + _FAR * deviation
    if name in ("randint", "randint_like"):
        return values.get("low", 0), values["high"] - 1
    if name == "random_" and not drawn.is_floating_point():
        info = torch.iinfo(drawn.dtype)
        first, end = values.get("from"), values.get("to")
        return (0 if first is None else first), (info.max if end is None else end - 1)
    return None


class Drawn(float):
    """A number drawn by Python or NumPy that says when something depends on it.

    Comparing it with a number outside of its span does not.
    """

    _low: float
    _high: float
    _used: Callable[[], None]

    @classmethod
    def of(cls, value: float, low: float, high: float, used: Callable[[], None]) -> Drawn:
        drawn = cls(value)
        drawn._low, drawn._high, drawn._used = low, high, used
        return drawn


def _comparing(compare: Callable[[float, Any], bool]) -> Callable[[Drawn, Any], Any]:
    def method(self: Drawn, other: Any) -> Any:
        if not (isinstance(other, (int, float)) and (other <= self._low or other >= self._high)):
            self._used()
        return compare(float.__add__(self, 0.0), other)

    return method


def _computing(name: str) -> Callable[..., Any]:
    def method(self: Drawn, *others: Any) -> Any:
        self._used()
        return getattr(float, name)(self, *others)

    return method


def _rounding(name: str) -> Callable[..., Any]:
    def method(self: Drawn, *others: Any) -> Any:
        round_ = getattr(float, name)
        if round_(self._low, *others) != round_(math.nextafter(self._high, self._low), *others):
            self._used()
        return round_(self, *others)

    return method


for _name in ("int", "trunc", "floor", "ceil", "round"):
    setattr(Drawn, f"__{_name}__", _rounding(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Drawn, f"__{_name}__", _comparing(getattr(operator, _name)))
for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow",
              "neg", "abs", "float", "bool"):  # fmt: skip
    setattr(Drawn, f"__{_name}__", _computing(f"__{_name}__"))
