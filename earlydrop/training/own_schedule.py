"""A user's schedule: the function or `Schedule` that ``module:function`` returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from earlydrop import schedules
from earlydrop.schedules import Schedule, check_rate
from earlydrop.training.arguments import arguments
from earlydrop.training.fields import ConfigError
from earlydrop.training.keys import keys
from earlydrop.training.plugins import Code, is_own, load, nearest, raised, registered
from earlydrop.training.schedule_config import ScheduleConfig

# The length of the run, given to a function that has a parameter of this name.
_OF_THE_RUN = (
    "total_steps",
    "steps_per_epoch",
)


@dataclass(frozen=True, repr=False)
class OwnSchedule(Schedule):
    """A user's schedule; once it is resolved, its rate at every step is known and checked.

    Attributes:
        code: The code that makes it.
        arguments: The code's arguments, except the length of the run.
        rates: The rate at every step of the run, and at its end.
    """

    name: ClassVar[str] = "own"
    code: Code = field(compare=False)
    arguments: tuple[tuple[str, Any], ...]
    rates: tuple[float, ...] = ()

    @property
    def resolved(self) -> bool:
        return bool(self.rates)

    @property
    def peak(self) -> float:
        return max(self.rates, default=0.0)  # 0 until the schedule is resolved

    def _rate(self, step: int) -> float:
        return self.rates[min(step, len(self.rates) - 1)]

    def resolve(self, total_steps: int, steps_per_epoch: int | None = None) -> Schedule:
        if self.resolved:
            return self
        prefix = f"schedule.name is {self.code.name!r}"
        length = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        asked = {key: length[key] for key in _OF_THE_RUN if key in _parameters(self.code)}
        try:
            made = self.code.value(**(dict(self.arguments) | asked))
            if isinstance(made, Schedule):
                made = made.resolve(total_steps, steps_per_epoch)
        except Exception as error:
            raise ConfigError(
                f"{prefix}: making it raised {raised(error, self.code.paths)}"
            ) from error
        if not callable(made):
            raise ConfigError(
                f"{prefix}: it returned a {type(made).__name__}, expected a function of the step, "
                "or a Schedule"
            )
        return replace(
            self,
            rates=tuple(_rate_at(prefix, made, step, self.code) for step in range(total_steps + 1)),
        )

    def to_config(self) -> dict[str, Any]:
        """The schedule as the keys of ``schedule``. `from_config` does not read them."""
        return {"name": self.code.name, "args": dict(self.arguments)}

    def __repr__(self) -> str:
        return f"{self.code.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments)})"


def own_schedule(config: ScheduleConfig) -> OwnSchedule:
    """The schedule that a configuration names, if it is none of earlydrop's.

    Its arguments are the keys of ``schedule.args``. A parameter with the name of another key of
    ``schedule`` (``rate``, ``cutoff``) takes the value of that key, if it is not null and
    ``schedule.args`` does not give it. ``kind`` and ``name`` are not passed on.
    ``total_steps`` and ``steps_per_epoch`` take the steps of the run and of an epoch, also where
    ``schedule.args`` gives another value.

    Raises:
        ConfigError: There is no such schedule, or an argument does not fit.
    """
    if not is_own("schedule", config.name):
        known = ", ".join(schedules.MAKERS)
        raise ConfigError(
            f"schedule.name is {config.name!r}: expected one of {known}, or module:function of "
            "your own"
            f"{nearest(config.name, schedules.MAKERS)}"
        )
    code = load("schedule.name", "schedule", config.name)
    names = [key.removeprefix("schedule.") for key in keys() if key.startswith("schedule.")]
    offered = {}
    for name in names:
        value = getattr(config, name)
        if name not in ("name", "kind", "args") and value is not None:
            offered[name] = value
    values = arguments(
        "schedule",
        config.name,
        code.value,
        given=config.args,
        # The length of the run is not known yet: None stands for it until `OwnSchedule.resolve`.
        offered=offered | dict.fromkeys(_OF_THE_RUN),
    )
    return OwnSchedule(
        code, tuple((key, value) for key, value in values.items() if key not in _OF_THE_RUN)
    )


def code_of_schedule(config: ScheduleConfig) -> Code | None:
    """The user's code behind a schedule; None if it is earlydrop's."""
    if config.name in schedules.MAKERS:
        return registered(config.name, schedules.MAKERS[config.name])
    return load("schedule.name", "schedule", config.name)


def _parameters(code: Code) -> list[str]:
    return list(inspect.signature(code.value).parameters)


def _rate_at(prefix: str, made: Callable[[int], Any], step: int, code: Code) -> float:
    try:
        value = made(step)
        if hasattr(value, "item"):
            value = value.item()
    except Exception as error:
        raise ConfigError(
            f"{prefix}: at step {step} it raised {raised(error, code.paths)}"
        ) from error
    try:
        return check_rate(value)
    except ValueError as error:
        raise ConfigError(f"{prefix}: at step {step} its {error}") from None
