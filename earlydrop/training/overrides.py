"""Find mistakes on the command line before Hydra starts, and suggest a correction."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf

from earlydrop.training.compose import conf_folder
from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError
from earlydrop.training.keys import OPEN, key_of, keys
from earlydrop.training.names import first_line, printable
from earlydrop.training.plugins import installed
from earlydrop.training.schedule_config import schedule_options

_FLAGS_WITHOUT_VALUE = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--resolve",
    "--run",
    "-r",
    "--multirun",
    "-m",
)
_FLAGS_WITH_VALUE = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--shell-completion",
    "-sc",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--experimental-rerun",
    "--info",
    "-i",
)
_EXCLUSIVE = {  # Hydra accepts only one of these flags
    "--multirun": ("--multirun", "-m"),
    "--cfg": ("--cfg", "-c"),
    "--info": ("--info", "-i"),
    "--run": ("--run", "-r"),
    "--shell-completion": ("--shell-completion", "-sc"),
}
_CONFIG_DIR = ("--config-dir", "-cd")
_OWN_NAMES = {  # groups whose name may be the user's own, with a hint
    "model": "model.name= takes any model of timm or torchvision, or module:function",
    "data": "data.name= takes module:function too",
    "schedule": "schedule.name= takes module:function too",
}
_OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)


def mistake(arguments: Iterable[str]) -> str | None:
    """A one-line message about the first mistake; None if there is none.

    Mistakes are, for example, an unknown flag, key or option, a value that cannot be read, and
    flags that exclude each other.
    """
    arguments = list(arguments)
    groups = options(config_dirs(arguments))
    flags_given = {argument.partition("=")[0] for argument in arguments}
    given = [name for name, flags in _EXCLUSIVE.items() if flags_given.intersection(flags)]
    if len(given) > 1:
        return f"{' and '.join(given)} do not go together: give one of them"
    value_follows = False
    for argument in arguments:
        if value_follows:
            value_follows = False
        elif argument.startswith("-"):
            flag, equals, _ = argument.partition("=")
            flags = (*_FLAGS_WITHOUT_VALUE, *_FLAGS_WITH_VALUE)
            if flag not in flags:
                return (
                    f"there is no flag {flag}{meant(flag, flags)}; earlydrop --help lists the flags"
                )
            value_follows = flag in _FLAGS_WITH_VALUE and not equals
        else:
            wrong = _mistaken_override(argument, groups) or _unreadable(argument)
            if wrong is not None:
                return wrong
    return None


def config_dirs(arguments: Iterable[str]) -> list[Path]:
    """The folders of configurations that a command line adds with ``--config-dir``."""
    folders = []
    value_follows = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if value_follows:
            folders.append(Path(argument))
            value_follows = False
        elif flag in _CONFIG_DIR and equals:
            folders.append(Path(value))
        elif flag in _CONFIG_DIR:
            value_follows = True
    return folders


def with_own_keys(arguments: Iterable[str]) -> list[str]:
    """Give overrides of keys below an open key the prefix ``++``.

    Then Hydra adds or changes these keys. Such overrides are written as ``model.args.width=64`` or
    as ``model.args={width:64}``.
    """
    # an optional "+" before the key; only the "+" is replaced
    open_key_prefix = re.compile(rf"^\+?(?=(?:{'|'.join(map(re.escape, OPEN))})(?:\.\w|=\{{))")
    return [open_key_prefix.sub("++", argument) for argument in arguments]


def unused(overrides: Iterable[str], config: Config) -> list[str]:
    """The overrides of a job whose keys its run does not use, such as the momentum of AdamW.

    The keys of a schedule are left out. A sweep gives the same keys to every schedule, and each
    schedule uses only its own.
    """
    overrides_unused = []
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        if match is None or match["key"].startswith("schedule."):
            continue
        key = keys().get(match["key"])
        if key is not None and not key.used(config):
            overrides_unused.append(override)
    return overrides_unused


def _mistaken_override(argument: str, groups: Mapping[str, list[str]]) -> str | None:
    """A one-line message about a wrong override; None if it is right."""
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        if argument.startswith("~") and len(argument) > 1:
            return None
        if argument.isalpha() and argument not in keys() and argument not in groups:
            return (
                f"there is no command {argument}: expected key=value, such as earlydrop "
                "schedule=late, or earlydrop list"
            )
        return f"{argument!r} is not an override: expected key=value"
    prefix, key, value = match.groups()
    key = key.strip()
    if "_target_" in argument:
        return (
            f"{argument!r} names code to run. Configurations of earlydrop hold only plain values: "
            "give a plain value"
        )
    if (
        key == "hydra/launcher"
        and value == "slurm"
        and importlib.util.find_spec("submitit") is None
    ):
        return "hydra/launcher=slurm needs submitit: pip install 'earlydrop[slurm]'"
    if re.split("[./]", key)[0] == "hydra":
        return _mistaken_hydra_key(prefix or "", key)
    if "@" in key:
        return None
    if key_of(key) is None and key not in groups:
        return (
            f"{prefix or ''}{key} is not a key of the configuration"
            f"{meant(key, [*keys(), *groups])}; earlydrop --cfg job shows them all"
        )
    return _mistaken_option(key, value, groups)


def _mistaken_hydra_key(prefix: str, key: str) -> str | None:
    """A message about a key of Hydra that is added or removed and does not exist.

    Without a prefix Hydra finds the mistake itself.
    """
    parts = re.split("[./]", key)
    known = [f.name for f in dataclasses.fields(HydraConf)]
    if not prefix or len(parts) == 1 or parts[1] in ("", *known):
        return None
    return f"{prefix}{key} is not a key of Hydra's configuration{meant(parts[1], known)}"


def _mistaken_option(key: str, value: str, groups: Mapping[str, list[str]]) -> str | None:
    """A message if an option of a group is unknown, as in ``schedule=erly``; else None."""
    if key not in groups or not re.fullmatch(r"[\w./-]+(,[\w./-]+)*", value):
        return None
    for name in value.split(","):
        if name not in groups[key] and not (key == "experiment" and name == "null"):
            hint = f"; {_OWN_NAMES[key]}" if key in _OWN_NAMES else ""
            return (
                f"{key}={name}: there is no such option{meant(name, groups[key])}; there are "
                f"{', '.join(groups[key])}{hint}"
            )
    return None


def _unreadable(argument: str) -> str | None:
    """A message about an argument that is not UTF-8 or that Hydra cannot parse; else None.

    If the value of its key may be text, the message gives a quoted form.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    if printable(argument) != argument:
        return (
            f"{argument!r} is not UTF-8: rename the file that it names, or use a link with another "
            "name"
        )
    parser = OverridesParser.create()
    try:
        parser.parse_override(argument)
    except HydraException as error:
        reason = first_line(error)
    else:
        return None
    match = _OVERRIDE.fullmatch(argument)
    if match is None or not _may_be_text(match["key"]):
        return f"{argument} is not in Hydra's grammar: {reason}"
    value = QuotedString(match["value"], Quote.double).with_quotes()
    quoted = f"{match['prefix'] or ''}{match['key']}={value}"
    return (
        f"{argument} has characters that need quotes: write {shlex.quote(quoted)}, with both pairs "
        "of quotes"
    )


