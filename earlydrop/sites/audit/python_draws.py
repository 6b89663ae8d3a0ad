"""The random draws of Python and NumPy: note them, and find out whether a result depends on them.

The text encoder of VITS (transformers) is an example. Its LayerDrop draws
``np.random.uniform(0, 1)`` at every layer, also at rate 0, and skips the layer if the number is
below the rate. torch's dispatcher does not see this draw. `noted` makes the functions of a library
note their draws. `Drawn` is a drawn float that reports when a result may depend on it. The result
of a comparison with rate 0 does not depend on it.
"""

from __future__ import annotations

import functools
import math
import operator
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Functions of random and numpy.random that do not draw.
_DRAW_NOTHING = ("seed", "getstate", "setstate", "get_state", "set_state")


class Drawn(float):
    """A drawn number that reports when a result may depend on it.

    A comparison with a number outside of its span does not depend on it. Arithmetic does, and so
    does a torch function. A function of C outside of torch, such as ``math.sqrt``, reads the number
    without a report.
    """

    _low: float
    _high: float
    _used: Callable[[], None]

    @classmethod
    def of(cls, value: float, low: float, high: float, used: Callable[[], None]) -> Drawn:
        """Make a drawn number.

        It lies between ``low`` and ``high``, which is above all numbers that could have been drawn.
        ``used`` is called when a result may depend on it.
        """
        drawn = cls(value)
        drawn._low, drawn._high, drawn._used = low, high, used
        return drawn

    def report_use(self) -> None:
        """Report that a result may depend on the number."""
        self._used()


def _comparing(compare: Callable[[float, Any], bool]) -> Callable[[Drawn, Any], Any]:
    """A comparison that reports a use, unless the operand is outside of the span."""

    def method(self: Drawn, operand: Any) -> Any:
        number = isinstance(operand, (int, float))
        if not number or self._low < operand < self._high:
            self._used()
        return compare(float.__add__(self, 0.0), operand)

    return method


def _computing(name: str) -> Callable[..., Any]:
    """An operation of float that reports a use."""

    def method(self: Drawn, *operands: Any) -> Any:
        self._used()
        return getattr(float, name)(self, *operands)

    return method


def _rounding(name: str) -> Callable[..., Any]:
    """A rounding of float that reports a use, unless the whole span is rounded to one number."""

    def method(self: Drawn, *operands: Any) -> Any:
        round_ = getattr(float, name)
        last = math.nextafter(self._high, self._low)
        if round_(self._low, *operands) != round_(last, *operands):
            self._used()
        return round_(self, *operands)

    return method


_ARITHMETIC = "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow"


for _name in ("int", "trunc", "floor", "ceil", "round"):
    setattr(Drawn, f"__{_name}__", _rounding(f"__{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Drawn, f"__{_name}__", _comparing(getattr(operator, _name)))
for _name in (*_ARITHMETIC.split(), "neg", "abs", "float", "bool"):
    setattr(Drawn, f"__{_name}__", _computing(f"__{_name}__"))


def random_states() -> list[tuple[str, Callable[[], Any]]]:
    """Each source of random numbers, with a function that reads its state."""
    states: list[tuple[str, Callable[[], Any]]] = [
        ("torch", torch.get_rng_state),
        ("random", random.getstate),
    ]
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        states.append(("numpy.random", lambda: pickle.dumps(numpy_random.get_state())))
    return states


def _span(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float]:
    """The smallest and the largest number of ``uniform``, of ``random`` or of ``numpy.random``."""
    names = {"a": "low", "b": "high"}
    ends = {"low": 0.0, "high": 1.0}
    ends |= zip(ends, args, strict=False)
    ends |= {names.get(name, name): value for name, value in kwargs.items()}
    low, high = float(ends["low"]), float(ends["high"])
    return min(low, high), max(low, high)


@contextmanager
def noted(library: Any, generator: object, note: Callable[..., Any]) -> Iterator[None]:
    """Within it, the functions of ``random`` or ``numpy.random`` note their draws.

    ``generator`` is the global generator of the module, whose methods the functions are.
    ``note(operation, source=...)`` is called at each draw and returns the `Draw`.
    """
    real = {}
    for name in dir(library):
        function = getattr(library, name)
        if getattr(function, "__self__", None) is generator and name not in _DRAW_NOTHING:
            real[name] = function

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            drawn = note(f"{library.__name__}.{name}", source=library.__name__)
            drawn.used = True
            if type(value) is float and name in ("random", "uniform", "rand", "random_sample"):
                low, high = _span(args, kwargs) if name == "uniform" else (0.0, 1.0)
                used = functools.partial(setattr, drawn, "matters", True)
                return Drawn.of(value, low=low, high=high, used=used)
            drawn.matters = True
            return value

        return draw

    try:
        for name, function in real.items():
            setattr(library, name, watched(name, function))
        yield
    finally:
        for name, function in real.items():
            setattr(library, name, function)
