"""Schedules: which drop rate at which optimizer step.

A schedule is a small immutable value. It can be called (``schedule(step) -> rate``), compared, printed and written into
a config (`Schedule.to_config`, `from_config`). It keeps no state.

Durations (cutoffs and the positions of points) are whole steps (``1_000``), epochs (``"50ep"``) or a share of the whole
run (``"20%"``). `Schedule.resolve` turns them into steps, rounding down, once the length of the run is known.

Terms and arithmetic follow Liu et al., "Dropout Reduces Underfitting", ICML 2023 (arXiv:2303.01500): *standard*, *early*
and *late* dropout, with a *cutoff*. ``step`` counts optimizer steps from 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from earlydrop.classic_schedules import annealed as annealed
from earlydrop.classic_schedules import curriculum as curriculum
from earlydrop.classic_schedules import ramp as ramp
from earlydrop.durations import Duration, check_total_steps
from earlydrop.points import check_rate, exact_position, parse_points
from earlydrop.schedule_base import Schedule as Schedule
from earlydrop.schedule_base import WithCutoff


@dataclass(frozen=True, repr=False)
class _None(Schedule):
    name: ClassVar[str] = "none"

    def _rate(self, step: int) -> float:
        return 0.0


@dataclass(frozen=True, repr=False)
class _Constant(Schedule):
    name: ClassVar[str] = "constant"
    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", check_rate(self.rate))

    def _rate(self, step: int) -> float:
        return self.rate

    @property
    def peak(self) -> float:
        return self.rate


@dataclass(frozen=True, repr=False)
class _Shaped(WithCutoff):
    """A schedule that changes at a cutoff, in one of several shapes."""

    shapes: ClassVar[tuple[str, ...]]
    shape: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in self.shapes:
            raise ValueError(f"shape is {self.shape!r}: {self.name} takes {' or '.join(map(repr, self.shapes))}")


@dataclass(frozen=True, repr=False)
class _Early(_Shaped):
    name: ClassVar[str] = "early"
    shapes: ClassVar[tuple[str, ...]] = ("linear", "constant", "cosine")

    def _rate(self, step: int) -> float:
        cutoff = int(self.cutoff)
        if step >= cutoff:
            return 0.0
        if self.shape == "constant" or cutoff == 1:
            return self.rate
        if step == cutoff - 1:
            return 0.0
        if self.shape == "cosine":
            return 0.5 * self.rate * (1.0 + math.cos(math.pi * step / (cutoff - 1)))
        return step * (-self.rate / (cutoff - 1)) + self.rate  # numpy.linspace's own order of operations


@dataclass(frozen=True, repr=False)
class _Late(_Shaped):
    name: ClassVar[str] = "late"
    shapes: ClassVar[tuple[str, ...]] = ("constant",)

    def _rate(self, step: int) -> float:
        return self.rate if step >= int(self.cutoff) else 0.0


@dataclass(frozen=True, repr=False)
class _Piecewise(Schedule):
    name: ClassVar[str] = "piecewise"
    points: str
    total_steps: int | None = None

    def __post_init__(self) -> None:
        pairs = parse_points(self.points)
        if not any(position.endswith("ep") for _, position in pairs):
            self._table(pairs, 1, None)  # the order can be checked before the length is known
        if self.total_steps is not None:
            object.__setattr__(self, "_resolved_table", self._table(pairs, self.total_steps, None))

    def _table(
        self, pairs: list[tuple[float, str]], total_steps: int, steps_per_epoch: int | None
    ) -> tuple[tuple[float, float], ...]:
        """(fraction of the run, rate) in rising order."""
        exact = [exact_position(position, total_steps, steps_per_epoch, self.points) for _, position in pairs]
        for before, after in itertools.pairwise(exact):
            if after < before or after > 1:
                raise ValueError(
                    f"points is {self.points!r}: positions must rise from 0 to 1 (the end of the run), "
                    f"but {float(after):g} comes after {float(before):g}"
                )
        return tuple((float(fraction), rate) for fraction, (rate, _) in zip(exact, pairs, strict=True))

    @property
    def resolved(self) -> bool:
        return self.total_steps is not None

    @property
    def peak(self) -> float:
        return max(rate for rate, _ in parse_points(self.points))

    def resolve(self, total_steps: int, steps_per_epoch: int | None = None) -> Schedule:
        total_steps = check_total_steps(total_steps)
        if self.total_steps is not None:
            if self.total_steps != total_steps:
                raise ValueError(f"{self!r} was resolved for {self.total_steps} steps, not for {total_steps}")
            return self
        pairs = parse_points(self.points)
        self._table(pairs, total_steps, steps_per_epoch)
        texts = []
        for rate, position in pairs[1:-1]:
            exact = exact_position(position, total_steps, steps_per_epoch, self.points)
            texts.append(f"{rate!r}@{exact if position.endswith('ep') else position}")
        points = ",".join([repr(pairs[0][0]), *texts, repr(pairs[-1][0])])
        return _Piecewise(points, total_steps)

    def _rate(self, step: int) -> float:
        table: tuple[tuple[float, float], ...] = self._resolved_table  # type: ignore[attr-defined]
        fraction = step / int(self.total_steps or 1)
        if fraction >= 1.0:
            return table[-1][1]
        last = max(i for i, (position, _) in enumerate(table) if position <= fraction)
        (start, low), (end, high) = table[last], table[last + 1]
        return (fraction - start) * (high - low) / (end - start) + low


def none() -> Schedule:
    """No dropout: rate(step) = 0.

    Returns:
        The schedule.

    >>> none()(0)
    0.0
    """
    return _None()


def constant(rate: float) -> Schedule:
    """Standard dropout: rate(step) = rate.

    Args:
        rate: Drop rate, in [0, 1).

    Returns:
        The schedule.

    Raises:
        ValueError: The rate is not in [0, 1).

    >>> schedule = constant(0.1)
    >>> schedule(0), schedule(1_000_000)
    (0.1, 0.1)
    """
    return _Constant(rate)


def early(rate: float, cutoff: Duration, shape: str = "linear") -> Schedule:
    """Early dropout (Liu et al. 2023, section 4): on before the cutoff, 0 from it on, for underfitting models.

    With c the cutoff in steps, for step < c:

    - ``linear``: rate · (1 − step / (c − 1)), numpy's ``linspace(rate, 0, c)``, both ends included: the last early step
      already has rate 0 (the released arithmetic);
    - ``constant``: rate;
    - ``cosine``: ½ rate · (1 + cos(π step / (c − 1))) (ours).

    A cutoff of one step is just ``rate``; a cutoff of 0 is no dropout.

    Args:
        rate: Drop rate at step 0, in [0, 1).
        cutoff: Duration of the early phase: steps, ``"50ep"`` or ``"20%"``.
        shape: ``"linear"``, ``"constant"`` or ``"cosine"``.

    Returns:
        The schedule.

    Raises:
        ValueError: A rate outside [0, 1), a malformed or negative cutoff, an unknown shape.

    >>> [early(0.5, cutoff=5)(step) for step in range(7)]
    [0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0]
    >>> [early(0.5, cutoff=2, shape="constant")(step) for step in range(4)]
    [0.5, 0.5, 0.0, 0.0]
    >>> early(0.1, "20%").resolve(total_steps=1_000)
    early(rate=0.1, cutoff=200, shape='linear')
    """
    return _Early(rate, cutoff, shape)


def late(rate: float, cutoff: Duration, shape: str = "constant") -> Schedule:
    """Late dropout (Liu et al. 2023, section 5): 0 before the cutoff, rate from it on, for overfitting models.

    Args:
        rate: Drop rate from the cutoff on, in [0, 1).
        cutoff: Duration of the phase without dropout: steps, ``"50ep"`` or ``"20%"``.
        shape: ``"constant"``.

    Returns:
        The schedule.

    Raises:
        ValueError: A rate outside [0, 1), a malformed or negative cutoff, an unknown shape.

    >>> [late(0.4, cutoff=2)(step) for step in range(4)]
    [0.0, 0.0, 0.4, 0.4]
    """
    return _Late(rate, cutoff, shape)


def piecewise(points: str) -> Schedule:
    """Piecewise linear over the fraction of the run, in the notation of Kaldi's ``--trainer.dropout-schedule``.

    Comma-separated rates, each with ``@`` and its position. The first stands at 0 and the last at 1, without a position; one
    in between without a position stands at 0.5, as in Kaldi. Two rates at one position make a jump: the second holds from there
    on. Positions are fractions (``0.2``), percentages (``20%``) or epochs (``50ep``). rate(step) is read at step / total_steps.

    Args:
        points: For example ``"0,0@0.20,0.5@0.50,0"``.

    Returns:
        The schedule, to be resolved before it is called.

    Raises:
        ValueError: Malformed points, a rate outside [0, 1), positions that do not rise.

    >>> schedule = piecewise("0,0@0.20,0.5@0.50,0").resolve(total_steps=20)
    >>> [round(schedule(step), 3) for step in (0, 4, 7, 10, 15, 20, 99)]
    [0.0, 0.0, 0.25, 0.5, 0.25, 0.0, 0.0]
    """
    return _Piecewise(points)


MAKERS: dict[str, Callable[..., Schedule]] = {
    "none": none,
    "constant": constant,
    "early": early,
    "late": late,
    "piecewise": piecewise,
    "annealed": annealed,
    "curriculum": curriculum,
    "ramp": ramp,
}
"""Every schedule by its name in a config."""


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Make a schedule from plain values, as `Schedule.to_config` writes them.

    Args:
        config: ``name`` and that schedule's arguments.

    Returns:
        The schedule.

    Raises:
        ValueError: Unknown name, or arguments that the schedule does not take.

    >>> from_config({"name": "early", "rate": 0.1, "cutoff": "20%", "shape": "linear"})
    early(rate=0.1, cutoff='20%', shape='linear')
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in MAKERS:
        raise ValueError(f"schedule name is {name!r}: expected one of {', '.join(MAKERS)}")
    total_steps = arguments.pop("total_steps", None) if name == "piecewise" else None
    try:
        schedule = MAKERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} with {arguments!r}: {error}") from None
    return schedule if total_steps is None else schedule.resolve(total_steps)
