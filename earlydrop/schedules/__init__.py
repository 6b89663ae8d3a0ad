"""Schedules: a drop rate for each optimizer step.

A schedule is a small immutable value without state. It can be called (``schedule(step) -> rate``),
compared, printed and written into a config (`Schedule.to_config`, `from_config`). ``step`` counts
optimizer steps from 0.

Durations, such as cutoffs, are whole steps (``1_000``), epochs (``"50ep"``) or a share of the whole
run (``"20%"``). `Schedule.resolve` turns them into steps, rounding down, once the length of the run
is known. The positions of points (`piecewise`) are fractions, percentages or epochs. They are not
rounded to steps.

Terms and arithmetic follow Liu et al., "Dropout Reduces Underfitting", ICML 2023
(arXiv:2303.01500): *standard*, *early* and *late* dropout, with a *cutoff*.

To add a schedule, write a class and its maker in a file here, and add the maker to `MAKERS`. The
public name, the option in the configuration and the label of runs follow from the maker's name and
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from earlydrop.schedules import classic, paper
from earlydrop.schedules.base import Schedule as Schedule
from earlydrop.schedules.base import check_rate as check_rate
from earlydrop.schedules.base import check_step as check_step
from earlydrop.schedules.classic import annealed as annealed
from earlydrop.schedules.classic import curriculum as curriculum
from earlydrop.schedules.classic import ramp as ramp
from earlydrop.schedules.paper import constant as constant
from earlydrop.schedules.paper import early as early
from earlydrop.schedules.paper import late as late
from earlydrop.schedules.paper import none as none
from earlydrop.schedules.piecewise import piecewise as piecewise

MAKERS: dict[str, Callable[..., Schedule]] = {
    "none": paper.none,
    "constant": paper.constant,
    "early": paper.early,
    "late": paper.late,
    "piecewise": piecewise,
    "annealed": classic.annealed,
    "curriculum": classic.curriculum,
    "ramp": classic.ramp,
}
"""The maker of every schedule, by the schedule's name in a config."""


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Make a schedule from plain values, as `Schedule.to_config` writes them.

    Args:
        config: ``name`` and the arguments of that schedule.

    Returns:
        The schedule.

    Raises:
        ValueError: The name is unknown, an argument is unknown or missing, or a value is refused by
            the schedule.

    >>> from_config({"name": "early", "rate": 0.1, "cutoff": "20%", "shape": "linear"})
    early(rate=0.1, cutoff='20%', shape='linear')
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"schedule is {config!r}: expected a mapping such as {{'name': 'none'}}")
    arguments = dict(config)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in MAKERS:
        raise ValueError(f"schedule name is {name!r}: expected one of {', '.join(MAKERS)}")
    total_steps = arguments.pop("total_steps", None)  # written by a resolved schedule
    try:
        schedule = MAKERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} with {arguments!r}: {error}") from None
    return schedule if total_steps is None else schedule.resolve(total_steps)
