"""Checks of a configuration by itself, before the data and the model are read."""

from __future__ import annotations

import difflib
import math
import os

from earlydrop.metrics import METRICS, is_own
from earlydrop.training.config import SPLITS, Config
from earlydrop.training.extra import check_extra, metrics_of
from earlydrop.training.fields import BOUNDS, ConfigError
from earlydrop.training.keys import OPEN, keys, shown
from earlydrop.training.names import printable, slug
from earlydrop.training.profile import profile_window
from earlydrop.training.record.trackers import missing
from earlydrop.training.schedule_config import drops, is_own_schedule, parse_schedule


def check(config: Config) -> None:
    """Check every value that can be checked without the data or the model.

    Raises:
        ConfigError: A value is not one of the choices, out of range, or does not fit another.
    """
    _check_values(config)
    _check_schedule(config)
    _check_names(config)
    _check_path_rate(config)
    _check_arguments(config)
    check_extra(config.data)
    if config.checkpoint is not None and config.mode != "eval":
        raise ConfigError(
            f"checkpoint is {config.checkpoint!r}: expected mode=eval; otherwise leave "
            "it null, since a run resumes from its own checkpoints"
        )
    if config.optim.min_lr > config.optim.lr:
        raise ConfigError(
            f"optim.min_lr is {config.optim.min_lr:g}: expected at most optim.lr, which is "
            f"{config.optim.lr:g}"
        )
    if config.probe.at and config.probe.batches < 2:
        raise ConfigError(
            f"probe.batches is {config.probe.batches}: expected at least 2; gradient direction "
            "variance compares the gradients of two batches"
        )
    if config.probe.at and config.probe.curvature and config.optim.name != "adamw":
        raise ConfigError(
            f"probe.curvature is true: optim.name is {config.optim.name}, expected adamw; the "
            "curvature is measured along AdamW's update"
        )
    _check_splits(config)
    _check_objective(config)
    _check_tracking(config)
    _check_stop_metric(config)
    if config.probe.compare and config.probe.at and config.schedule.rate <= 0 and not drops(config):
        raise ConfigError(
            f"probe.compare is true: schedule.rate is {config.schedule.rate:g}, expected the rate "
            "to compare with, above 0"
        )
    _check_trainer(config)


def _check_values(config: Config) -> None:
    """Check the choices and bounds of each key, and that its numbers are finite and texts UTF-8.

    Arguments of a user's code, such as ``model.args``, are not checked.
    """
    for name, key in keys().items():
        value = key.of(config)
        takes_any = name == "schedule.name"  # a user's schedule is checked when the plan is made
        if key.choices and value not in key.choices and not takes_any:
            choices = ", ".join(str(choice) for choice in key.choices if choice is not None)
            raise ConfigError(f"{name} is {value!r}: expected one of {choices}")
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if isinstance(part, str) and printable(part) != part:
                raise ConfigError(
                    f"{name} is {part!r}: expected UTF-8; rename it, or use a link with another "
                    "name"
                )
            if isinstance(part, float) and not math.isfinite(part):
                finite = "finite numbers" if isinstance(value, list) else "a finite number"
                raise ConfigError(f"{name} is {value!r}: expected {finite}")
        if key.bounds is not None and value is not None:
            inside, expected = BOUNDS[key.bounds]
            if not inside(value):
                raise ConfigError(f"{name} is {value!r}: expected {expected}")


def _check_splits(config: Config) -> None:
    splits = config.evaluation.splits
    if not splits or len(set(splits)) < len(splits) or not set(splits) <= set(SPLITS):
        raise ConfigError(
            f"evaluation.splits is {splits}: expected one or more of {', '.join(SPLITS)}, each once"
        )


def _check_stop_metric(config: Config) -> None:
    watched, splits = config.trainer.stop_metric, config.evaluation.splits
    if watched is not None and watched.partition("/")[0] not in splits:
        raise ConfigError(
            f"trainer.stop_metric is {watched!r}: evaluation.splits is {splits}, which does not "
            f"measure it; add {watched.partition('/')[0]} to evaluation.splits"
        )


def _check_trainer(config: Config) -> None:
    trainer = config.trainer
    if trainer.mc_passes is not None and config.data.name == "text":
        raise ConfigError(
            f"trainer.mc_passes is {trainer.mc_passes}: Monte Carlo dropout is measured on "
            "images; leave it null"
        )
    if trainer.profile is not None:
        profile_window(trainer.profile)
    if trainer.batch_size % trainer.accumulate:
        raise ConfigError(
            f"trainer.accumulate is {trainer.accumulate}: expected a divisor of trainer.batch_size "
            f"({trainer.batch_size}), which counts the images of one optimizer step"
        )


def _check_objective(config: Config) -> None:
    """Refuse an objective that is unknown, or that the configuration does not measure."""
    name = config.objective
    if name is None:
        return
    known = name in METRICS or name.removeprefix("ema/") in metrics_of(config.data)
    if not known and not is_own(name):
        close = difflib.get_close_matches(name, METRICS, 1, 0.6)
        meant = f": did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"objective is {name!r}: expected a metric, such as test/accuracy or "
            f"train_eval/loss{meant}"
        )
    needed = needed_for(name, config)
    if needed is not None:
        state, remedy = needed
        raise ConfigError(f"objective is {name!r}: {state}, so it is not measured; give {remedy}")


