"""Arguments of a function or class (a user's, a library's or ours), from a configuration.

Values are converted to the types of the function's annotations. Unknown arguments are refused.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from earlydrop.training.fields import ConfigError
from earlydrop.training.plugins import nearest

_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def arguments(
    group: str,
    name: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    offered: Mapping[str, Any],
    positional: int = 0,
) -> dict[str, Any]:
    """The keyword arguments to call a function with.

    Args:
        group: ``model``, ``data`` or ``schedule``; the keys are those of ``<group>.args``.
        name: The function's name in the configuration.
        function: The function or class.
        given: ``<group>.args``.
        offered: Further values by name, for parameters of that name that ``given`` lacks.
        positional: How many leading parameters the caller fills in itself.

    Returns:
        The arguments by name, without the leading ones.

    Raises:
        ConfigError: An argument is unknown, has the wrong type, or is required and missing; the
            function takes too few leading arguments, another required one cannot be passed by name,
            or its signature cannot be read.
    """
    parameters = _parameters(group, name, function)
    leading, others = parameters[:positional], parameters[positional:]
    if sum(parameter.kind in _POSITIONAL for parameter in leading) < positional:
        raise ConfigError(
            f"{group}.name is {name!r}: it takes no argument for the Task; expected a function "
            "build(task, ...)"
        )
    for parameter in others:
        if parameter.kind == parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise ConfigError(
                f"{group}.name is {name!r}: its parameter {parameter.name!r} cannot be passed by "
                "name; remove the / behind it"
            )
    values = typed(group, name, function, given, positional=positional)
    for key, parameter in _takes(others).items():
        if key in values:
            continue
        if key in offered:
            values[key] = offered[key]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"{group}.name is {name!r}: it needs {key!r}; give it with +{group}.args.{key}="
            )
    return values


def typed(
    group: str,
    name: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    positional: int = 0,
) -> dict[str, Any]:
    """The given arguments in the types that the function's annotations ask for.

    Raises:
        ConfigError: The function does not take an argument, or its value has another type.
    """
    parameters = _parameters(group, name, function)
    takes = _takes(parameters[positional:])
    takes_any = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
    for key, value in given.items():
        if key not in takes and not takes_any:
            offer = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise ConfigError(
                f"{group}.args.{key} is {value!r}: {group}.name={name} has no such argument, "
                f"{offer}{nearest(key, takes)}"
            )
    hints = _hints(function)
    values = {}
    for key, value in given.items():
        values[key] = fit(value, hints.get(key, Any), f"{group}.args.{key}")
    return values


def parameter_names(group: str, name: str, function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters."""
    return [parameter.name for parameter in _parameters(group, name, function)]


def _parameters(group: str, name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ConfigError(
            f"{group}.name is {name!r}: its signature cannot be read; expected a Python function "
            "or class. Write a function that calls it"
        ) from None


def _takes(parameters: list[inspect.Parameter]) -> dict[str, inspect.Parameter]:
    return {parameter.name: parameter for parameter in parameters if parameter.kind in _NAMED}


def fit(value: Any, kind: Any, key: str) -> Any:
    """Convert a value to the type that an annotation asks for.

    These types are supported: bool, int, float, str, None, Path, list, tuple, Literal and
    unions of them. With any other annotation the value stays as it is.

    Raises:
        ConfigError: The value has another type.
    """
    fitted = _fitted(value, kind)
    if fitted is _WRONG:
        raise ConfigError(f"{key} is {value!r}: expected {_words(kind)}")
    return fitted


_WRONG = object()


def _fitted(value: Any, kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        # The exact type comes first, so that 3 stays an int for float | int.
        exact = (inner_kind for inner_kind in inner if type(value) is inner_kind)
        for inner_kind in (*exact, *inner):
            fitted = _fitted(value, inner_kind)
            if fitted is not _WRONG:
                return fitted
        return _WRONG
    if origin is typing.Literal:
        # The types are compared too, since 1, 1.0 and True are equal in Python.
        is_choice = any(type(value) is type(choice) and value == choice for choice in inner)
        return value if is_choice else _WRONG
    if kind in (None, type(None)):
        return None if value is None else _WRONG
    if kind is bool:
        return value if isinstance(value, bool) else _WRONG
    if kind in (int, float):
        allowed = (int, float) if kind is float else int
        is_number = isinstance(value, allowed) and not isinstance(value, bool)
        return kind(value) if is_number else _WRONG
    if kind is str:
        return value if isinstance(value, str) else _WRONG
    if kind is Path:
        return Path(value).expanduser() if isinstance(value, str) else _WRONG
    if (origin or kind) in (list, tuple):
        return _fitted_items(value, origin or kind, inner)
    return value


def _fitted_items(value: Any, kind: Any, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, list):
        return _WRONG
    if kind is tuple and inner and inner[-1] is not ...:
        if len(inner) != len(value):
            return _WRONG
        kinds = list(inner)
    else:
        kinds = [inner[0] if inner else Any] * len(value)
    items = [_fitted(item, item_kind) for item, item_kind in zip(value, kinds, strict=True)]
    return _WRONG if any(item is _WRONG for item in items) else kind(items)


def _words(kind: Any) -> str:
    """An annotation in words, for an error message."""
    return (
        kind.__name__
        if isinstance(kind, type) and typing.get_origin(kind) is None
        else str(kind).replace("typing.", "")
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target: Any = function
    if inspect.isclass(function):
        has_init = function.__init__ is not object.__init__
        target = function.__init__ if has_init else function.__new__  # a NamedTuple has no init
    elif isinstance(function, functools.partial):
        target = function.func
    elif not inspect.isroutine(function):
        target = type(function).__call__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):  # a name that only a type checker knows
        return {}
