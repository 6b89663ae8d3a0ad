"""The plan of a run: durations in steps, the schedule resolved, the fingerprint and the folder. Nothing here trains."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from earlydrop import schedules
from earlydrop.durations import duration_to_steps
from earlydrop.training.config import Config, ConfigError, ScheduleConfig, check
from earlydrop.training.data import Source, make_source

NUMERICS_VERSION = 1
"""Raised whenever the same configuration would give other numbers than before; part of the fingerprint."""


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a configuration before training.

    Attributes:
        config: The configuration.
        source: The images.
        device: Where it runs.
        schedule: The drop schedule, in steps.
        steps_per_epoch: Optimizer steps in an epoch.
        total_steps: Optimizer steps of the run.
        warmup_steps: Optimizer steps of the learning rate's warm-up.
        eval_steps: After how many steps the model is evaluated.
        probe_steps: After how many steps gradients are measured.
        fingerprint: Hash of what determines the numbers.
        arm: What the run stands for in a comparison: its label, or its schedule in words.
        folder: ``<out>/<study>/<label>-<fingerprint>``.
    """

    config: Config
    source: Source
    device: torch.device
    schedule: schedules.Schedule
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_steps: tuple[int, ...]
    probe_steps: tuple[int, ...]
    fingerprint: str
    arm: str
    folder: Path


def make_plan(config: Config) -> Plan:
    """Check a configuration and work out its plan.

    Args:
        config: The configuration.

    Returns:
        The plan.

    Raises:
        ConfigError: A value that cannot be used, with what was expected.
    """
    check(config)
    device = choose_device(config.device)
    try:
        parse_schedule(config.schedule)  # before the data is read
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    source = make_source(config.data, config.augment, device)
    images, batch = source.sizes["train"], config.trainer.batch_size
    if batch > images:
        raise ConfigError(f"trainer.batch_size is {batch}: the training set has only {images} images")
    steps_per_epoch = images // batch
    total = config.trainer.steps or config.trainer.epochs * steps_per_epoch

    def steps(duration: str, key: str) -> int:
        try:
            return duration_to_steps(duration, total, steps_per_epoch, key)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    try:
        schedule = parse_schedule(config.schedule).resolve(total, steps_per_epoch)
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    if config.trainer.mc_passes is not None and schedule(total) == 0:
        raise ConfigError(
            f"trainer.mc_passes is {config.trainer.mc_passes}: Monte Carlo dropout needs dropout at the end of the run, but "
            f"schedule={config.schedule.name} has rate 0 there; use schedule=constant or late, or leave mc_passes null"
        )
    every = max(steps(config.trainer.eval_every, "trainer.eval_every"), 1)
    eval_steps = tuple(sorted({*range(every, total + 1, every), total}))
    probe_steps = tuple(sorted({steps(duration, "a position in probe.at") for duration in config.probe.at}))
    warmup = steps(config.optim.warmup, "optim.warmup")
    content = _fingerprint_content(config, source, schedule, total, warmup, eval_steps, probe_steps)
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    arm = config.label or describe(config.schedule)
    label = _slug(arm) if config.label else _slug(f"{arm}-seed{config.seed}")
    folder = Path(config.out) / _slug(config.study) / f"{label}-{fingerprint}"
    return Plan(
        config, source, device, schedule, steps_per_epoch, total, warmup, eval_steps, probe_steps, fingerprint, arm, folder
    )  # fmt: skip


def choose_device(name: str) -> torch.device:
    """The device that a configuration names.

    Args:
        name: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Returns:
        The device.

    Raises:
        ConfigError: It is not a device, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device is {name!r}: not to be had here ({str(error).splitlines()[0]}); use cpu or auto") from error
    return device


def parse_schedule(config: ScheduleConfig) -> schedules.Schedule:
    """The schedule that a configuration names, with the keys that it uses.

    Args:
        config: One schema for all schedules.

    Returns:
        The schedule, durations as given.

    Raises:
        ValueError: Unknown name, or a value that the schedule refuses.
    """
    if config.name not in schedules.MAKERS:
        raise ConfigError(f"schedule.name is {config.name!r}: expected one of {', '.join(schedules.MAKERS)}")
    if config.name == "piecewise" and config.points is None:
        raise ConfigError("schedule.points is null: schedule=piecewise needs points such as '0,0@0.20,0.5@0.50,0'")
    values = {
        key: value
        for key in inspect.signature(schedules.MAKERS[config.name]).parameters
        if (value := getattr(config, key)) is not None
    }
    return schedules.from_config({"name": config.name} | values)


def describe(config: ScheduleConfig) -> str:
    """A schedule in a few words, for labels and legends.

    Args:
        config: The schedule's configuration.

    Returns:
        For example ``"early-0.1-20%"``.
    """
    words = [config.name]
    if config.name == "piecewise":
        words.append(config.points or "")
    elif config.name != "none":
        words.append(f"{config.rate:g}")
        if config.name == "curriculum":
            words += [] if config.gamma is None else [f"{config.gamma:g}"]
        elif config.name != "constant":
            words.append(config.cutoff)
    if config.shape is not None and config.name == "early" and config.shape != "linear":
        words.append(config.shape)
    if config.kind != "unit" and config.name != "none":
        words.append(config.kind)
    return "-".join(words)


_UNUSED_BY_OPTIMIZER = {
    "adamw": ("momentum",),
    "sgd": ("beta1", "beta2", "eps"),
    "rmsprop": ("momentum", "beta1", "beta2"),
}


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("%", "pct")).strip("-.")
    if not slug:
        raise ConfigError(f"{text!r} cannot name a folder: use letters and digits")
    return slug[:100]


def _used(values: dict[str, Any], unused: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in set(unused) and value is not None}


def _fingerprint_content(
    config: Config, source: Source, schedule: schedules.Schedule, total: int, warmup: int,
    eval_steps: tuple[int, ...], probe_steps: tuple[int, ...],
) -> dict[str, Any]:  # fmt: skip
    """What determines the numbers of a run, without keys that it does not use."""
    optim = _used(dataclasses.asdict(config.optim), _UNUSED_BY_OPTIMIZER[config.optim.name])
    stop = {"metric": config.trainer.stop_metric, "patience": config.trainer.stop_patience}
    augment = dataclasses.asdict(config.augment)
    drops = schedule.peak > 0
    return {
        "numerics": NUMERICS_VERSION,
        "data": {"name": config.data.name, "digest": source.digest, "image_size": source.image_size},
        "model": _used(dataclasses.asdict(config.model), () if drops else ("dropout", "profile")),
        "schedule": (schedule.to_config() | {"kind": config.schedule.kind, "masks": config.trainer.masks})
        if drops
        else {"name": "none"},
        "optim": optim | {"warmup": warmup},
        "augment": _used(augment, () if config.augment.mixup > 0 and config.augment.cutmix > 0 else ("switch",)),
        "probe": _used(dataclasses.asdict(config.probe), ()) | {"at": list(probe_steps)} if probe_steps else None,
        "steps": total,
        "batch_size": config.trainer.batch_size,
        "accumulate": config.trainer.accumulate,
        "precision": config.trainer.precision,
        "compile": config.trainer.compile,
        "log_every": config.trainer.log_every,
        "eval_steps": list(eval_steps),
        "seed": config.seed,
    } | _used({"stop": stop if config.trainer.stop_metric else None, "mc_passes": config.trainer.mc_passes}, ())
