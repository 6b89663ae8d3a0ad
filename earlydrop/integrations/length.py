"""The length of a run in a framework's trainer, and the durations of a schedule in its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from earlydrop.schedules import Schedule
from earlydrop.schedules.durations import EpochsError

Rates = Schedule | Callable[[int], float]
"""The argument of `DropoutScheduler`: a `Schedule`, or a function from the step to a rate."""


class RunLength(NamedTuple):
    """The length of a run in optimizer steps.

    Attributes:
        total: Optimizer steps of the whole run; None where they are not known in advance.
        per_epoch: Optimizer steps of an epoch; None where they are not known in advance.
        no_total: Reason why ``total`` is None.
        no_epoch: Reason why ``per_epoch`` is None.
    """

    total: int | None
    per_epoch: int | None
    no_total: str = ""
    no_epoch: str = ""


_ANY_TOTAL = 2**60  # steps, of a run whose length is not known


def in_steps(schedule: Rates, length: RunLength) -> Rates:
    """Resolve the durations of a schedule to steps. A plain function is returned as it is.

    Raises:
        ValueError: ``schedule`` is neither a schedule nor a function, a duration is past the end of
            the run, or a duration needs a length that is not known.
    """
    if not isinstance(schedule, Schedule):
        if not callable(schedule):
            raise ValueError(
                f"schedule is {schedule!r}: expected a schedule such as "
                "earlydrop.early(0.1, cutoff='20%'), or a function from the step to a rate"
            )
        return schedule
    if length.total is None and schedule.resolved:
        return schedule  # it needs no length
    total = _ANY_TOTAL if length.total is None else length.total
    try:
        resolved = schedule.resolve(total, length.per_epoch)
    except EpochsError as error:
        raise ValueError(
            f"{schedule!r} has a duration in epochs, but {length.no_epoch}: give it in steps, or "
            "pass what schedule.resolve(total_steps, steps_per_epoch) returns"
        ) from error
    # Without a length, the schedule must be the same for every length.
    if length.total is None and resolved != schedule.resolve(2 * _ANY_TOTAL, length.per_epoch):
        raise ValueError(
            f"{schedule!r} depends on the length of the run, but {length.no_total}: "
            "give its durations in steps, or pass what schedule.resolve(total_steps) returns"
        )
    return resolved
