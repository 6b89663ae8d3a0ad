"""A user's gradient measures, each named as ``module:function`` in ``probe.measures``.

A measure with parameters named ``model``, ``loss_fn`` or ``batches`` is called with these: the
model at its current weights and in training mode, the loss, and the list of the probe's batches, or
of their parts if a batch has several. A measure with one parameter of any other name is called with
the probe's `earlydrop.gradients.measures.Moments`. The model's buffers, modes and gradients and the
random state are restored after each measure.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.gradients.measures import MEASURES, Moments
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError
from earlydrop.training.plugins import Code, is_own, load, nearest, raised

_OFFERED = ("model", "loss_fn", "batches")


def own_measures(config: Config) -> dict[str, Code]:
    """The measures that a configuration names, by the name under which each is recorded.

    Raises:
        ConfigError: There is no such measure, two have the same name, or one has parameters that
            it cannot be called with.
    """
    measures: dict[str, Code] = {}
    for name in config.probe.measures if config.probe.at else ():
        if not is_own("measure", name):
            known = (
                "earlydrop's own measures are always recorded"
                if name in MEASURES
                else "expected module:function of your own"
            )
            raise ConfigError(f"probe.measures has {name!r}: {known}{nearest(name, MEASURES)}")
        code = load("probe.measures", "measure", name)
        label = code.label
        if label in MEASURES or label in measures:
            raise ConfigError(
                f"probe.measures has {name!r}: there is a measure {label!r} already; give yours "
                "another name"
            )
        needed = _needed(code)
        further = [parameter for parameter in needed if parameter not in _OFFERED]
        mixes_both = bool(further) and needs_model(code)
        if mixes_both or not needed:
            parameters = ", ".join(inspect.signature(code.value).parameters)
            required = ", ".join(needed)
            raise ConfigError(
                f"probe.measures has {name!r}: it takes {parameters or 'nothing'}, of which "
                f"{required or 'none'} without a default; expected one parameter without a "
                "default (the moments of the gradients), or some of "
                f"{', '.join(_OFFERED)}"
            )
        if len(further) > 1:
            raise ConfigError(
                f"probe.measures has {name!r}: it takes {', '.join(needed)}; expected one "
                "parameter, the moments"
            )
        measures[label] = code
    return measures


def needs_model(code: Code) -> bool:
    """Whether a measure looks at the model itself, not only at the moments of its gradients."""
    return bool(set(_OFFERED) & set(inspect.signature(code.value).parameters))


def of_moments(code: Code) -> Callable[[Moments], float | None]:
    """A measure of the moments; its errors become a `ValueError`."""

    def measure(moments: Moments) -> float | None:
        return _called(code, moments)

    return measure


def of_model(
    code: Code,
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
) -> float | None:
    """The value of a measure of the model.

    Raises:
        ValueError: The measure raised an error, or returned neither a finite number nor None.
    """
    takes = inspect.signature(code.value).parameters
    with leave_no_trace(model, loss_fn), torch.enable_grad():
        values = {
            "model": model,
            "loss_fn": loss_fn,
            "batches": list(batches) if "batches" in takes else None,
        }
        model.train()
        return _called(code, **{name: values[name] for name in _OFFERED if name in takes})


def _called(code: Code, *arguments: Any, **keywords: Any) -> float | None:
    try:
        value = code.value(*arguments, **keywords)
    except Exception as error:
        raise ValueError(f"the measure {code.name} raised {raised(error, code.paths)}") from error
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"the measure {code.name} gave a {type(value).__name__}, expected a number or None"
        ) from None
    if not math.isfinite(number):
        raise ValueError(
            f"the measure {code.name} gave {number}; return None where it cannot be taken"
        )
    return number


def _needed(code: Code) -> list[str]:
    parameters = inspect.signature(code.value).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = [p for p in parameters if p.kind not in variadic]
    return [p.name for p in plain if p.default is p.empty]
