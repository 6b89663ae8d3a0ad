"""Composing configurations with Hydra, and reading them back from plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError
from earlydrop.training.keys import expected, keys, upgraded
from earlydrop.training.names import first_line, study_folder
from earlydrop.training.plugins import installed
from earlydrop.training.schedule_config import schedule_options


def conf_folder() -> Path:
    """The folder of configuration files: the repository's where there is one, else the package's.

    Raises:
        FileNotFoundError: Neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration files beside {package}: install earlydrop again")


def results_folder() -> Path | None:
    """The repository's folder of results, in a clone or an editable install; a wheel has none."""
    folder = Path(__file__).resolve().parents[2] / "results"
    return folder if folder.is_dir() else None


def register_schema() -> None:
    """Register the schema with Hydra.

    Schedules, and names that installed packages offer, become options if they have no
    configuration file.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("study_folder", _study_folder, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, values in schedule_options().items():
        if not (conf_folder() / "schedule" / f"{name}.yaml").is_file():
            store.store(group="schedule", name=name, node=values)
    for group in ("model", "data", "schedule"):
        for name in installed(group):
            if (
                name not in schedule_options()
                and not (conf_folder() / group / f"{name}.yaml").is_file()
            ):
                store.store(group=group, name=name, node={"name": name})


def _study_folder(out: str, study: str) -> str:
    """The folder of a sweep's files, which is the study's folder."""
    try:
        return str(study_folder(out, study))
    except ConfigError:  # each job reports the error
        return str(Path(out).expanduser())


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration that a command line with these overrides gives, as nested plain values."""
    return _composed(overrides)[0]


def compose_one(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the configuration of one run. Sweeps are refused.

    Raises:
        ConfigError: An unknown key or option, a value of the wrong type, or several values for one
            key.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        swept = [str(item.key_or_group) for item in parsed if item.is_sweep_override()]
        values: dict[str, Any] = {}
        if not swept:
            values, params = _composed(overrides)
            once = {str(item.key_or_group) for item in parsed}
            swept = [key for key in params if key not in once]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    if swept:
        raise ConfigError(
            f"these overrides sweep over {', '.join(swept)}: give one value of each, such as "
            f"{swept[0]}=..., or run the sweep with "
            "the command earlydrop"
        )
    return values


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A configuration, and the keys that its experiment sweeps over."""
    import hydra
    from omegaconf import OmegaConf, open_dict

    register_schema()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        whole = hydra.compose("config", list(overrides), return_hydra_config=True)
    params = [str(key) for key in dict(whole.hydra.sweeper.get("params") or {})]
    with open_dict(whole):
        del whole["hydra"]
    values: dict[str, Any] = OmegaConf.to_container(whole, resolve=True)  # type: ignore[assignment]
    return values, params


def one_line(error: Exception) -> str:
    """Hydra's error about a configuration, in one line, without most of its inner details."""
    sweep = re.search(r"Ambiguous value for argument '(.*?)'", str(error))
    if sweep is not None:
        return f"{sweep[1]} is a sweep: add -m"
    wrong = re.match(r"Error merging override ((\S+?)=.*)", str(error))
    if wrong is not None and wrong[2] in keys():
        words = expected(keys()[wrong[2]])
        return f"{wrong[1]}: expected {words[0].lower()}{words[1:]}"
    text = f"{error}\n{error.__cause__}" if error.__cause__ is not None else str(error)
    lines = [line.strip() for line in text.splitlines()]
    internal = ("full_key", "object_type", "reference_type")
    message = ": ".join(
        line.rstrip(":") for line in lines if line and not line.startswith(internal)
    )
    return re.sub(
        r"Merge error: \w+ is not a subclass of (\w+)Config\. value:", _group_is_no_value, message
    )


def _group_is_no_value(match: re.Match[str]) -> str:
    """The text that replaces Hydra's merge error where a group of keys has a single value.

    An example is ``tracking: off``, which was valid in earlier versions. Hydra's text goes on with
    the value, so the replacement ends with "not".
    """
    name = match[1].lower()
    first = next(key for key in keys() if key.startswith(f"{name}."))
    key = first.partition(".")[2]
    return f"{name} is a group of keys, such as {first}; write {name}: {{{key}: ...}}, not"


def _literal(value: Any) -> Any:
    """Escape ``${`` in values: a configuration from somebody else is never interpolated."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return literal(value) if isinstance(value, str) else value


def literal(text: str) -> str:
    """Escape ``${`` so that OmegaConf reads it literally."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Make a configuration from nested plain values; missing keys take their defaults.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(  # type: ignore[return-value]
            OmegaConf.merge(OmegaConf.structured(Config), _literal(upgraded(values)))
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {first_line(error)}") from error
