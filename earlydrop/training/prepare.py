"""The model of a run before its first step: built, driven, and refused where it cannot train."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from earlydrop.scheduler import DropoutScheduler
from earlydrop.sites import Kind, find_sites
from earlydrop.sites.audit import audit
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.compiler import compiler_problem
from earlydrop.training.device import device_problem
from earlydrop.training.distributed import check_parts
from earlydrop.training.evaluate import autocast
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import INPUT_DROPOUT, Task, build_model
from earlydrop.training.peaks import Driver, TwoPeaks
from earlydrop.training.plan import Plan
from earlydrop.training.plugins import raised
from earlydrop.training.refuse import check_measures, check_probe_batches


def checked_model(plan: Plan, workers: int) -> tuple[nn.Module, Driver | None]:
    """Build the model of a run and its driver, after every check that needs no folder.

    Args:
        plan: The plan.
        workers: The number of workers of the run.

    Raises:
        ConfigError: The workers cannot share a batch or the probes, torch.compile does not work, or
            the model does not suit the run.
    """
    check_parts(plan.config.trainer.accumulate, plan.config.trainer.batch_size, workers)
    check_probe_batches(plan, workers)
    check_measures(plan, workers)
    refuse_broken_compiler(plan)
    model, scheduler = scheduled_model(plan)
    refuse_batch_norm(model, plan, workers)
    try_forward(model, plan)
    refuse_what_still_drops(model, plan)
    return model, scheduler


def scheduled_model(plan: Plan) -> tuple[nn.Module, Driver | None]:
    """Make the model at its initial weights, and the driver of its dropout.

    The driver is None for a schedule that never drops, unless a probe compares with dropout on.

    Raises:
        ConfigError: The model has no site of the scheduled kind, or ``trainer.channels_last`` is
            true and the model has no convolution.
    """
    config, task = plan.config, task_of(plan)
    kind = cast(Kind, config.schedule.kind)  # `check` has refused other values
    model = build_model(config.model, task, config.seed)
    model = model.to(plan.device)
    if config.trainer.channels_last:
        if not any(p.dim() == 4 for p in model.parameters()):
            raise ConfigError(
                f"trainer.channels_last is true: model.name={config.model.name} has no "
                "convolution; leave it false"
            )
        # The output of a convolution has the layout of its weights.
        model = model.to(memory_format=torch.channels_last)
    if task.unit == task.path == 0:
        return model, None
    options: dict[str, Any] = {
        "sites": _driven if config.model.input_dropout else None,
        "masks": config.trainer.masks,
    }
    try:
        if plan.path_schedule is None:
            return model, DropoutScheduler(model, plan.schedule, kind=kind, **options)
        unit_scheduler = DropoutScheduler(model, plan.schedule, kind="unit", **options)
        path_scheduler = DropoutScheduler(model, plan.path_schedule, kind="path", **options)
        return model, TwoPeaks(unit_scheduler, path_scheduler)
    except ValueError as error:
        raise ConfigError(
            f"schedule.kind is {kind!r}, model.name is {config.model.name!r}: {error}; or train it "
            "without dropout, with schedule=none"
        ) from error


def task_of(plan: Plan) -> Task:
    """The task that the model is built for."""
    config, peak, source = plan.config, plan.schedule.peak, plan.source
    if peak == 0 and plan.compares:
        # The schedule never drops, but a probe turns the sites on.
        peak = config.schedule.rate
    unit = peak if config.schedule.kind in ("unit", "all") else 0.0
    path = peak if config.schedule.kind in ("path", "all") else 0.0
    if peak > 0 and config.schedule.path_rate is not None:
        path = config.schedule.path_rate
    return Task(
        channels=source.channels,
        classes=source.classes,
        image_size=source.image_size,
        unit=unit,
        path=path,
        context=source.context,
    )


# Errors that a model of another library may raise if the size of the input does not fit.
_OF_INPUT = (
    RuntimeError,
    AssertionError,
    ValueError,
    NotImplementedError,
    TypeError,
    IndexError,
)


def try_forward(model: nn.Module, plan: Plan) -> None:
    """Refuse a model that cannot take a blank image or text. Model and random state stay unchanged.

    Raises:
        ConfigError: The model cannot take an input of this shape, or does not return one finite
            score for each class.
    """
    source, name = plan.source, plan.config.model.name
    image = source.blank(1, plan.device)
    own = plan.code.get("model.name")
    try:
        with leave_no_trace(model), torch.no_grad(), autocast(plan):
            scores = model.eval()(image)
    except Exception as error:
        refuse_device_problem(error, plan)
        if own is not None:
            raise ConfigError(
                f"model.name is {name!r}: an input of shape {tuple(image.shape)} raised "
                f"{raised(error, own.paths)}; fix the model, or "
                "give it other data"
            ) from error
        if not isinstance(error, _OF_INPUT):
            raise
        raise ConfigError(
            f"model.name is {name!r}: it cannot take {source.image_size}-pixel images of "
            f"{source.channels} channels "
            f"({(str(error).splitlines() or ['?'])[0]}); give another model, or other images with "
            "data.image_size"
        ) from error
    expected = (
        (1, source.classes) if source.context is None else (1, source.context, source.classes)
    )
    if not isinstance(scores, torch.Tensor):
        raise ConfigError(
            f"model.name is {name!r}: it gives a {type(scores).__name__}, expected scores of shape "
            f"{expected}"
        )
    if tuple(scores.shape) != expected:
        raise ConfigError(
            f"model.name is {name!r}: it gives scores of shape {tuple(scores.shape)} for one "
            f"example, expected {expected}"
        )
    if not scores.isfinite().all():
        raise ConfigError(
            f"model.name is {name!r}: it gives {scores[~scores.isfinite()][0]} for a blank "
            "example; fix the model"
        )


def refuse_device_problem(error: Exception, plan: Plan) -> None:
    """Turn a limit of the device, such as its memory, into an error of one line.

    Raises:
        ConfigError: The error is such a limit.
    """
    problem = device_problem(error, plan.config)
    if problem is not None:
        raise ConfigError(problem) from error


def refuse_broken_compiler(plan: Plan) -> None:
    """Refuse ``trainer.compile`` on a machine where torch.compile does not work."""
    problem = compiler_problem(plan.device.type) if plan.config.trainer.compile else None
    if problem is not None:
        raise ConfigError(
            f"trainer.compile is true, and torch.compile does not work on this machine: {problem}; "
            "or set trainer.compile=false"
        )


def refuse_batch_norm(model: nn.Module, plan: Plan, workers: int) -> None:
    """Refuse BatchNorm on several workers: each would use the statistics of its images alone."""
    if workers == 1:
        return
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        raise ConfigError(
            f"model.name is {plan.config.model.name!r}: {name} is a BatchNorm, whose statistics "
            f"{workers} workers cannot share; "
            "train it in one process"
        )


def refuse_what_still_drops(model: nn.Module, plan: Plan) -> None:
    """Refuse a model that still drops when its schedule is at rate 0.

    Two blank examples pass through the model. The model and random state stay unchanged. Input
    dropout is allowed: by design no schedule drives it.

    Raises:
        ConfigError: Something else still drops, so the arms of a study would not be as declared.
    """
    source = plan.source
    images = source.blank(2, plan.device)
    kind = cast(Kind, plan.config.schedule.kind if plan.schedule.peak > 0 else "all")
    try:
        with autocast(plan):
            audited = audit(model, images, kind=kind)
    except Exception as error:  # such as BatchNorm over a single value
        refuse_device_problem(error, plan)
        own = plan.code.get("model.name")
        if own is not None:
            raise ConfigError(
                f"model.name is {plan.config.model.name!r}: in training mode, inputs of shape "
                f"{tuple(images.shape)} raised {raised(error, own.paths)}; fix the model, or give "
                "it other data"
            ) from error
        if not isinstance(error, _OF_INPUT):
            raise
        inputs, advice = "texts", "give another model"
        if source.image_size:
            inputs = f"{source.image_size}-pixel images"
            advice = "give another model, or larger images"
        raise ConfigError(
            f"model.name is {plan.config.model.name!r}: in training mode it cannot take two "
            f"{inputs} ({(str(error).splitlines() or ['?'])[0]}); {advice}"
        ) from error
    left = [drop for drop in audited.undriven if drop.site != INPUT_DROPOUT]
    undriven = [site for site in find_sites(model) if not site.driven and site.rate > 0]
    fixed = [site for site in undriven if site.name != INPUT_DROPOUT]
    if fixed and "model.name" in plan.code:
        raise ConfigError(
            f"model.name is {plan.config.model.name!r}: {fixed[0].name} drops at "
            f"{fixed[0].rate:g}, which schedule.name="
            f"{plan.config.schedule.name} of kind {plan.config.schedule.kind} does not drive; "
            "build it with the Task's rates, task.unit "
            "for dropout and task.path for stochastic depth"
        )
    if left:
        raise ConfigError(
            f"model.name is {plan.config.model.name!r}: it has drops that no schedule drives\n"
            f"{audited}"
        )


def _driven(name: str, module: nn.Module) -> bool:
    """Whether a schedule drives a module of a model with input dropout.

    Modules that were built with rate 0 are left alone.
    """
    return name != INPUT_DROPOUT and any(site.base_rate > 0 for site in find_sites(module))
