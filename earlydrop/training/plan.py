"""The plan of a run: durations in steps, the schedule resolved, the fingerprint and the folder. Nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from earlydrop.schedules import MAKERS, Schedule
from earlydrop.schedules.durations import duration_to_steps
from earlydrop.training.checks import check
from earlydrop.training.config import Config
from earlydrop.training.data import Source, make_source
from earlydrop.training.data.source import Once, alone
from earlydrop.training.device import choose_device
from earlydrop.training.fields import ConfigError
from earlydrop.training.fingerprint import fingerprint
from earlydrop.training.models.pretrained import pretrained_digest
from earlydrop.training.names import run_label, study_folder
from earlydrop.training.outside import code_of
from earlydrop.training.own_schedule import own_schedule
from earlydrop.training.plugins import Code
from earlydrop.training.schedule_config import describe_schedule, parse_path_schedule, parse_schedule


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
        path_schedule: The drop schedule of the path sites, in steps, where they have a peak of their own; else None.
        code: What it computes with that is somebody's own, by the key that names it.
        configuration: The fingerprint without that code: the same for a run whose code was changed, and nothing else.
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
    path_schedule: Schedule | None = None
    code: Mapping[str, Code] = field(default_factory=dict)
    configuration: str = ""

    @property
    def compares(self) -> bool:
        """Whether a probe measures with dropout on and off at the same weights."""
        return self.config.probe.compare and bool(self.probe_steps)


def make_plan(config: Config, once: Once = alone) -> Plan:
    """Check a configuration and work out its plan.

    ``once`` is given what one worker can do for all of them, such as to list the files of an image folder.

    Raises:
        ConfigError: A value that cannot be used, with what was expected.
    """
    check(config)
    device = choose_device(config.device)
    schedule, path_schedule = _schedules(config)  # before the data is read
    code = code_of(config)
    if evaluates_alone(config):
        return _plan_of_weights(config, device, code, once)
    source = make_source(config.data, config.augment, device, planning=config.mode == "plan", once=once)
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
        path_schedule = path_schedule and path_schedule.resolve(total, steps_per_epoch)
    except ConfigError:
        raise
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
    pretrained = pretrained_digest(config.model.pretrained) if config.model.pretrained is not None else None

    def hashed(own: Mapping[str, str]) -> str:
        return fingerprint(config, source, schedule, total, warmup, eval_steps, probe_steps, own, pretrained)

    digest = hashed({key: each.digest for key, each in code.items()})
    name = config.label or describe_schedule(config.schedule)
    folder = _folder(config, name, digest)
    return Plan(
        config=config,
        source=source,
        device=device,
        schedule=schedule,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        eval_steps=eval_steps,
        probe_steps=probe_steps,
        fingerprint=digest,
        name=name,
        folder=folder,
        path_schedule=path_schedule,
        code=code,
        configuration=hashed({}),
    )


def _folder(config: Config, name: str, digest: str) -> Path:
    label = run_label(config.label, name, config.seed)
    return study_folder(config.out, config.study) / f"{label}-{digest}"


def evaluates_alone(config: Config) -> bool:
    """Whether weights that ``checkpoint`` names are evaluated, which takes neither a length nor a schedule.

    Standard dropout is the exception: its evaluation scales by the rate of the step that the weights are from.
    """
    return config.checkpoint is not None and config.model.dropout != "standard"


def _plan_of_weights(config: Config, device: torch.device, code: Mapping[str, Code], once: Once) -> Plan:
    """A plan without steps, which reads the splits that are evaluated and no others."""
    read = {"test" if split == "test" else "train" for split in config.evaluation.splits}
    splits = [split for split in ("train", "test") if split in read]
    source = make_source(config.data, config.augment, device, splits, once=once)
    schedule = MAKERS["none"]()
    digest = fingerprint(config, source, schedule, 0, 0, [], [], {key: each.digest for key, each in code.items()})
    name = config.label or describe_schedule(config.schedule)
    return Plan(
        config=config,
        source=source,
        device=device,
        schedule=schedule,
        steps_per_epoch=0,
        total_steps=0,
        warmup_steps=0,
        eval_steps=(),
        probe_steps=(),
        fingerprint=digest,
        name=name,
        folder=_folder(config, name, digest),
        code=code,
    )


def _schedules(config: Config) -> tuple[Schedule, Schedule | None]:
    """The schedule, and that of the path sites where they have a peak of their own."""
    try:
        if config.schedule.name not in MAKERS:
            if config.schedule.path_rate is not None:
                raise ConfigError(
                    f"schedule.path_rate is {config.schedule.path_rate:g}: a schedule of your own gives both kinds of sites one "
                    "rate; leave it null"
                )
            return own_schedule(config.schedule), None
        return parse_schedule(config.schedule), parse_path_schedule(config.schedule)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
