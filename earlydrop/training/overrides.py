"""Mistakes on the command line, found before Hydra starts, each with a suggestion."""

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
from earlydrop.training.keys import OPEN, key_of, keys
from earlydrop.training.names import printable
from earlydrop.training.plugins import installed
from earlydrop.training.schedule_config import schedule_options

_FLAGS = {  # of Hydra's command line: whether a value follows
    **dict.fromkeys(
        (
            "--help",
            "-h",
            "--hydra-help",
            "--version",
            "--resolve",
            "--run",
            "-r",
            "--multirun",
            "-m",
        ),
        False,
    ),
    **dict.fromkeys(
        (
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
        ),
        True,
    ),
    **dict.fromkeys(("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"), True),
}
_ONE_OF = {  # of these Hydra does one at a time
    "-m": ("-m", "--multirun"),
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
_OVERRIDE = re.compile(r"(\+\+|\+|~)?([^=]+)=(.*)", re.DOTALL)


def mistake(arguments: Iterable[str]) -> str | None:
    """The first argument with an unknown flag, key or option, in a line; None if there is none."""
    arguments = list(arguments)
    groups = options(config_dirs(arguments))
    flags_given = {argument.partition("=")[0] for argument in arguments}
    given = [name for name, flags in _ONE_OF.items() if flags_given.intersection(flags)]
    if len(given) > 1:
        return f"{' and '.join(given)} do not go together: give one of them"
    value_follows = False
    for argument in arguments:
        if value_follows:
            value_follows = False
        elif argument.startswith("-"):
            flag, equals, _ = argument.partition("=")
            if flag not in _FLAGS:
                return (
                    f"there is no flag {flag}{meant(flag, _FLAGS)}; earlydrop --help shows what "
                    "there is"
                )
            value_follows = _FLAGS[flag] and not equals
        else:
            wrong = _mistaken_override(argument, groups) or _unreadable(argument)
            if wrong is not None:
                return wrong
    return None


def config_dirs(arguments: Iterable[str]) -> list[Path]:
    """The folders of configurations that a command line adds with ``--config-dir``."""
    folders, follows = [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if follows:
            folders.append(Path(argument))
        follows = not follows and not equals and argument in _CONFIG_DIR
        if equals and flag in _CONFIG_DIR:
            folders.append(Path(value))
    return folders


def with_own_keys(arguments: Iterable[str]) -> list[str]:
    """A command line that adds or changes keys below open ones.

    They are written as ``model.args.width=64`` or as ``model.args={width:64}``.
    """
    own = re.compile(rf"\+?(?=(?:{'|'.join(map(re.escape, OPEN))})(?:\.\w|=\{{))")
    line = []
    for argument in arguments:
        line.append(own.sub("++", argument, count=1) if own.match(argument) else argument)
    return line


def unused(overrides: Iterable[str], config: Config) -> list[str]:
    """The overrides of a job whose keys its run does not use, such as the momentum of AdamW.

    A schedule's keys are left out: a sweep gives them to all its schedules, each of which takes its
    own.
    """
    overrides_unused = []
    for override in overrides:
        match = _OVERRIDE.fullmatch(override)
        key = (
            keys().get(match[2])
            if match is not None and not match[2].startswith("schedule.")
            else None
        )
        if key is not None and not key.used(config):
            overrides_unused.append(override)
    return overrides_unused


def _mistaken_override(argument: str, groups: Mapping[str, list[str]]) -> str | None:
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        if argument.startswith("~") and len(argument) > 1:
            return None
        if argument.isalpha() and argument not in keys() and argument not in groups:
            return (
                f"there is no command {argument}: expected key=value, such as earlydrop "
                "schedule=late, or earlydrop list"
            )
        return f"{argument!r} is no override: expected key=value"
    prefix, key, value = match.groups()
    key = key.strip()
    if "_target_" in argument:
        return (
            f"{argument!r} names code to run: configurations of earlydrop hold plain values, give "
            "one of those"
        )
    if (
        key == "hydra/launcher"
        and value == "slurm"
        and importlib.util.find_spec("submitit") is None
    ):
        return "hydra/launcher=slurm needs submitit: pip install 'earlydrop[slurm]'"
    if re.split("[./]", key)[0] == "hydra":
        part = re.split("[./]", key + ".")[1]
        known = [f.name for f in dataclasses.fields(HydraConf)]
        return (
            f"{prefix}{key} is no key of Hydra's configuration{meant(part, known)}"
            if prefix and part not in (*known, "")
            else None
        )
    if "@" in key:
        return None
    if key_of(key) is None and key not in groups:
        return (
            f"{prefix or ''}{key} is no key of the configuration"
            f"{meant(key, [*keys(), *groups])}; earlydrop --cfg job shows them all"
        )
    if key in groups and re.fullmatch(r"[\w./-]+(,[\w./-]+)*", value):
        for name in value.split(","):
            if name not in (*groups[key], "null"):
                own = f"; {_OWN_NAMES[key]}" if key in _OWN_NAMES else ""
                return (
                    f"{key}={name}: there is no such option{meant(name, groups[key])}; there are "
                    f"{', '.join(groups[key])}{own}"
                )
    return None


def _unreadable(argument: str) -> str | None:
    """The reason why Hydra cannot parse an argument, with quotes that mend it; None if it can."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    if printable(argument) != argument:
        return f"{argument!r} is not UTF-8: rename what it names, or go by a link with another name"
    parser = OverridesParser.create()
    try:
        parser.parse_override(argument)
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
    else:
        return None
    match = _OVERRIDE.fullmatch(argument)
    if match is None or match[2] not in keys() or str not in keys()[match[2]].kinds:
        return f"{argument} is not in Hydra's grammar: {reason}"
    key, value = match[2], match[3]
    quoted = f"{match[1] or ''}{key}={QuotedString(value, Quote.double).with_quotes()}"
    return (
        f"{argument} has characters that need quotes: write {shlex.quote(quoted)}, quotes within "
        "quotes"
    )


def options(further: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The options of each group: the package's, those of further folders, and installed names."""
    groups: dict[str, list[str]] = {}
    for root in (conf_folder(), *further):
        for path in sorted(root.rglob("*.yaml")):
            group, _, name = path.relative_to(root).with_suffix("").as_posix().partition("/")
            if name and group != "claims" and name not in groups.setdefault(group, []):
                groups[group].append(name)
    groups["schedule"] = list(dict.fromkeys([*schedule_options(), *groups["schedule"]]))
    for group in ("model", "data", "schedule"):
        groups[group] += [name for name in installed(group) if name not in groups[group]]
    return groups


def unknown_keys(values: Mapping[str, Any]) -> str | None:
    """The first dotted key that the schema does not have, in a line; None if there is none."""
    for key in values:
        if key_of(key) is None:
            return f"{key} is no key of the configuration{meant(key, keys())}"
    return None


_MEANT = {
    "learning_rate": "optim.lr",
    "dropout": "schedule.rate",
    "p": "schedule.rate",
    "batch": "trainer.batch_size",
    "dataset": "data",
}


def meant(word: str, known: Iterable[str]) -> str:
    """A question with the nearest known word, by the whole word or its last part; may be empty."""
    known = list(known)
    suggestions = [_MEANT[last] for last in [word.rpartition(".")[2]] if _MEANT.get(last) in known]
    suggestions = suggestions or difflib.get_close_matches(word, known, 1, 0.6)
    if not suggestions:
        last = {name.rpartition(".")[2]: name for name in reversed(known)}
        suggestions = [
            last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], last, 1, 0.6)
        ]
    return f": did you mean {suggestions[0]}?" if suggestions else ""
