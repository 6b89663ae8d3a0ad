"""The plan of a run: durations in steps, the resolved schedule, the fingerprint, the folder."""

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
from earlydrop.training.data.extra import splits_needed
from earlydrop.training.data.source import Once, alone
from earlydrop.training.device import choose_device, refuse_precision
from earlydrop.training.fields import ConfigError
from earlydrop.training.fingerprint import fingerprint
from earlydrop.training.models.pretrained import pretrained_digest
from earlydrop.training.names import run_label, study_folder
from earlydrop.training.outside import code_of
from earlydrop.training.own_schedule import own_schedule
from earlydrop.training.plugins import Code
from earlydrop.training.profile import profile_window
from earlydrop.training.schedule_config import (
    describe_schedule,
    parse_path_schedule,
    parse_schedule,
)


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a configuration before training.

    Attributes:
        config: The configuration.
        source: The data.
        device: Where it runs.
        schedule: The drop schedule, in steps.
        steps_per_epoch: Optimizer steps in an epoch.
        total_steps: Optimizer steps of the run.
        warmup_steps: Optimizer steps of the learning rate's warm-up.
        eval_steps: After how many steps the model is evaluated.
        probe_steps: After how many steps gradients are measured.
        fingerprint: Hash of everything that determines the numbers.
        name: The run's label, or its schedule in words.
        folder: ``<out>/<study>/<label>-<fingerprint>``; without a label, the schedule in words and
            the seed stand in its place.
        path_schedule: The drop schedule of the path sites, in steps, where they have a peak of
            their own; else None.
        code: The user's own code that it computes with, by the key that names it.
        configuration: The fingerprint without the user's own code. Runs that differ only in this
            code share it. Empty where only the weights of ``checkpoint`` are evaluated.
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

    Args:
        config: The configuration.
        once: Called with work that one worker can do for all, such as listing an image folder.

    Returns:
        The plan.

    Raises:
        ConfigError: A value that cannot be used, with what was expected.
    """
    check(config)
    device = choose_device(config.device)
    refuse_precision(config.trainer.precision, device)
    given_schedules = _schedules(config)  # before the data is read
    code = code_of(config)
    if evaluates_checkpoint_only(config):
        return _plan_of_weights(config, device, code, once)
    source = make_source(
        config.data, config.augment, device, planning=config.mode == "plan", once=once
    )
    steps_per_epoch = _steps_per_epoch(config, source)
    total = config.trainer.steps or config.trainer.epochs * steps_per_epoch
    schedule, path_schedule = _resolved(given_schedules, total, steps_per_epoch)
    _check_end(config, schedule, total)
    eval_steps, probe_steps, warmup = _steps(config, total, steps_per_epoch)

    def hashed(digests: Mapping[str, str]) -> str:
        pretrained = config.model.pretrained
        return fingerprint(
            config,
            source,
            schedule,
            total=total,
            warmup=warmup,
            eval_steps=eval_steps,
            probe_steps=probe_steps,
            code=digests,
            pretrained=pretrained_digest(pretrained) if pretrained is not None else None,
        )

    digest = hashed({key: own.digest for key, own in code.items()})
    name = config.label or describe_schedule(config.schedule)
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
        folder=_folder(config, name, digest),
        path_schedule=path_schedule,
        code=code,
        configuration=hashed({}),
    )


def _steps_per_epoch(config: Config, source: Source) -> int:
    images, batch = source.sizes["train"], config.trainer.batch_size
    if batch > images:
        raise ConfigError(
            f"trainer.batch_size is {batch}: the training set has only {images} images"
        )
    return images // batch


def _steps(
    config: Config, total: int, steps_per_epoch: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The steps of evaluations and of probes, and the length of the warm-up."""

    def steps(duration: str, key: str) -> int:
        try:
            return duration_to_steps(duration, total, steps_per_epoch, key)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    every = max(steps(config.trainer.eval_every, "trainer.eval_every"), 1)
    eval_steps = sorted({*range(every, total + 1, every), total})
    probe_steps = sorted({steps(time, "a position in probe.at") for time in config.probe.at})
    return tuple(eval_steps), tuple(probe_steps), steps(config.optim.warmup, "optim.warmup")


def _resolved(
    given: tuple[Schedule, Schedule | None], total: int, steps_per_epoch: int
) -> tuple[Schedule, Schedule | None]:
    """The two schedules with their durations in steps."""
    schedule, path_schedule = given
    try:
        schedule = schedule.resolve(total, steps_per_epoch)
        if path_schedule is not None:
            path_schedule = path_schedule.resolve(total, steps_per_epoch)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    return schedule, path_schedule


def _check_end(config: Config, schedule: Schedule, total: int) -> None:
    """Refuse keys that do not fit the end of the run.

    Raises:
        ConfigError: Monte Carlo dropout at rate 0, or a profile that begins after the last step.
    """
    passes, profile = config.trainer.mc_passes, config.trainer.profile
    if passes is not None and schedule(total) == 0:
        raise ConfigError(
            f"trainer.mc_passes is {passes}: Monte Carlo dropout needs dropout at the end of the "
            f"run, but schedule={config.schedule.name} has rate 0 there; use schedule=constant or "
            "late, or leave mc_passes null"
        )
    if profile is not None and profile_window(profile)[0] >= total:
        raise ConfigError(
            f"trainer.profile is {profile!r}: the run ends after {total} steps; give an earlier "
            "window"
        )


def _folder(config: Config, name: str, digest: str) -> Path:
    label = run_label(config.label, name, config.seed)
    return study_folder(config.out, config.study) / f"{label}-{digest}"


def evaluates_checkpoint_only(config: Config) -> bool:
    """Whether only the weights of ``checkpoint`` are evaluated, without a length or a schedule.

    Standard dropout is the exception: its evaluation scales by the rate of the step that the
    weights are from.
    """
    return config.checkpoint is not None and config.model.dropout != "standard"


def _plan_of_weights(
    config: Config, device: torch.device, code: Mapping[str, Code], once: Once
) -> Plan:
    """A plan without steps.

    It reads only the splits that are evaluated or that ``data.extra`` needs.
    """
    read = {"test" if split == "test" else "train" for split in config.evaluation.splits}
    read |= splits_needed(config.data)
    splits = [split for split in ("train", "test") if split in read]
    source = make_source(config.data, config.augment, device, splits, once=once)
    schedule = MAKERS["none"]()
    digest = fingerprint(
        config,
        source,
        schedule,
        total=0,
        warmup=0,
        eval_steps=[],
        probe_steps=[],
        code={key: own.digest for key, own in code.items()},
    )
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
                    f"schedule.path_rate is {config.schedule.path_rate:g}: a schedule of your own "
                    "gives both kinds of sites one "
                    "rate; leave it null"
                )
            return own_schedule(config.schedule), None
        return parse_schedule(config.schedule), parse_path_schedule(config.schedule)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
