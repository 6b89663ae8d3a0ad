"""All code from outside earlydrop that a run computes with, and how it is told apart from the run's other settings."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from earlydrop import schedules
from earlydrop.training.config import Config
from earlydrop.training.data import DATASETS, code_of_data
from earlydrop.training.models import BUILDERS, code_of_model
from earlydrop.training.own_measures import own_measures
from earlydrop.training.own_schedule import code_of_schedule
from earlydrop.training.plugins import Code, installed, is_reference


def code_of(config: Config) -> dict[str, Code]:
    """Everything that is somebody's own, by the key that names it. Imports it.

    Raises:
        ConfigError: A name stands for nothing, or its import fails.
    """
    found = {
        "model.name": code_of_model(config.model.name),
        "data.name": code_of_data(config.data.name),
        "schedule.name": code_of_schedule(config.schedule),
    }
    own = {key: code for key, code in found.items() if code is not None}
    return own | {f"probe.measures.{label}": code for label, code in own_measures(config).items()}


def names_of(config: Config) -> list[str]:
    """The keys of a configuration that name code from outside earlydrop, with their values. Imports nothing."""
    named: list[tuple[str, str, str, Container[str]]] = [
        ("model.name", config.model.name, "model", BUILDERS),
        ("data.name", config.data.name, "data", DATASETS),
        ("schedule.name", config.schedule.name, "schedule", schedules.MAKERS),
        *(("probe.measures", each, "measure", ()) for each in config.probe.measures),
    ]
    return [
        f"{key}={value}"
        for key, value, kind, ours in named
        if value not in ours and (is_reference(value) or value in installed(kind))
    ]


def in_provenance(code: Mapping[str, Code]) -> dict[str, Any]:
    """What a run records of somebody's code: its name, its digest, and those of its files."""
    return {key: {"name": each.name, "digest": each.digest, "files": dict(each.files)} for key, each in code.items()}