def _may_be_text(key: str) -> bool:
    """Whether the value of a key may be text. Keys below an open key may have any value."""
    if any(key.startswith(f"{open_key}.") for open_key in OPEN):
        return True
    return key in keys() and str in keys()[key].kinds


def options(further: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The options of each group: of the package, of further folders, and of installed plugins."""
    groups: dict[str, list[str]] = {}
    for root in (conf_folder(), *further):
        for path in sorted(root.rglob("*.yaml")):
            group, _, name = path.relative_to(root).with_suffix("").as_posix().partition("/")
            if not name or group == "claims":
                continue
            names = groups.setdefault(group, [])
            if name not in names:
                names.append(name)
    groups["schedule"] = list(dict.fromkeys([*schedule_options(), *groups["schedule"]]))
    for group in ("model", "data", "schedule"):
        groups[group] += [name for name in installed(group) if name not in groups[group]]
    return groups


def refuse_unknown_keys(values: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for the first of the flat keys that is not in the schema."""
    for key in values:
        if key_of(key) is None:
            raise ConfigError(f"{key} is not a key of the configuration{meant(key, keys())}")


_COMMON_NAMES = {  # a name used elsewhere: the key of earlydrop
    "learning_rate": "optim.lr",
    "dropout": "schedule.rate",
    "p": "schedule.rate",
    "batch": "trainer.batch_size",
    "dataset": "data",
}


def meant(word: str, known: Iterable[str]) -> str:
    """A text such as ``: did you mean x?`` with the nearest known word; empty if none is near.

    A common name such as ``learning_rate`` gives its key. Otherwise the whole word is compared
    first, then its last part.
    """
    known = list(known)
    last_part = word.rpartition(".")[2]
    if _COMMON_NAMES.get(last_part) in known:
        return f": did you mean {_COMMON_NAMES[last_part]}?"
    suggestions = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not suggestions:
        # reversed: of names with the same last part, the first counts
        by_last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
        close = difflib.get_close_matches(last_part, by_last_part, n=1, cutoff=0.6)
        suggestions = [by_last_part[name] for name in close]
    return f": did you mean {suggestions[0]}?" if suggestions else ""
