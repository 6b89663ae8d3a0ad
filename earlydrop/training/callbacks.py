"""The callbacks of `earlydrop.experiment.train`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from earlydrop.training.fields import ConfigError

Callback = Callable[[int, dict[str, float]], object]
"""A function of the step and the metrics measured after it; one that returns True ends the run."""


class Callbacks:
    """Calls functions after each logged step, and notes whether one asked to stop.

    Args:
        callbacks: The functions.

    Raises:
        ConfigError: One is no function, or a function was given in place of a list.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        if callable(callbacks):
            raise ConfigError("callbacks is a function: expected a list, such as [function]")
        if not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks is {callbacks!r}: expected a list, such as [function]")
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not callable(callback):
                kind = type(callback).__name__
                expected = "functions of (step, metrics)"
                raise ConfigError(f"callbacks holds a {kind}: expected {expected}")
        self.stop_requested = False

    def __call__(self, step: int, metrics: dict[str, float]) -> bool:
        answers = [callback(step, metrics) for callback in self.callbacks]
        self.stop_requested = self.stop_requested or any(_is_true(answer) for answer in answers)
        return self.stop_requested


def _is_true(answer: object) -> bool:
    """Whether a callback asks to stop: True, of Python or of NumPy."""
    return isinstance(answer, (bool, np.bool_)) and bool(answer)
