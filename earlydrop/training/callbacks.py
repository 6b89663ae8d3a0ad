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
        if callable(callbacks) or not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks is {callbacks!r}: expected a list, such as [function]")
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not callable(callback):
                kind = type(callback).__name__
                expected = "functions of (step, metrics)"
                raise ConfigError(f"callbacks holds a {kind}: expected {expected}")
        self.stop_requested = False

    def __call__(self, step: int, metrics: dict[str, float]) -> bool:
        for callback in self.callbacks:
            answer = callback(step, metrics)
            if isinstance(answer, (bool, np.bool_)) and answer:
                self.stop_requested = True
        return self.stop_requested
