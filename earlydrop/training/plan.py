"""The plan of a run: durations in steps, the schedule resolved, the fingerprint and the folder. Nothing here trains."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from earlydrop.schedules import Schedule
from earlydrop.schedules.durations import duration_to_steps
from earlydrop.training.checks import check
from earlydrop.training.config import Config, ConfigError, describe_schedule, parse_schedule
from earlydrop.training.data import Source, make_source
from earlydrop.training.fingerprint import fingerprint
from earlydrop.training.names import slug, study_folder


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
        name: What the run is called: its label, or its schedule in words.
        folder: ``<out>/<study>/<label>-<fingerprint>``.
    """

    config: Config
    source: Source
    device: torch.device
    schedule: Schedule
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_steps: tuple[int, ...]
    probe_steps: tuple[int, ...]
    fingerprint: str
    name: str
    folder: Path

    @property
    def compares(self) -> bool:
        """Whether a probe measures with dropout on and off at the same weights."""
        return self.config.probe.compare and bool(self.probe_steps)


def make_plan(config: Config) -> Plan:
    """Check a configuration and work out its plan.

    Raises:
        ConfigError: A value that cannot be used, with what was expected.
    """
    check(config)
    device = choose_device(config.device)
    schedule = _schedule(config)  # before the data is read
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
        schedule = schedule.resolve(total, steps_per_epoch)
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
    digest = fingerprint(config, source, schedule, total, warmup, eval_steps, probe_steps)
    name = config.label or describe_schedule(config.schedule)
    label = slug(name) if config.label else slug(f"{name}-seed{config.seed}")
    folder = study_folder(config.out, config.study) / f"{label}-{digest}"
    return Plan(config, source, device, schedule, steps_per_epoch, total, warmup, eval_steps, probe_steps, digest, name, folder)


def _schedule(config: Config) -> Schedule:
    try:
        return parse_schedule(config.schedule)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error


_GPU_WORDS = ("gpu", "nvidia", "geforce")


def choose_device(name: str) -> torch.device:
    """The device that a configuration names; ``auto`` is the accelerator that torch finds, or the CPU.

    Raises:
        ConfigError: It is not a device, or not on this machine.
    """
    wanted = (_accelerator() or "cpu") if name == "auto" else name
    if wanted == "cuda" and "LOCAL_RANK" in os.environ:
        wanted = f"cuda:{os.environ['LOCAL_RANK']}"  # of the workers on a node each has its own
    try:
        device = torch.device(wanted)
    except RuntimeError:
        hint = "did you mean cuda? " if wanted.partition(":")[0].lower() in _GPU_WORDS else ""
        raise ConfigError(f"device={name} is not a device that torch knows; {hint}on this machine {_advice()}") from None
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        raise ConfigError(f"device={name} is not available on this machine; {_advice()}") from None
    return device


def _accelerator() -> str | None:
    """The kind of accelerator that this machine has, as torch finds it."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None else None


def _advice() -> str:
    """What can be given instead, on this machine."""
    kind = _accelerator()
    if kind is None:
        return "use device=cpu or device=auto"
    count = torch.accelerator.device_count()
    there = f" (there is {kind}:0)" if count == 1 else f" (there are {kind}:0 to {kind}:{count - 1})"
    return f"use device=cpu, device={kind}{there} or device=auto"
