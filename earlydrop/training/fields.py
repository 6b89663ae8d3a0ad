"""The fields of the schema: default, role, bounds, and the configurations that use a key.

The role of a key says what the key affects. It decides whether the key is hashed into the
fingerprint and whether it tells arms apart:

- ``numbers`` (the default): the trained weights. It is hashed into the fingerprint and tells arms
  apart.
- ``cadence``: what is measured and when. It is hashed into the fingerprint, but tells no arms
  apart.
- ``seed``: pairs runs. It is hashed, but is no part of an arm.
- ``machine``: where and how the run is computed and tracked, and what is measured on its final
  weights. ``name``: what the run is called. Neither is hashed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import field
from typing import Any

_MOST_THREADS = max(256, os.cpu_count() or 1)

NUMBERS, CADENCE, SEED, MACHINE, NAME = "numbers", "cadence", "seed", "machine", "name"
BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "positive": (lambda value: value > 0, "more than 0"),
    "not negative": (lambda value: value >= 0, "0 or more"),
    "below one": (lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "rate": (lambda value: 0 <= value < 1, "a rate in [0, 1)"),
    "probability": (lambda value: 0 <= value <= 1, "a probability in [0, 1]"),
    "threads": (
        lambda value: 0 < value <= _MOST_THREADS,
        f"more than 0, and at most {_MOST_THREADS}",
    ),
}


class ConfigError(ValueError):
    """A value in the configuration cannot be used; the message says what was expected."""


def key(
    default: Any = None,
    role: str = NUMBERS,
    *,
    bounds: str | None = None,
    choices: tuple[Any, ...] = (),
    used: Callable[[Any], bool] | None = None,
    cited: bool | None = None,
) -> Any:
    """A key of the schema, for the body of a dataclass.

    Args:
        default: The default of the key; None if left out.
        role: The effect of the key, one of the roles above.
        bounds: A name in `BOUNDS`.
        choices: All its values, if they can be listed.
        used: A function that says whether a configuration uses the key; None if all do.
        cited: Whether the command that ``earlydrop-cite`` prints repeats the key. If None, it does
            so unless the role is ``machine`` or ``name``.

    Returns:
        The dataclass field.
    """
    cited = role not in (MACHINE, NAME) if cited is None else cited
    metadata = {"role": role, "bounds": bounds, "choices": choices, "used": used, "cited": cited}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
