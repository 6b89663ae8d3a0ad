"""``earlydrop --help-key optim.beta1``: what a configuration key means, its default and its values."""

from __future__ import annotations

import shutil
import textwrap

from earlydrop.training.fields import BOUNDS
from earlydrop.training.keys import Key, keys
from earlydrop.training.overrides import meant

FLAG = "--help-key"
_EFFECT = {
    "numbers": "changes what is trained",
    "cadence": "changes what is measured",
    "seed": "pairs runs",
    "machine": "changes no number",
    "name": "changes no number",
}


def show_help(arguments: list[str]) -> None:
    """Print what the schema says of keys, of groups of keys, or of all.

    Args:
        arguments: The command's: ``--help-key`` and any number of names.

    Raises:
        SystemExit: A name is no key and no group.
    """
    names = [argument for argument in arguments if argument != FLAG]
    known = keys()
    groups = sorted({name.partition(".")[0] for name in known if "." in name})
    texts = []
    for name in names or list(known):
        wanted = [key for each, key in known.items() if each == name or each.startswith(f"{name}.")]
        if not wanted:
            near = meant(name, [*known, *groups])
            raise SystemExit(f"error: there is no key {name}{near or '; earlydrop --help-key lists all'}")
        texts += [describe(key) for key in wanted]
    print("\n\n".join(dict.fromkeys(texts)))


def describe(key: Key) -> str:
    """A key in a few lines: name and default, meaning, values.

    Args:
        key: What the schema says of it.

    Returns:
        Text whose lines are as wide as the terminal, at most 100 columns.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    text = f"{key.help.replace('``', '')} {values(key)}; {_EFFECT[key.role]}."
    body = textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name} = {shown(key.default)}\n{body}"


def values(key: Key) -> str:
    """The values that a key takes, in words, such as ``A number, more than 0``."""
    if key.choices:
        listed = ", ".join(map(shown, key.choices))
        return f"One of {listed}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    kinds = [names.get(kind, "") for kind in key.kinds if kind is not type(None)]
    kind = next(filter(None, kinds), "a list" if "list" in str(key.kinds) else "keys of their own")
    bounds = f", {BOUNDS[key.bounds][1]}" if key.bounds else ""
    null = ", or null" if type(None) in key.kinds else ""
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
