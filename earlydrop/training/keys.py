"""Every key of the configuration by its dotted name, with its entry in the schema."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from earlydrop import schedules
from earlydrop.training.config import Config
from earlydrop.training.fields import BOUNDS


@dataclass(frozen=True)
class Key:
    """A key of the schema.

    Attributes:
        name: Dotted, such as ``optim.lr``.
        help: Its meaning, in a few sentences.
        default: Its default.
        kinds: The types that its values may have.
        role: ``numbers``, ``cadence``, ``seed``, ``machine`` or ``name``.
        bounds: A name in `BOUNDS`, or None.
        choices: All its values, if they can be listed.
        cited: Whether the command that ``earlydrop-cite`` prints repeats it.
    """

    name: str
    help: str
    default: Any
    kinds: tuple[Any, ...]
    role: str
    bounds: str | None
    choices: tuple[Any, ...]
    cited: bool
    _used: Callable[[Config], bool] | None

    def used(self, config: Config) -> bool:
        """Whether the key means anything in a configuration."""
        return self._used is None or self._used(config)

    def of(self, config: Config) -> Any:
        value: Any = config
        for part in self.name.split("."):
            value = getattr(value, part)
        return value


@functools.cache
def keys() -> dict[str, Key]:
    """Every key of the schema by its dotted name, in the schema's order."""
    return {key.name: key for key in _walk(Config, "")}


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Update the values of an earlier version, in which ``tracking`` was one value, not a group."""
    mode = values.get("tracking")
    if isinstance(mode, (str, bool)):
        return {**values, "tracking": {"mode": "off" if mode is False else mode}}
    return dict(values)


OPEN = ("model.args", "data.args", "schedule.args", "data.extra")
"""The keys below which a user has keys of their own, such as ``model.args.width``."""


def key_of(name: str) -> Key | None:
    """The key of a dotted name, or the open key that the name is below; None if there is none."""
    key = keys().get(name)
    return key or next((keys()[key] for key in OPEN if name.startswith(f"{key}.")), None)


def _walk(cls: Any, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(cls)
    texts = _field_texts(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{field.name}.")
            continue
        made = field.default_factory is not dataclasses.MISSING
        metadata = field.metadata
        yield Key(
            name=prefix + field.name,
            help=texts.get(field.name) or _of_a_schedule(field.name),
            default=field.default_factory() if made else field.default,  # type: ignore[operator]
            kinds=typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,),
            role=metadata["role"],
            bounds=metadata["bounds"],
            choices=metadata["choices"],
            cited=metadata["cited"],
            _used=metadata["used"],
        )


def _field_texts(cls: Any) -> dict[str, str]:
    """The text under each field of a class of the schema."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    texts: dict[str, str] = {}
    for field, below in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            texts[field.target.id] = " ".join(text.value.split())
    return texts


def _argument_texts(maker: Any) -> dict[str, str]:
    """The texts of a function's docstring about its arguments."""
    lines = (inspect.getdoc(maker) or "").partition("\nArgs:\n")[2].splitlines()
    texts: dict[str, str] = {}
    name = ""
    for line in itertools.takewhile(lambda line: line.startswith("    "), lines):
        if line.startswith("     "):  # a continuation line
            texts[name] += f" {line.strip()}"
        else:
            name, _, text = line.strip().partition(": ")
            texts[name] = text
    return texts


def _of_a_schedule(parameter: str) -> str:
    """The help of a schedule's parameter, for a key that has no text in the schema.

    It comes from the first schedule whose docstring describes the parameter. Empty if none does.
    """
    texts = (_argument_texts(maker).get(parameter) for maker in schedules.MAKERS.values())
    return next(filter(None, texts), "")


def expected(key: Key) -> str:
    """The values that a key takes, in words, such as ``A number, more than 0``."""
    if key.choices:
        listed = ", ".join(map(shown, key.choices))
        return f"One of {listed}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    kinds = [names.get(kind, "") for kind in key.kinds if kind is not type(None)]
    kind = next(filter(None, kinds), "a list" if "list" in str(key.kinds) else "keys of your own")
    bounds = f", {BOUNDS[key.bounds][1]}" if key.bounds else ""
    null = ", or null" if type(None) in key.kinds else ""
    # Bounds such as "a rate in [0, 1)" name the kind themselves.
    text = f"{kind}{bounds}{null}".replace("a number, a ", "a ")
    return text[0].upper() + text[1:]


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return str(value)
