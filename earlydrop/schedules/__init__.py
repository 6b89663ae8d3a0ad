"""Schedules: which drop rate at which optimizer step.

A schedule is a small immutable value. It can be called (``schedule(step) -> rate``), compared, printed and written into
a config (`Schedule.to_config`, `from_config`). It keeps no state.

Durations (cutoffs and the positions of points) are whole steps (``1_000``), epochs (``"50ep"``) or a share of the whole
run (``"20%"``). `Schedule.resolve` turns them into steps, rounding down, once the length of the run is known.

Terms and arithmetic follow Liu et al., "Dropout Reduces Underfitting", ICML 2023 (arXiv:2303.01500): *standard*, *early*
and *late* dropout, with a *cutoff*. ``step`` counts optimizer steps from 0.

To add a schedule: a class and its maker in a file here, and its line in `MAKERS`. Its public name, its option in the configuration and the
label of its runs follow from the maker's name and arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from earlydrop.schedules import classic, paper
from earlydrop.schedules.base import Schedule as Schedule
from earlydrop.schedules.base import check_rate as check_rate
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
    takes = inspect.signature(MAKERS[name]).parameters
    total_steps = arguments.pop("total_steps", None) if "total_steps" not in takes else None  # of a schedule that was resolved
    try:
        schedule = MAKERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} with {arguments!r}: {error}") from None
    return schedule if total_steps is None else schedule.resolve(total_steps)
