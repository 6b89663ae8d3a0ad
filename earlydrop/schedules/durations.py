"""Durations (cutoffs, warm-ups and positions) in steps, epochs or percent of a run."""

from __future__ import annotations

import math
import operator
from fractions import Fraction

Duration = int | str
"""Whole optimizer steps (``1000``), epochs (``"50ep"``) or a percentage of the run (``"20%"``)."""

_DURATION_HELP = (
    "expected a whole number of steps (1000), epochs ('50ep') or a percentage of the run ('20%')"
)


class EpochsError(ValueError):
    """A duration is in epochs, and the number of steps of an epoch is missing."""


def check_duration(value: Duration, what: str) -> Duration:
    """A duration in its plain form: an int of steps, or a string that ends in ``ep`` or ``%``.

    It raises ValueError where the duration is malformed, negative, or more than 100%.
    """
    if isinstance(value, str):
        return _check_text(value, what)
    try:
        if isinstance(value, bool):
            raise TypeError
        steps = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} is {value!r}: {_DURATION_HELP}") from None
    if steps < 0:
        raise ValueError(f"{what} is {value!r}: a duration cannot be negative; {_DURATION_HELP}")
    return steps


def _check_text(value: str, what: str) -> Duration:
    text = value.strip()
    unit = next((unit for unit in ("ep", "%") if text.endswith(unit)), "")
    number = text.removesuffix(unit).strip()
    try:
        amount = Fraction(number)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{what} is {value!r}: {_DURATION_HELP}") from None
    if amount < 0:
        raise ValueError(f"{what} is {value!r}: a duration cannot be negative; {_DURATION_HELP}")
    if unit == "%" and amount > 100:
        raise ValueError(f"{what} is {value!r}: past the end of the run; expected at most '100%'")
    if unit:
        return f"{number}{unit}"
    if amount.denominator != 1:
        raise ValueError(f"{what} is {value!r}: {_DURATION_HELP}")
    return int(amount)


def exact_steps(
    duration: Duration, total_steps: int, steps_per_epoch: int | None, what: str
) -> Fraction:
    """The steps of a duration from `check_duration`, not rounded.

    It raises ValueError for a duration in epochs if ``steps_per_epoch`` is None or below 1.
    """
    if isinstance(duration, int):
        return Fraction(duration)
    if duration.endswith("%"):
        return Fraction(duration[:-1]) * total_steps / 100
    if steps_per_epoch is None:
        raise EpochsError(
            f"{what} is {duration!r}, in epochs: give steps_per_epoch to turn it into steps"
        )
    return Fraction(duration[:-2]) * _check_length(
        "steps_per_epoch", steps_per_epoch, "optimizer steps of one epoch"
    )


def duration_to_steps(
    duration: Duration,
    total_steps: int,
    steps_per_epoch: int | None = None,
    what: str = "duration",
) -> int:
    """Turn a duration into whole optimizer steps, rounding down.

    Args:
        duration: Steps, ``"50ep"`` or ``"20%"``.
        total_steps: Length of the run, in optimizer steps.
        steps_per_epoch: Optimizer steps in one epoch, for durations in epochs.
        what: Name of the duration, for errors.

    Returns:
        The number of steps, between 0 and ``total_steps``.

    Raises:
        ValueError: The duration is malformed, negative, or past the end of the run.

    >>> duration_to_steps("20%", total_steps=1_009)
    201
    >>> duration_to_steps("1.5ep", total_steps=1_000, steps_per_epoch=25)
    37
    """
    total_steps = check_total_steps(total_steps)
    exact = exact_steps(check_duration(duration, what), total_steps, steps_per_epoch, what)
    steps = math.floor(exact)
    if steps > total_steps:
        raise ValueError(
            f"{what} is {duration!r} ({steps} steps): past the end of the run of {total_steps} "
            f"steps; give at most {total_steps} steps or '100%'"
        )
    return steps


def check_total_steps(total_steps: int) -> int:
    """Return the length of a run as an int. Raise ValueError if it is not a whole number ≥ 1."""
    return _check_length("total_steps", total_steps, "optimizer steps of the run")


def _check_length(name: str, value: int, what: str) -> int:
    """Check a number of steps that is at least 1."""
    try:
        length = operator.index(value)
    except TypeError:
        length = 0
    if length < 1 or isinstance(value, bool):
        expected = f"expected the number of {what}, at least 1, as an int"
        raise ValueError(f"{name} is {value!r}: {expected}")
    return length
