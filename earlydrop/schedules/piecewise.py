"""Piecewise linear schedules, in the notation of Kaldi's ``--trainer.dropout-schedule``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from earlydrop.schedules.base import Schedule, check_rate
from earlydrop.schedules.durations import check_duration, check_total_steps, exact_steps


@dataclass(frozen=True, repr=False)
class _Piecewise(Schedule):
    name: ClassVar[str] = "piecewise"
    points: str
    total_steps: int | None = None

    def __post_init__(self) -> None:
        pairs = parse_points(self.points)
        if not any(position.endswith("ep") for _, position in pairs):
            self._table(pairs, 1, None)  # checks the order; fractions do not depend on the length
        if self.total_steps is not None:
            object.__setattr__(self, "_resolved_table", self._table(pairs, self.total_steps, None))

    def _table(
        self, pairs: list[tuple[float, str]], total_steps: int, steps_per_epoch: int | None
    ) -> tuple[tuple[float, float], ...]:
        """The points as (fraction of the run, rate), in rising order."""
        exact = [
            exact_position(position, total_steps, steps_per_epoch, self.points)
            for _, position in pairs
        ]
        for before, after in itertools.pairwise(exact):
            if after < before or after > 1:
                raise ValueError(
                    f"points is {self.points!r}: positions must rise from 0 to 1 (the end of the "
                    f"run), but {float(after):g} comes after {float(before):g}"
                )
        return tuple(
            (float(fraction), rate) for fraction, (rate, _) in zip(exact, pairs, strict=True)
        )

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
                raise ValueError(
                    f"{self!r} was resolved for {self.total_steps} steps, not for {total_steps}"
                )
            return self
        pairs = parse_points(self.points)
        self._table(pairs, total_steps, steps_per_epoch)  # checks the order
        # Epochs become fractions, so that the resolved schedule does not need steps_per_epoch.
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


def piecewise(points: str) -> Schedule:
    """A piecewise linear schedule in the notation of Kaldi's ``--trainer.dropout-schedule``.

    The points are rates with ``@`` and a position, separated by commas. The first rate is at 0 and
    the last at 1; they take no position. A rate in between without a position is at 0.5, as in
    Kaldi. Two rates at one position make a jump to the second. Positions are fractions of the run
    (``0.2``), percentages (``20%``) or epochs (``50ep``). A step has the position
    step / total_steps.

    Args:
        points: For example ``"0,0@0.20,0.5@0.50,0"``.

    Returns:
        The schedule. Resolve it before you call it.

    Raises:
        ValueError: The points are malformed, a rate is outside [0, 1), a position is outside
            [0, 1], or a position is below the one before it. If a position is in epochs,
            ``resolve`` checks the order instead.

    >>> schedule = piecewise("0,0@0.20,0.5@0.50,0").resolve(total_steps=20)
    >>> [round(schedule(step), 3) for step in (0, 4, 7, 10, 15, 20, 99)]
    [0.0, 0.0, 0.25, 0.5, 0.25, 0.0, 0.0]
    """
    return _Piecewise(points)


def parse_points(points: str) -> list[tuple[float, str]]:
    """The (rate, position) pairs of Kaldi's notation, checked.

    A position is a fraction, ``"20%"`` or ``"50ep"``, as text.
    """
    help_text = (
        "expected Kaldi's notation, such as '0,0@0.20,0.5@0.50,0': "
        "rate@fraction of the run, from start to end"
    )
    if not isinstance(points, str):
        raise ValueError(f"points is {points!r}: {help_text}")
    parts = [part.strip() for part in points.split(",")]
    if len(parts) < 2:
        raise ValueError(
            f"points is {points!r}: it needs at least a first and a last rate; {help_text}"
        )
    pairs: list[tuple[float, str]] = []
    for i, part in enumerate(parts):
        is_first_or_last = i in (0, len(parts) - 1)
        rate_text, at, position = (piece.strip() for piece in part.partition("@"))
        if is_first_or_last and at:
            raise ValueError(
                f"points is {points!r}: the first and last rates stand at the start and end of the "
                f"run, so {part!r} takes no position; {help_text}"
            )
        try:
            rate = float(rate_text)
        except ValueError:
            raise ValueError(
                f"points is {points!r}: {rate_text!r} is not a rate; {help_text}"
            ) from None
        check_rate(rate, f"a rate in points {points!r}")
        if not is_first_or_last and not at:
            position = "0.5"  # Kaldi's default for a rate in between
        if i == 0:
            position = "0"
        elif is_first_or_last:
            position = "1"
        pairs.append((rate, position))
    for _, position in pairs:
        exact_position(position, 1, 1, points)
    return pairs


def exact_position(
    position: str, total_steps: int, steps_per_epoch: int | None, points: str
) -> Fraction:
    """The position of a point, as a fraction of the run.

    It is above 1 for epochs past the end of the run. ``points`` is the whole notation, for errors.
    """
    message = (
        f"points is {points!r}: position {position!r} should be a fraction of the run in [0, 1], "
        "'20%' or '50ep'"
    )
    if position.endswith(("ep", "%")):
        if _number(position.removesuffix("ep").removesuffix("%")) is None:
            raise ValueError(message)
        what = f"a position in points {points!r}"
        duration = check_duration(position, what)
        return exact_steps(duration, total_steps, steps_per_epoch, what) / total_steps
    fraction = _number(position)
    if fraction is None or not 0 <= fraction <= 1:
        raise ValueError(message)
    return fraction


def _number(text: str) -> Fraction | None:
    """A number as written; None for any other text."""
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        return None
