"""The code from outside earlydrop that a run computes with."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from earlydrop import schedules
from earlydrop.training.config import Config
from earlydrop.training.data import DATASETS, code_of_data
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import BUILDERS, code_of_model
from earlydrop.training.own_measures import own_measures
from earlydrop.training.own_schedule import code_of_schedule
from earlydrop.training.plugins import OBJECT, Code, installed, is_reference


def code_of(config: Config) -> dict[str, Code]:
    """The user's own code, by the key that names it. Imports it.

    Raises:
        ConfigError: A name does not exist, or its import fails.
    """
    code = {
        "model.name": code_of_model(config.model.name),
        "data.name": code_of_data(config.data.name),
        "schedule.name": code_of_schedule(config.schedule),
    }
    own = {key: code for key, code in code.items() if code is not None}
    return own | {f"probe.measures.{label}": code for label, code in own_measures(config).items()}


def names_of(config: Config) -> list[str]:
    """The keys that name code from outside earlydrop, with their values. Imports nothing."""
    measures = config.probe.measures if config.probe.at else ()  # imported for a probe alone
    names: list[tuple[str, str, str, Container[str]]] = [
        ("model.name", config.model.name, "model", BUILDERS),
        ("data.name", config.data.name, "data", DATASETS),
        ("schedule.name", config.schedule.name, "schedule", schedules.MAKERS),
        *(("probe.measures", measure, "measure", ()) for measure in measures),
    ]
    outside = []
    for key, value, kind, ours in names:
        if value not in ours and (is_reference(value) or value in installed(kind)):
            outside.append(f"{key}={value}")
    return outside


def check_trusted(file: Path, config: Config, trust: bool, purpose: str, how: str) -> None:
    """Refuse a configuration that names code from outside earlydrop, unless it is trusted.

    Args:
        file: The file of the configuration, for the message.
        config: The configuration.
        trust: Whether the user trusts the code.
        purpose: What would import the code, such as ``building the model``.
        how: How the user says that the code is trusted, such as ``--trust``.

    Raises:
        ConfigError: The code is not trusted, or was given as an object in Python, so that no name
            imports it.
    """
    names = names_of(config)
    objects = [name for name in names if name.partition("=")[2].startswith(OBJECT)]
    if objects:
        given = f"{', '.join(objects)} was given as an object in Python, which no name imports"
        instead = "run the script that gave it, or give it to train() again"
        raise ConfigError(f"{file}: {given}: {instead}")
    if names and not trust:
        raise ConfigError(
            f"{file} names code that is not earlydrop's ({', '.join(names)}), and {purpose} would "
            f"import that code: look at it first, then say {how}"
        )


def code_record(code: Mapping[str, Code]) -> dict[str, Any]:
    """The record of the user's code: its name, its digest, and the digests of its files."""
    record = {}
    for key, own in code.items():
        record[key] = {"name": own.name, "digest": own.digest, "files": dict(own.files)}
    return record
