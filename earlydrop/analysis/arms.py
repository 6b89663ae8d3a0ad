"""Arms: what runs stand for in a comparison.

An arm is a value: every setting that acts on a run's weights but for its seed (`earlydrop.training.fingerprint.settings`). Runs belong to
one arm if all of these are equal, whatever they are called and whatever else is in their folder. A label is only for display.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from earlydrop.training.config import Config
from earlydrop.training.fingerprint import settings
from earlydrop.training.keys import key_of, keys
from earlydrop.training.schedule_config import describe_schedule, drops

_SCHEDULE = "schedule."


@dataclass(frozen=True)
class Arm:
    """The settings of some runs that act on their weights.

    Attributes:
        values: Key and value of every setting in use, null ones too, in the schema's order.
        base: The settings of the same runs without dropout; an arm that never drops is its own base.
        words: Its schedule in a few words, such as ``early-0.1-20%``.
    """

    values: tuple[tuple[str, Any], ...]
    base: tuple[tuple[str, Any], ...]
    words: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Arm:
        """The arm of a configuration, given as values by dotted key; keys that are missing have their defaults.

        Raises:
            ValueError: An unknown key, or a schedule that cannot be.
        """
        config = config_of(values)
        words = describe_schedule(config.schedule) if drops(config) else "none"
        without = copy.deepcopy(config)
        without.schedule.name = "none"
        return cls(_frozen(settings(config)), _frozen(settings(without)), words)

    def get(self, key: str) -> Any:
        """The value of a setting; None where it is null or not in use."""
        return dict(self.values).get(key)

    @property
    def schedule(self) -> dict[str, Any]:
        """The settings of its schedule."""
        return {key: value for key, value in self.values if key.startswith(_SCHEDULE)}

    @property
    def without_dropout(self) -> bool:
        return self.values == self.base

    def agrees(self, other: Arm, except_for: Iterable[str]) -> bool:
        """Whether two arms share every setting that both use, but for the schedule's and some keys."""
        ours, theirs = dict(self.values), dict(other.values)
        leave = set(except_for)
        common = [key for key in ours if key in theirs and key not in leave and not key.startswith(_SCHEDULE)]
        return all(ours[key] == theirs[key] for key in common)


def _frozen(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in values.items())


def config_of(values: Mapping[str, Any]) -> Config:
    """A configuration from values by dotted key, as tables hold them: texts, and NaN for null.

    Raises:
        ValueError: A key that the schema does not have.
    """
    config = Config()
    for name, value in values.items():
        if key_of(name) is None:
            raise ValueError(f"{name!r} is no key of the configuration; see earlydrop --cfg job")
        node: Any = config
        if name not in keys():
            _set_own(config, name, value)
            continue
        *parents, leaf = name.split(".")
        for parent in parents:
            node = getattr(node, parent)
        setattr(node, leaf, _plain(value, keys()[name].kinds))
    return config


def _set_own(config: Config, name: str, value: Any) -> None:
    """Set a key below an open one, such as ``model.args.width``; one that a table has for other runs alone is left out."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    group, _, key = name.split(".", 2)
    getattr(config, group).args[key] = yaml.safe_load(value) if isinstance(value, str) else value


def _plain(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A value in the type that its key has."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if str in kinds:
        return str(value)
    if bool in kinds:
        return value in (True, "True", "true")
    if isinstance(value, str):
        value = yaml.safe_load(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if int in kinds:
        return int(value)
    return float(value) if float in kinds and value is not None else value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as values by dotted key."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return values


def label_arms(arms: Mapping[Any, tuple[Arm, str | None]]) -> dict[Any, str]:
    """What to call each run of a study: its own label, else its schedule and every other setting in which the study's arms differ.

    Two arms never share a name: where their names would be the same, the settings in which they differ are added.

    Args:
        arms: By run, its arm and the label that it was given, if it was given one.

    Returns:
        By run, its name.
    """
    distinct = list(dict.fromkeys(arm for arm, _ in arms.values()))
    others = _differing(distinct, lambda key: not key.startswith(_SCHEDULE))
    names = {run: (arm, label or _named(arm, others)) for run, (arm, label) in arms.items()}
    same: dict[str, list[Arm]] = {}
    for arm, name in names.values():
        if arm not in same.setdefault(name, []):
            same[name].append(arm)
    more = {name: _differing(group, lambda key: True) for name, group in same.items() if len(group) > 1}
    return {run: name + _said(arm, more.get(name, [])) for run, (arm, name) in names.items()}


def _differing(arms: list[Arm], among: Any) -> list[str]:
    """Keys that not all of the arms that use them have the same value of."""
    found: dict[str, set[Any]] = {}
    for arm in arms:
        for key, value in arm.values:
            if among(key):
                found.setdefault(key, set()).add(value)
    using = {key: sum(key in dict(arm.values) for arm in arms) for key in found}
    return sorted(key for key, values in found.items() if len(values) > 1 or (using[key] < len(arms) and _may_lack(key)))


def _may_lack(key: str) -> bool:
    """Whether an arm that does not have a key differs by that from one that has it."""
    return key.startswith(_SCHEDULE) or ".args." in key


def _named(arm: Arm, keys_: list[str]) -> str:
    values = dict(arm.values)
    said = [f"{key}={text(values[key])}" for key in keys_ if values.get(key) is not None]
    return f"{arm.words} · {', '.join(said)}" if said else arm.words


def _said(arm: Arm, keys_: list[str]) -> str:
    values = dict(arm.values)
    said = ", ".join(f"{key}={text(values[key], exact=True)}" for key in keys_ if values.get(key) is not None)
    return f" ({said})" if said else ""


def text(value: Any, exact: bool = False) -> str:
    """A setting as it is shown."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or exact:
        return str(value)
    return f"{value:g}"
