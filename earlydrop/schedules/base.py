"""`Schedule`: the base class of all schedules, small immutable values."""

from __future__ import annotations

import html
import numbers
import operator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, SupportsIndex

from earlydrop.schedules.curve import curve_svg
from earlydrop.schedules.durations import (
    Duration,
    check_duration,
    check_total_steps,
    duration_to_steps,
)


def check_rate(rate: object, what: str = "rate") -> float:
    """Check a drop rate and return it as a float.

    Args:
        rate: The value to check.
        what: Name of the value, for the error.

    Returns:
        The rate, in [0, 1).

    Raises:
        ValueError: It is not a number in [0, 1).
    """
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise ValueError(
            f"{what} is {rate!r}: expected a number in [0, 1), "
            "the probability that a unit or path is dropped"
        )
    value = float(rate)
    if not 0.0 <= value < 1.0:  # False for NaN too
        raise ValueError(
            f"{what} is {rate!r}: expected a drop probability in [0, 1), 0 for no dropout"
        )
    return value


def check_step(step: SupportsIndex) -> int:
    """Return an optimizer step as an int. Raise ValueError if it is not whole, or negative."""
    try:
        index = operator.index(step)
    except TypeError:
        raise ValueError(
            f"step is {step!r}: expected a whole optimizer step, counted from 0"
        ) from None
    if index < 0:
        raise ValueError(f"step is {step!r}: expected 0 or more; steps are counted from 0")
    return index


@dataclass(frozen=True)
class Schedule:
    """A drop rate for each optimizer step.

    A schedule is an immutable value without state. It can be called (``schedule(step) -> rate``),
    compared, printed, resolved (`resolve`) and written into a config (`to_config`). Make one with
    `none`, `constant`, `early`, `late`, `piecewise` or another function of `earlydrop.schedules`.
    """

    name: ClassVar[str]

    def __call__(self, step: SupportsIndex) -> float:
        """The drop rate of optimizer step ``step``, in [0, 1).

        Args:
            step: Optimizer step, from 0. The last value holds past the end of the schedule.

        Returns:
            The drop rate.

        Raises:
            ValueError: The step is negative or not whole, or the schedule is not resolved.
        """
        index = check_step(step)
        if not self.resolved:
            raise ValueError(
                f"{self!r} depends on the length of the run: call "
                "schedule.resolve(total_steps, steps_per_epoch) first and use what it returns"
            )
        return self._rate(index)

    def _rate(self, step: int) -> float:
        name = type(self).__name__
        raise TypeError(
            f"{name} is not a schedule by itself: use earlydrop.early(...) or another function of "
            "earlydrop.schedules"
        )

    @property
    def resolved(self) -> bool:
        """Whether the schedule can be called, without the length of the run."""
        return True

    @property
    def peak(self) -> float:
        """The largest rate in the arguments of the schedule. No rate of it is larger."""
        return 0.0

    def resolve(self, total_steps: int, steps_per_epoch: int | None = None) -> Schedule:
        """The same schedule with every duration in steps, rounded down.

        Args:
            total_steps: Length of the run, in optimizer steps.
            steps_per_epoch: Optimizer steps in one epoch, for durations in epochs.

        Returns:
            A schedule that can be called. Resolving again for the same run changes nothing.

        Raises:
            ValueError: ``total_steps`` is not a whole number of at least 1, a duration is past the
                end of the run, a duration is in epochs and ``steps_per_epoch`` is missing, or the
                schedule is a `piecewise` one that was resolved for another length.
        """
        check_total_steps(total_steps)
        return self

    def to_config(self) -> dict[str, Any]:
        """The schedule as plain values: ``name`` and its arguments.

        Returns:
            A dictionary, from which `from_config` makes an equal schedule.
        """
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{self.name}({arguments})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code><br>{curve_svg(self)}"


@dataclass(frozen=True, repr=False)
class WithRate(Schedule):
    """A schedule whose largest rate is an argument, ``rate``."""

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", check_rate(self.rate))

    @property
    def peak(self) -> float:
        return self.rate


@dataclass(frozen=True, repr=False)
class WithCutoff(WithRate):
    """A schedule with one rate and a cutoff, after which the rate is constant."""

    cutoff: Duration

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "cutoff", check_duration(self.cutoff, "cutoff"))

    @property
    def resolved(self) -> bool:
        return isinstance(self.cutoff, int)

    def resolve(self, total_steps: int, steps_per_epoch: int | None = None) -> Schedule:
        return replace(
            self, cutoff=duration_to_steps(self.cutoff, total_steps, steps_per_epoch, "cutoff")
        )
