"""The keys of the group ``schedule``, and the schedule that they name."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from earlydrop import schedules
from earlydrop.training.fields import ConfigError
from earlydrop.training.fields import key as _key

T = TypeVar("T")


def is_own_schedule(config: Any) -> bool:
    """Whether the schedule is the user's own: ``module:function``, or an installed name."""
    return config.schedule.name not in schedules.MAKERS


def drops(config: Any) -> bool:
    """Whether the schedule ever drops anything.

    A user's schedule always counts as one that drops, because it is not imported here.
    """
    return is_own_schedule(config) or parse_schedule(config.schedule).peak > 0


def _takes(parameter: str) -> Callable[[Any], bool]:
    """A function that tells whether the schedule of a configuration uses a parameter.

    A built-in schedule uses it if it drops and has the parameter. A user's schedule may use any.
    """

    def used(config: Any) -> bool:
        return is_own_schedule(config) or (
            parameter in inspect.signature(schedules.MAKERS[config.schedule.name]).parameters
            and drops(config)
        )

    return used


def _two_kinds(config: Any) -> bool:
    """Whether both kinds of sites are scheduled, by a schedule that may use ``rate``."""
    return config.schedule.kind == "all" and _takes("rate")(config)


def _with_parameters(cls: type[T]) -> type[T]:
    """Add the missing keys of schedule parameters; null is the schedule's own default."""
    for maker in schedules.MAKERS.values():
        for name, annotation in typing.get_type_hints(maker).items():
            if name != "return" and name not in cls.__annotations__:
                plain = annotation if annotation in (int, float, bool, str) else float
                cls.__annotations__[name] = plain | None
                setattr(cls, name, _key(used=_takes(name)))
    return cls


@dataclass
@_with_parameters
class ScheduleConfig:
    """The drop rate at each step. A schedule ignores keys that it does not take."""

    name: str = _key("early", choices=tuple(schedules.MAKERS))
    """One of ours (``none``, ``constant``, ``early``, ``late``, ...), or a function of your own,
    ``module:function``."""
    kind: str = _key("unit", choices=("unit", "path", "all"), used=drops)
    """Which sites are driven: dropout (``unit``), stochastic depth (``path``) or both (``all``)."""
    rate: float = _key(0.1, used=_takes("rate"))
    """The peak drop rate, in [0, 1)."""
    path_rate: float | None = _key(bounds="rate", used=_two_kinds)
    """With ``kind=all``, a peak of its own for stochastic depth; null is ``schedule.rate``."""
    cutoff: str = _key("20%", used=_takes("cutoff"))
    """When the early phase ends or the late phase begins: steps (``500``), epochs (``50ep``) or a
    share of training (``20%``)."""
    shape: str | None = _key(used=_takes("shape"))
    """How ``early`` falls to 0 (``linear``, ``constant`` or ``cosine``); null is ``linear``."""
    points: str | None = _key(used=_takes("points"))
    """Times and rates of ``piecewise``, such as ``0,0@0.2,0.5@0.5,0``."""
    gamma: float | None = _key(bounds="positive", used=_takes("gamma"))
    """How fast ``curriculum`` rises, per step; null is 10 / the number of steps."""
    args: dict[str, Any] = _key({}, used=is_own_schedule)
    """Arguments of a schedule of your own, such as ``+schedule.args.period=100``."""


def parse_path_schedule(config: ScheduleConfig) -> schedules.Schedule | None:
    """The unresolved schedule of the path sites.

    None if they have no peak of their own, or if the schedule never drops.

    Raises:
        ValueError: The schedule refuses a value.
    """
    if config.path_rate is None or parse_schedule(config).peak == 0:
        return None
    return parse_schedule(dataclasses.replace(config, rate=config.path_rate))


def parse_schedule(config: ScheduleConfig) -> schedules.Schedule:
    """The schedule that a configuration names. Its durations are not resolved to steps yet.

    Raises:
        ValueError: The name is unknown, a required parameter is null, or the schedule refuses a
            value.
    """
    if config.name not in schedules.MAKERS:
        raise ConfigError(
            f"schedule.name is {config.name!r}: expected one of {', '.join(schedules.MAKERS)}"
        )
    values = {}
    for name, parameter in inspect.signature(schedules.MAKERS[config.name]).parameters.items():
        value = getattr(config, name)
        if value is not None:
            values[name] = value
        elif parameter.default is parameter.empty:
            remedy = "give it a value"
            if name == "points":
                remedy = "schedule=piecewise needs points such as '0,0@0.20,0.5@0.50,0'"
            raise ConfigError(f"schedule.{name} is null: {remedy}")
    return schedules.from_config({"name": config.name} | values)


def describe_schedule(config: ScheduleConfig) -> str:
    """A schedule in words, for labels: its name and arguments, such as ``early-0.1-20%``.

    A key that is null by default is included only if it differs from the schedule's own default.
    """
    if config.name not in schedules.MAKERS:
        values = [_in_words(value) for value in config.args.values()]
        kind = [config.kind] if config.kind != "unit" else []
        return "-".join([config.name.rpartition(":")[2], *values, *kind])
    words = [config.name]
    defaults = {f.name: f.default for f in dataclasses.fields(ScheduleConfig)}
    for name, parameter in inspect.signature(schedules.MAKERS[config.name]).parameters.items():
        value = getattr(config, name)
        if defaults[name] is not None or (value is not None and value != parameter.default):
            words.append(_in_words(value))
    if config.kind != "unit" and config.name != "none":
        words.append(config.kind)
        if config.path_rate is not None:
            words.append(f"path{config.path_rate:g}")
    return "-".join(words)


def _in_words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def schedule_options() -> dict[str, dict[str, Any]]:
    """The options of the group ``schedule``: each registered schedule, with its own defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(ScheduleConfig)}
    options: dict[str, dict[str, Any]] = {}
    for name, maker in schedules.MAKERS.items():
        option: dict[str, Any] = {"name": name}
        for key, parameter in inspect.signature(maker).parameters.items():
            own = parameter.default
            if own in (parameter.empty, None) or defaults[key] is None:
                continue
            if own != defaults[key]:
                option[key] = own
        options[name] = option
    return options
