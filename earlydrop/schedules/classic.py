"""Schedules older than early and late dropout: annealed, curriculum, and the linear ramp."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import ClassVar

from earlydrop.schedules.base import Schedule, WithCutoff, WithRate
from earlydrop.schedules.durations import Duration, check_total_steps

_GAMMA_TIMES_LENGTH = 10.0  # Morerio et al. 2017, section 3.2: gamma = 10 / T


@dataclass(frozen=True, repr=False)
class _Annealed(WithCutoff):
    name: ClassVar[str] = "annealed"

    def _rate(self, step: int) -> float:
        return self.rate * max(0.0, 1.0 - step / int(self.cutoff)) if int(self.cutoff) else 0.0


@dataclass(frozen=True, repr=False)
class _Ramp(WithCutoff):
    name: ClassVar[str] = "ramp"

    def _rate(self, step: int) -> float:
        return self.rate * min(1.0, step / int(self.cutoff)) if int(self.cutoff) else self.rate


@dataclass(frozen=True, repr=False)
class _Curriculum(WithRate):
    name: ClassVar[str] = "curriculum"
    gamma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        gamma = self.gamma
        if gamma is None:
            return
        if not isinstance(gamma, numbers.Real) or not 0 < gamma < math.inf:
            expected = "expected more than 0 per step, or None for 10 / the length of the run"
            raise ValueError(f"gamma is {gamma!r}: {expected}")
        object.__setattr__(self, "gamma", float(gamma))

    @property
    def resolved(self) -> bool:
        return self.gamma is not None

    def resolve(self, total_steps: int, steps_per_epoch: int | None = None) -> Schedule:
        total_steps = check_total_steps(total_steps)
        if self.gamma is not None:
            return self
        return replace(self, gamma=_GAMMA_TIMES_LENGTH / total_steps)

    def _rate(self, step: int) -> float:
        return self.rate * -math.expm1(-(self.gamma or 0.0) * step)


def annealed(rate: float, cutoff: Duration = "100%") -> Schedule:
    """Annealed dropout: rate(step) = rate · max(0, 1 − step / cutoff).

    Rennie, Goel and Thomas 2014, equation 4. The rate falls linearly from the first step on.
    `early` with the linear shape falls slightly faster: it reaches 0 one step before the cutoff, as
    the released code of Liu et al. 2023 does.

    Args:
        rate: Drop rate at step 0, in [0, 1).
        cutoff: Duration of the decay: steps, ``"50ep"`` or ``"20%"``. With 0 there is no dropout.

    Returns:
        The schedule.

    Raises:
        ValueError: The rate is outside [0, 1), or the cutoff is malformed, negative or more than
            100%.

    >>> [annealed(0.5, cutoff=5)(step) for step in (0, 1, 4, 5, 6)]
    [0.5, 0.4, 0.09999999999999998, 0.0, 0.0]
    """
    return _Annealed(rate, cutoff)


def curriculum(rate: float, gamma: float | None = None) -> Schedule:
    """Curriculum dropout: rate(step) = rate · (1 − exp(−γ · step)).

    Morerio et al. 2017, arXiv:1703.06229, equation 3.

    Args:
        rate: The limit that the rate rises to, in [0, 1).
        gamma: γ, per optimizer step, above 0. None becomes 10 / total_steps, the paper's choice,
            when the schedule is resolved.

    Returns:
        The schedule.

    Raises:
        ValueError: The rate is outside [0, 1), or gamma is not a finite number above 0.

    >>> schedule = curriculum(0.5).resolve(total_steps=10)
    >>> [round(schedule(step), 4) for step in (0, 1, 2, 10)]
    [0.0, 0.3161, 0.4323, 0.5]
    """
    return _Curriculum(rate, gamma)


def ramp(rate: float, cutoff: Duration = "100%") -> Schedule:
    """A linear ramp: rate(step) = rate · min(1, step / cutoff).

    Used with DropBlock (Ghiasi et al. 2018, arXiv:1810.12890, section 3) and as scheduled drop path
    (Zoph et al. 2018, arXiv:1707.07012, appendix A.2).

    Args:
        rate: Drop rate from the cutoff on, in [0, 1).
        cutoff: Duration of the rise: steps, ``"50ep"`` or ``"20%"``. With 0 the rate is constant.

    Returns:
        The schedule.

    Raises:
        ValueError: The rate is outside [0, 1), or the cutoff is malformed, negative or more than
            100%.

    >>> [ramp(0.5, cutoff=4)(step) for step in range(6)]
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    """
    return _Ramp(rate, cutoff)
