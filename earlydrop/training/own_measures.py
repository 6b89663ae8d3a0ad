"""A user's gradient measures, each named as ``module:function`` in ``probe.measures``.

A measure with parameters named ``model``, ``loss_fn`` or ``batches`` is called with these: the
model at its current weights and in training mode, the loss, and the list of the probe's batches, or
of their parts if a batch has several. A measure with one parameter of any other name is called with
the probe's `earlydrop.gradients.measures.Moments`. After a measure that looks at the model, the
model's buffers, modes and gradients and the random state are restored.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.gradients.measures import MEASURES, Moments
from earlydrop.metrics import METRICS
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError
from earlydrop.training.plugins import Code, is_own, load, nearest, raised

_OFFERED = ("model", "loss_fn", "batches")


def own_measures(config: Config) -> dict[str, Code]:
    """The measures that a configuration names, by the name under which each is recorded.

    It is empty if a run has no probe.

    Raises:
        ConfigError: There is no such measure, two have the same name, or one has parameters that
            it cannot be called with.
    """
    measures: dict[str, Code] = {}
    if not config.probe.at:
        return measures
    for name in config.probe.measures:
        if not is_own("measure", name):
            if f"probe/{name}" in METRICS:
                expected = "earlydrop records this measure without being asked"
            else:
                expected = f"expected module:function of your own{nearest(name, MEASURES)}"
            raise ConfigError(f"probe.measures has {name!r}: {expected}")
        code = load("probe.measures", "measure", name)
        label = code.label
        if f"probe/{label}" in METRICS or label in MEASURES or label in measures:
            raise ConfigError(
                f"probe.measures has {name!r}: there is a measure {label!r} already; give yours "
                "another name"
            )
        _check_parameters(name, code)
        measures[label] = code
    return measures


def _check_parameters(name: str, code: Code) -> None:
    """Raise a `ConfigError` if a measure cannot be called with what a measure is given."""
    try:
        parameters = inspect.signature(code.value).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(
            f"probe.measures has {name!r}: its signature cannot be read; expected a Python "
            "function. Write a function that calls it"
        ) from None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters if p.kind not in variadic and p.default is p.empty]
    of_gradients = [p for p in required if p.name not in _OFFERED]
    if needs_model(code):
        # They are passed by name.
        usable = not of_gradients and all(p.kind != p.POSITIONAL_ONLY for p in parameters)
    else:
        # The moments are passed by position.
        usable = len(required) == 1 and required[0].kind != inspect.Parameter.KEYWORD_ONLY
    if not usable or not required:
        names = ", ".join(p.name for p in parameters) or "nothing"
        required_names = ", ".join(p.name for p in required) or "none"
        raise ConfigError(
            f"probe.measures has {name!r}: it takes {names}, of which {required_names} without a "
            "default; expected one parameter without a default, by position (the moments of the "
            f"gradients), or one or more of {', '.join(_OFFERED)}, by name, at least one of them "
            "without a default"
        )


def needs_model(code: Code) -> bool:
    """Whether a measure looks at the model itself, not only at the moments of its gradients."""
    return bool(set(_OFFERED) & set(inspect.signature(code.value).parameters))


def of_moments(code: Code) -> Callable[[Moments], float | None]:
    """A measure of the moments; its errors become a `ValueError`."""
    return functools.partial(_called, code)


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
        raise ValueError(f"the measure {code.name} gave {number}; return None if it is not defined")
    return number
