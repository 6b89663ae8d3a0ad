"""``earlydrop --help-key optim.beta1``: what a configuration key means, its default and its values."""

from __future__ import annotations

import shutil
import textwrap

from earlydrop.training.keys import Key, expected, keys, shown
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
    text = f"{key.help.replace('``', '')} {expected(key)}; {_EFFECT[key.role]}."
    body = textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name} = {shown(key.default)}\n{body}"
