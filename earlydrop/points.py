"""Points: rates and their positions in a run, in Kaldi's notation, and what counts as a rate."""

from __future__ import annotations

import numbers
from fractions import Fraction

from earlydrop.durations import check_duration, exact_steps


def check_rate(rate: object, what: str = "rate") -> float:
    """Return ``rate`` as a float, if it is a drop rate.

    Args:
        rate: The value to check.
        what: What to call it in the error.

    Returns:
        The rate, in [0, 1).

    Raises:
        ValueError: It is not a number in [0, 1).
    """
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise ValueError(f"{what} is {rate!r}: expected a number in [0, 1), the probability that a unit or path is dropped")
    value = float(rate)
    if not 0.0 <= value < 1.0:  # False for NaN too
        raise ValueError(f"{what} is {rate!r}: expected a drop probability in [0, 1), 0 for no dropout")
    return value


def parse_points(points: str) -> list[tuple[float, str]]:
    """Split Kaldi's notation into rates and positions.

    Args:
        points: For example ``"0,0@0.20,0.5@0.50,0"``.

    Returns:
        (rate, position) pairs; a position is a fraction, ``"20%"`` or ``"50ep"``, as text.

    Raises:
        ValueError: Malformed points, or a rate outside [0, 1).
    """
    help_text = "expected Kaldi's notation, such as '0,0@0.20,0.5@0.50,0': rate@fraction of the run, from start to end"
    if not isinstance(points, str):
        raise ValueError(f"points is {points!r}: {help_text}")
    parts = [part.strip() for part in points.split(",")]
    if len(parts) < 2:
        raise ValueError(f"points is {points!r}: it needs at least a first and a last rate; {help_text}")
    pairs: list[tuple[float, str]] = []
    for i, part in enumerate(parts):
        ends = i in (0, len(parts) - 1)
        rate_text, at, position = (piece.strip() for piece in part.partition("@"))
        if ends and at:
            raise ValueError(
                f"points is {points!r}: the first and last rates stand at the start and end of the run, "
                f"so {part!r} takes no position; {help_text}"
            )
        try:
            rate = float(rate_text)
        except ValueError:
            raise ValueError(f"points is {points!r}: {rate_text!r} is not a rate; {help_text}") from None
        check_rate(rate, f"a rate in points {points!r}")
        if not ends and not at:
            position = "0.5"  # as in Kaldi: a rate without a position in between stands at half of the run
        pairs.append((rate, "0" if i == 0 else "1" if ends else position))
    for _, position in pairs:
        exact_position(position, 1, 1, points)
    return pairs


def exact_position(position: str, total_steps: int, steps_per_epoch: int | None, points: str) -> Fraction:
    """The position of a point as an exact fraction of the run.

    Args:
        position: As `parse_points` gives it.
        total_steps: Length of the run, in optimizer steps.
        steps_per_epoch: Optimizer steps in one epoch; needed for positions in epochs only.
        points: The whole notation, for errors.

    Returns:
        The fraction.

    Raises:
        ValueError: It is not in [0, 1], or in epochs without ``steps_per_epoch``.
    """
    if position.endswith(("ep", "%")):
        duration = check_duration(position, f"a position in points {points!r}")
        return exact_steps(duration, total_steps, steps_per_epoch, f"a position in points {points!r}") / total_steps
    try:
        fraction = Fraction(position)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if not 0 <= fraction <= 1:
        raise ValueError(f"points is {points!r}: position {position!r} should be a fraction of the run in [0, 1], '20%' or '50ep'")
    return fraction
