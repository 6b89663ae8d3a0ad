"""How long a run is, as far as a framework's trainer knows it, and a schedule's durations in its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from earlydrop.schedules import Schedule

Rates = Schedule | Callable[[int], float]
"""What `DropoutScheduler` takes: a schedule, or a plain function from the step to a rate."""


class RunLength(NamedTuple):
    """The length of a run in optimizer steps.

    Attributes:
        total: Optimizer steps of the whole run; None where nobody knows them before.
        per_epoch: Optimizer steps of an epoch; None where nobody knows them before.
        no_total: Why ``total`` is None.
        no_epoch: Why ``per_epoch`` is None.
    """

    total: int | None
    per_epoch: int | None
    no_total: str = ""
    no_epoch: str = ""


def in_steps(schedule: Rates, length: RunLength) -> Rates:
    """A schedule with its durations in steps. A plain function of the step is returned as it is.

    Raises:
        ValueError: It is no schedule; or a duration is past the end, or needs a length that is not known here.
    """
    if not isinstance(schedule, Schedule):
        if not callable(schedule):
            raise ValueError(
                f"schedule is {schedule!r}: expected a schedule such as earlydrop.early(0.1, cutoff='20%'), or a function "
                "from the step to a rate"
            )
        return schedule
    any_total = 2**60
    total = any_total if length.total is None else length.total
    if length.per_epoch is None and _needs_epochs(schedule, total):
        raise ValueError(f"{schedule!r} has a duration in epochs, but {length.no_epoch}: give it in steps")
    resolved = schedule.resolve(total, length.per_epoch)
    # Without a length, only what comes out the same for any length is right.
    if length.total is None and resolved != schedule.resolve(2 * any_total, length.per_epoch):
        raise ValueError(f"{schedule!r} depends on the length of the run, but {length.no_total}: give its durations in steps")
    return resolved


def _needs_epochs(schedule: Schedule, total: int) -> bool:
    """Whether a schedule can be resolved with the steps of an epoch only."""
    try:
        schedule.resolve(total)
    except ValueError:
        try:
            schedule.resolve(total, steps_per_epoch=1)
        except ValueError:
            return False  # another mistake, which its own error names
        return True
    return False


def batches_of(loader: Any) -> int | None:
    """The batches of one pass over a loader; None for a loader without a length."""
    try:
        return len(loader)
    except TypeError:
        return None
