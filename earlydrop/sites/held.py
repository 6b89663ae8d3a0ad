"""Rates that a forward reads from its module's ``config`` (transformers: ``self.config.layerdrop``).

Modules share a config, so it is never written. A driven module sees a view of it instead: the same object, but for the rates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

PREFIX = "config."


def stored_rate(module: nn.Module, attribute: str) -> Any:
    """What a module was built with: its own attribute, or its config's.

    Args:
        module: Any module.
        attribute: ``"dropout"`` or ``"config.dropout"``.

    Returns:
        The value; None if there is none.
    """
    if attribute.startswith(PREFIX):
        return getattr(module.__dict__.get("config"), attribute.removeprefix(PREFIX), None)
    return module.__dict__.get(attribute)


class ConfigView:
    """A config as a driven module sees it.

    Args:
        config: The config, to which everything but the rates is handed on.
        rates: What reads a rate, by attribute.
    """

    __slots__ = ("_config", "_rates")

    def __init__(self, config: Any, rates: Mapping[str, Callable[[], float]]) -> None:
        aliases: Mapping[str, str] = getattr(config, "attribute_map", None) or {}  # transformers' second names
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_rates", dict(rates) | {aliases[name]: read for name, read in rates.items() if name in aliases})

    def __getattribute__(self, name: str) -> Any:  # __class__ too: isinstance() and pickle see the config
        rates = object.__getattribute__(self, "_rates")
        if name in rates:
            return rates[name]()
        return getattr(object.__getattribute__(self, "_config"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_config"), name, value)

    def __repr__(self) -> str:
        return repr(object.__getattribute__(self, "_config"))

    def __eq__(self, other: object) -> bool:
        return bool(object.__getattribute__(self, "_config") == real_config(other))

    def __hash__(self) -> int:
        return id(object.__getattribute__(self, "_config"))

    def __iter__(self) -> Iterator[Any]:
        return iter(object.__getattribute__(self, "_config"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__getattribute__(self, "_config").__reduce_ex__(protocol)

    def __copy__(self) -> Any:
        return copy.copy(object.__getattribute__(self, "_config"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(object.__getattribute__(self, "_config"), memo)


def real_config(config: Any) -> Any:
    """The config behind a view.

    Args:
        config: A config or a view of one.

    Returns:
        The config.
    """
    return object.__getattribute__(config, "_config") if type(config) is ConfigView else config
