"""The schedules of Liu et al. 2023: no dropout, standard, early and late dropout.

"Dropout Reduces Underfitting", ICML 2023 (arXiv:2303.01500).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from earlydrop.schedules.base import Schedule, WithCutoff, WithRate
from earlydrop.schedules.durations import Duration


@dataclass(frozen=True, repr=False)
class _None(Schedule):
    name: ClassVar[str] = "none"

    def _rate(self, step: int) -> float:
        return 0.0


@dataclass(frozen=True, repr=False)
class _Constant(WithRate):
    name: ClassVar[str] = "constant"

    def _rate(self, step: int) -> float:
        return self.rate


@dataclass(frozen=True, repr=False)
class _Shaped(WithCutoff):
    """A schedule with a cutoff, in one of several shapes."""

    shapes: ClassVar[tuple[str, ...]]
    shape: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in self.shapes:
            shapes = " or ".join(map(repr, self.shapes))
            raise ValueError(f"shape is {self.shape!r}: {self.name} takes {shapes}")


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
        # The order of operations of numpy.linspace.
        return step * (-self.rate / (cutoff - 1)) + self.rate


@dataclass(frozen=True, repr=False)
class _Late(_Shaped):
    name: ClassVar[str] = "late"
    shapes: ClassVar[tuple[str, ...]] = ("constant",)

    def _rate(self, step: int) -> float:
        return self.rate if step >= int(self.cutoff) else 0.0


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
    """Early dropout: dropout before the cutoff and none after it, for underfitting models.

    Liu et al. 2023, section 4. With c the cutoff in steps, the rate is 0 for step ≥ c. For step < c
    it is:

    - ``linear``: rate · (1 − step / (c − 1)), as numpy's ``linspace(rate, 0, c)`` with both ends,
      so the last early step already has rate 0 (as in the released code);
    - ``constant``: rate;
    - ``cosine``: ½ rate · (1 + cos(π step / (c − 1))) (ours).

    With a cutoff of 1, step 0 has ``rate``; with a cutoff of 0 there is no dropout.

    Args:
        rate: Drop rate at step 0, in [0, 1).
        cutoff: Duration of the early phase: steps, ``"50ep"`` or ``"20%"``.
        shape: ``"linear"``, ``"constant"`` or ``"cosine"``.

    Returns:
        The schedule.

    Raises:
        ValueError: The rate is outside [0, 1), the cutoff is malformed, negative or more than 100%,
            or the shape is unknown.

    >>> [early(0.5, cutoff=5)(step) for step in range(7)]
    [0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0]
    >>> [early(0.5, cutoff=2, shape="constant")(step) for step in range(4)]
    [0.5, 0.5, 0.0, 0.0]
    >>> early(0.1, "20%").resolve(total_steps=1_000)
    early(rate=0.1, cutoff=200, shape='linear')
    """
    return _Early(rate, cutoff, shape)


def late(rate: float, cutoff: Duration, shape: str = "constant") -> Schedule:
    """Late dropout: no dropout before the cutoff, ``rate`` from it on, for overfitting models.

    Liu et al. 2023, section 5.

    Args:
        rate: Drop rate from the cutoff on, in [0, 1).
        cutoff: Duration of the phase without dropout: steps, ``"50ep"`` or ``"20%"``.
        shape: Only ``"constant"``.

    Returns:
        The schedule.

    Raises:
        ValueError: The rate is outside [0, 1), the cutoff is malformed, negative or more than 100%,
            or the shape is unknown.

    >>> [late(0.4, cutoff=2)(step) for step in range(4)]
    [0.0, 0.0, 0.4, 0.4]
    """
    return _Late(rate, cutoff, shape)
