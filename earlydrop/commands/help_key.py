"""``earlydrop --help-key optim.beta1``: the meaning, default and values of a configuration key."""

from __future__ import annotations

import shutil
import textwrap

from earlydrop.training.keys import Key, expected, key_of, keys, shown
from earlydrop.training.overrides import meant

FLAG = "--help-key"
_EFFECT = {
    "numbers": "changes what is trained",
    "cadence": "changes what is measured",
    "seed": "pairs runs",
    "machine": "is not part of the fingerprint",
    "name": "changes no number",
}


def show_help(arguments: list[str]) -> None:
    """Print the meaning of configuration keys.

    Args:
        arguments: Those of the command: ``--help-key`` and names of keys or groups. Without a name,
            all keys are printed.

    Raises:
        SystemExit: A name is neither a key nor a group.
    """
    words = [argument.removeprefix(f"{FLAG}=") for argument in arguments]
    names = [word for word in words if word != FLAG]
    known = keys()
    groups = sorted({name.partition(".")[0] for name in known if "." in name})
    texts = []
    for name in names or list(known):
        matching = [key for key in known.values() if f"{key.name}.".startswith(f"{name}.")]
        below = key_of(name)
        if below is not None and not matching:
            matching = [below]
        if not matching:
            hint = meant(name, [*known, *groups]) or "; earlydrop --help-key lists all"
            raise SystemExit(f"error: there is no key {name}{hint}")
        texts += [describe(key) for key in matching]
    print("\n\n".join(dict.fromkeys(texts)))


def describe(key: Key) -> str:
    """A key in a few lines: name and default, meaning, values.

    Args:
        key: The key.

    Returns:
        Text whose lines are as wide as the terminal, at most 100 columns.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    text = f"{key.help.replace('``', '')} {expected(key)}; {_EFFECT[key.role]}."
    body = textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name} = {shown(key.default)}\n{body}"
