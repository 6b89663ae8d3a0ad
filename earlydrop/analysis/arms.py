"""Arms: groups of runs that differ only in their seed.

`Arm` holds every setting that affects a run's weights, except the seed
(`earlydrop.training.fingerprint.settings`). Runs belong to one arm if all of these settings are
equal. Labels and folders are not part of an arm. Tables have a row for each label.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
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
    """The settings that affect the weights of a group of runs.

    Attributes:
        values: Key and value of every setting in use, null ones too, in the schema's order.
        base: The settings of the same runs without dropout. An arm that never drops is its own
            base.
        words: Its schedule as a short label, such as ``early-0.1-20%``; ``none`` without dropout.
    """

    values: tuple[tuple[str, Any], ...]
    base: tuple[tuple[str, Any], ...]
    words: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Arm:
        """The arm of a configuration.

        Args:
            values: Values by dotted key; a key that is missing has its default.

        Raises:
            ValueError: An unknown key, or an impossible schedule.
        """
        config = config_of(values)
        words = describe_schedule(config.schedule) if drops(config) else "none"
        without = copy.deepcopy(config)
        without.schedule.name = "none"
        return cls(_hashable(settings(config)), _hashable(settings(without)), words)

    def get(self, key: str) -> Any:
        """The value of a setting; None if it is null or not in use."""
        return dict(self.values).get(key)

    @property
    def schedule(self) -> dict[str, Any]:
        """The settings of its schedule, by key."""
        return {key: value for key, value in self.values if key.startswith(_SCHEDULE)}

    @property
    def without_dropout(self) -> bool:
        """Whether it never drops anything."""
        return self.values == self.base

    def agrees(self, other: Arm, except_for: Iterable[str]) -> bool:
        """Whether two arms have equal values of the settings that both use.

        Settings of the schedule are not compared.

        Args:
            other: The other arm.
            except_for: Further keys that may differ.
        """
        ours, theirs = dict(self.values), dict(other.values)
        ignored = set(except_for)
        for key in ours.keys() & theirs.keys():
            compared = key not in ignored and not key.startswith(_SCHEDULE)
            if compared and ours[key] != theirs[key]:
                return False
        return True


def _hashable(value: Any) -> Any:
    """A value whose lists are tuples, and whose mappings are tuples of pairs."""
    if isinstance(value, Mapping):
        return tuple((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(inner) for inner in value)
    return value


def config_of(values: Mapping[str, Any]) -> Config:
    """A configuration from values by dotted key.

    Args:
        values: Values by dotted key, as read from a table of runs. NaN means null. A value may be
            text, which is converted to the type of its key.

    Raises:
        ValueError: A key that the schema does not have.
    """
    config = Config()
    for name, value in values.items():
        if key_of(name) is None:
            raise ValueError(f"{name!r} is not a key of the configuration; see earlydrop --cfg job")
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
    """Set a key of the user's own, such as ``model.args.width``. NaN means that it is not set."""
    if isinstance(value, float) and math.isnan(value):
        return
    group, field, key = name.split(".", 2)
    getattr(getattr(config, group), field)[key] = value


def _plain(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A value of a table in one of the types of its key."""
    if _is_null(value):
        return None
    if str in kinds:
        return str(value)
    if bool in kinds:
        return value in (True, "True", "true")
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{value!r} is not a value in YAML") from error
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return list(value)
    if int in kinds:
        if int(value) != value:
            raise ValueError(f"{value!r}: expected a whole number")
        return int(value)
    return float(value) if float in kinds else value


def _is_null(value: Any) -> bool:
    """Whether a cell of a table means null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as values by dotted key. Empty mappings are left out."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values


def label_arms(arms: Mapping[Any, tuple[Arm, str | None]]) -> dict[Any, str]:
    """The name of each run of a study.

    The name of a run is its label. Without a label it is its schedule and every other setting in
    which the study's arms differ. Two arms never share a name: if names are equal, the settings in
    which the arms differ are added to them.

    Args:
        arms: By run, its arm and its label, or None.

    Returns:
        By run, its name.
    """
    distinct = list(dict.fromkeys(arm for arm, _ in arms.values()))
    others = [key for key in differing(distinct) if not key.startswith(_SCHEDULE)]
    names = {}
    arms_of: dict[str, set[Arm]] = {}
    for run, (arm, label) in arms.items():
        names[run] = label or _name(arm, others)
        arms_of.setdefault(names[run], set()).add(arm)
    # `differing` finds nothing in a single arm.
    added = {name: differing(list(group)) for name, group in arms_of.items()}
    return {run: names[run] + _addition(arm, added[names[run]]) for run, (arm, _) in arms.items()}


def differing(arms: list[Arm]) -> list[str]:
    """The keys whose values differ between arms, sorted.

    Keys are compared over the arms that use them. If only some arms use a key of the schedule or of
    the user's code, it counts as different.
    """
    values_of: dict[str, set[Any]] = {}
    users: Counter[str] = Counter()
    for arm in arms:
        for key, value in arm.values:
            values_of.setdefault(key, set()).add(value)
            users[key] += 1
    names = []
    for key, values in values_of.items():
        optional = key.startswith(_SCHEDULE) or ".args." in key
        if len(values) > 1 or (optional and users[key] < len(arms)):
            names.append(key)
    return sorted(names)


def _name(arm: Arm, names: list[str]) -> str:
    """An arm's schedule, and its values of some keys."""
    values = _values_as_text(arm, names)
    return f"{arm.words} · {values}" if values else arm.words


def _addition(arm: Arm, names: list[str]) -> str:
    """An arm's values of some keys in parentheses, to tell it from arms with the same name."""
    values = _values_as_text(arm, names, exact=True)
    return f" ({values})" if values else ""


def _values_as_text(arm: Arm, names: list[str], exact: bool = False) -> str:
    values = dict(arm.values)
    parts = []
    for key in names:
        null_given = exact and ".args." in key and key in values  # an argument may be left out too
        if values.get(key) is not None or null_given:
            parts.append(f"{key}={text(values[key], exact)}")
    return ", ".join(parts)


def text(value: Any, exact: bool = False) -> str:
    """A setting as text; floats in six digits unless ``exact``.

    If ``exact``, a text that reads as a number, such as ``'1'``, is in quotation marks.
    """
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return str(_as_lists(value))
    if isinstance(value, float) and not exact:
        return f"{value:g}"
    if isinstance(value, str) and exact and _is_number(value):
        return repr(value)
    return str(value)


def _is_number(value: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def _as_lists(value: Any) -> Any:
    """A value whose tuples are lists again."""
    return [_as_lists(inner) for inner in value] if isinstance(value, tuple) else value