def needed_for(name: str, config: Config) -> tuple[str, str] | None:
    """The reason why a metric is not measured, and a remedy: a setting, or another metric.

    None if the metric is measured.
    """
    metric = name.removeprefix("ema/")
    split, _, quantity = metric.partition("/")
    splits, trainer, probe = config.evaluation.splits, config.trainer, config.probe
    if metric != name and trainer.ema is None:
        return "trainer.ema is null", "trainer.ema=0.999"
    monte_carlo = split == "test_mc" or metric == "test/ece"
    sharpness = quantity.endswith("_sharpness")
    if monte_carlo and config.data.name == "text":
        return (
            "data.name is 'text', and Monte Carlo dropout is measured on images",
            "another metric",
        )
    if sharpness and config.optim.name != "adamw":
        return f"optim.name is {config.optim.name!r}, and curvature needs adamw", "another metric"
    if monte_carlo and trainer.mc_passes is None:
        return "trainer.mc_passes is null", "trainer.mc_passes=20"
    if split in SPLITS and split not in splits and metric != "test/ece":
        return f"evaluation.splits is {splits}", f"evaluation.splits={shown([*splits, split])}"
    if split.startswith("probe") and not probe.at:
        return "probe.at is empty", "probe=few"
    if split in ("probe_on", "probe_off") and not probe.compare:
        return "probe.compare is false", "probe.compare=true"
    if sharpness and not probe.curvature:
        return "probe.curvature is false", "probe.curvature=true"
    if is_own(metric) and not probe.measures:
        return "probe.measures is empty", "a known metric, or probe.measures=[module:function]"
    return None


def _check_tracking(config: Config) -> None:
    """Refuse a tracker that is not installed, or ``tracking=online`` where it cannot send."""
    mode, backend = config.tracking.mode, config.tracking.backend
    if mode == "off" or backend == "wandb":
        return
    prefix = f"tracking.backend is {backend!r}"
    if missing(backend):
        raise ConfigError(
            f"{prefix}: {backend} is not installed; pip install 'earlydrop[{backend}]'"
        )
    if mode == "online" and backend != "mlflow":
        raise ConfigError(
            f"{prefix}, tracking is online: it writes files on this machine and sends nothing; "
            "use tracking=offline"
        )
    if mode == "online" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            f"{prefix}, tracking is online: MLFLOW_TRACKING_URI is not set; set it to the server's "
            "address, or use tracking=offline"
        )


def _check_schedule(config: Config) -> None:
    """Check the values of a built-in schedule. A user's is checked when the plan is made."""
    if not is_own_schedule(config):
        try:
            parse_schedule(config.schedule)
        except ValueError as error:
            raise ConfigError(f"schedule: {error}") from error


def _check_path_rate(config: Config) -> None:
    """Refuse ``schedule.path_rate`` where it cannot set a second peak beside ``schedule.rate``.

    With ``schedule=none`` a value above 0 is ignored if ``schedule.kind`` is ``all``.
    """
    schedule = config.schedule
    if schedule.path_rate is None:
        return
    given = f"schedule.path_rate is {schedule.path_rate:g}"
    if schedule.kind != "all":
        raise ConfigError(
            f"{given}: a second peak, for the path sites, needs schedule.kind=all; schedule.kind "
            f"is {schedule.kind!r}, so leave schedule.path_rate null"
        )
    if drops(config) and not keys()["schedule.rate"].used(config):
        raise ConfigError(
            f"{given}: schedule={schedule.name} has no schedule.rate, so it takes no second peak; "
            "leave schedule.path_rate null"
        )
    if schedule.path_rate == 0:
        raise ConfigError(
            f"{given}: expected more than 0; schedule.kind=unit leaves the path sites off"
        )
    if schedule.rate == 0 and schedule.name != "none":
        raise ConfigError(
            f"{given} and schedule.rate is 0: to drive the path sites alone, give "
            "schedule.kind=path and schedule.rate"
        )


def _check_arguments(config: Config) -> None:
    """Refuse a key of ``args`` that is no valid name, or whose value is a mapping.

    A list may hold mappings.
    """
    for key in OPEN:
        if not key.endswith(".args"):
            continue
        for name, value in keys()[key].of(config).items():
            if not str(name).isidentifier():
                raise ConfigError(
                    f"{key} has {name!r}: expected the name of an argument, such as {key}.width"
                )
            if isinstance(value, dict):
                raise ConfigError(
                    f"{key}.{name} is {value!r}: expected a number, a text, true, false, null, or "
                    "a list"
                )


_NOT_IN_PROJECTS = "/\\#?%:"  # characters that W&B refuses in the name of a project


def _check_names(config: Config) -> None:
    """Check the names of folders, and the names and tags that the dashboard shows."""
    for key, name in (("study", config.study), ("label", config.label)):
        if name is None:
            continue
        has_bad_character = any(c in "/\\" or not c.isprintable() for c in name)
        if has_bad_character or not name.strip(" ."):
            raise ConfigError(
                f"{key} is {name!r}: expected one plain name for a folder: printable characters "
                "without / and \\, not only dots and spaces"
            )
        slug(name, key)
    refused = [c for c in config.project if c in _NOT_IN_PROJECTS or not c.isprintable()]
    if not 0 < len(config.project) <= 128 or refused:
        raise ConfigError(
            f"project is {config.project!r}: expected 1 to 128 printable characters without "
            f"{' '.join(_NOT_IN_PROJECTS)}"
        )
    for tag in config.tags:
        if not 0 < len(tag) <= 64:
            raise ConfigError(f"tags holds {tag!r}: a tag has 1 to 64 characters")
    if not config.out.strip() or "\0" in config.out:
        raise ConfigError(f"out is {config.out!r}: expected a folder")
