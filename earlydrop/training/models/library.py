"""Any model of timm, and any image classifier of torchvision, by its name.

The architectures of `earlydrop.training.models.timm` have an explicit map of arguments, and the
profiles of stochastic depth of the paper's code. This module is for all other models. An argument
of the class with ``drop`` or ``stochastic_depth`` in its name is taken for a rate, except those of
`_NOT_RATES` and those whose default is a bool or a string. To find the sites that an argument sets,
and their kind, the model is built at least twice, on the meta device if it can be. The result is
kept for the process. An argument that only the classifier's head uses stays 0.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn

from earlydrop.sites import Site, find_sites
from earlydrop.training.arguments import typed
from earlydrop.training.fields import ConfigError
from earlydrop.training.models.build import Task
from earlydrop.training.names import first_line

TORCHVISION = "torchvision/"
"""The prefix of the names of torchvision's models."""

_TIMM_HEAD = ("drop_rate", "head_drop_rate")  # in timm these drop in front of the classifier
# In the names of arguments that set no rate of units or paths.
_NOT_RATES = ("size", "type", "patch_drop")
# Arguments that a class may take without naming them.
_HIDDEN = ("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "drop_path_rate")
_CLASSES = 7  # of a model that is only looked at


class DropoutArguments(NamedTuple):
    """The dropout of a model, as its arguments set it.

    Attributes:
        cls: Its class.
        unit: The sites that each argument for a dropout rate sets.
        path: The sites that each argument for a stochastic depth rate sets.
        head: Arguments that stay 0.
        fixed: Sites whose rate no argument sets.
        classifier: Sites of the head of a torchvision classifier, to set to 0 after the model is
            built; empty if no argument in ``unit`` could have set them.
    """

    cls: type
    unit: dict[str, tuple[str, ...]]
    path: dict[str, tuple[str, ...]]
    head: tuple[str, ...]
    fixed: tuple[str, ...]
    classifier: tuple[str, ...]


def names() -> list[str]:
    """Every name, timm's first."""
    return [*timm.list_models(), *(TORCHVISION + name for name in _torchvision_names())]


@functools.cache
def _torchvision_names() -> tuple[str, ...]:
    return tuple(torchvision.models.list_models(module=torchvision.models))


def is_known(name: str) -> bool:
    """Whether there is a model of this name."""
    if name.startswith(TORCHVISION):
        return name.removeprefix(TORCHVISION) in _torchvision_names()
    return bool(timm.is_model(name))


def named(name: str) -> Callable[..., nn.Module]:
    """The builder of the model with this name."""

    def build(task: Task, **further: Any) -> nn.Module:
        dropout = find_dropout(name)
        values = _sizes(name, dropout.cls, task) | rates(dropout, task)
        values |= typed("model", name, dropout.cls, further)
        model = _build(name, values)
        _set_fixed_rates(model, dropout, task)
        if name.startswith(TORCHVISION) and task.channels != 3:
            _adapt_channels(name, model, task.channels)
        return model

    return build


def rates(dropout: DropoutArguments, task: Task) -> dict[str, float]:
    """The arguments that set rates, for a task."""
    return (
        dict.fromkeys(dropout.unit, task.unit)
        | dict.fromkeys(dropout.path, task.path)
        | dict.fromkeys(dropout.head, 0.0)
    )


def in_words(name: str, task: Task) -> list[str]:
    """A line for each dropout argument: its value, and the sites that it sets.

    A further line lists the sites that no argument sets. Without any, one line says so.
    """
    dropout = find_dropout(name)
    lines = []
    for argument, rate in rates(dropout, task).items():
        sites = dropout.unit.get(argument) or dropout.path.get(argument)
        gives = _grouped(sites) if sites else "the classifier's head, which does not drop"
        lines.append(f"{argument}={rate:.4g}: {gives}")
    if dropout.fixed:
        lines.append(f"no argument, so set in place: {_grouped(dropout.fixed)}")
    return lines or ["none: it has no argument that sets a rate"]


@functools.cache
def find_dropout(name: str) -> DropoutArguments:
    """Find the arguments of a model that set rates, and the sites that each sets."""
    with torch.random.fork_rng(devices=[]):
        cls = type(_build_to_inspect(name, {}))
    candidates = _candidates(cls)
    head: tuple[str, ...] = ()
    if not name.startswith(TORCHVISION):
        head = tuple(argument for argument in candidates if argument in _TIMM_HEAD)
    asked = [argument for argument in candidates if argument not in head]
    with torch.random.fork_rng(devices=[]):
        model, refused = _without_refused(name, asked, head)
    marks = {argument: _mark(i) for i, argument in enumerate(asked) if argument not in refused}
    sites = [site for site in find_sites(model) if site.base_rate > 0]
    unit: dict[str, tuple[str, ...]] = {}
    path: dict[str, tuple[str, ...]] = {}
    path_sites = tuple(site.name for site in sites if site.kind == "path")
    for argument, mark in marks.items():
        unit_sites = [site.name for site in sites if site.kind == "unit" and site.base_rate == mark]
        if unit_sites:
            unit[argument] = tuple(unit_sites)
        elif path_sites and _sets_paths(argument):
            path[argument] = path_sites
    set_by_argument = {site for group in (*unit.values(), *path.values()) for site in group}
    in_head = _in_head(model, sites) if name.startswith(TORCHVISION) else set()
    only_head = [argument for argument, group in unit.items() if set(group) <= in_head]
    for argument in only_head:
        del unit[argument]
    return DropoutArguments(
        cls=cls,
        unit=unit,
        path=path,
        head=(*(argument for argument in head if argument not in refused), *only_head),
        fixed=tuple(site.name for site in sites if site.name not in set_by_argument),
        classifier=tuple(sorted(in_head)) if unit else (),
    )


def _mark(index: int) -> float:
    """A rate by which an argument is recognised at its sites.

    It is not round, because some models have round rates in their code, such as 0.125.
    """
    return 0.12357 + index / 71


def _sets_paths(argument: str) -> bool:
    return "path" in argument or "stochastic_depth" in argument or "connect" in argument


def _candidates(cls: type) -> list[str]:
    """The arguments of a class that may set a rate."""
    parameters = inspect.signature(cls).parameters
    names = [p.name for p in parameters.values() if _may_be_rate(p)]
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    if open_ended and cls.__module__.startswith("timm."):
        names += [name for name in _HIDDEN if name not in names]
    return names


def _may_be_rate(parameter: inspect.Parameter) -> bool:
    name = parameter.name
    if not ("drop" in name or "stochastic_depth" in name):
        return False
    if any(word in name for word in _NOT_RATES):
        return False
    return not isinstance(parameter.default, (bool, str))


def _without_refused(
    name: str, asked: list[str], head: Iterable[str]
) -> tuple[nn.Module, set[str]]:
    """Build the model with a different rate at each argument of ``asked``, and 0 for ``head``.

    Arguments that its builder refuses are left out. If its error names none of them, all of
    `_HIDDEN` are left out. They are returned beside the model.
    """
    refused: set[str] = set()
    while True:
        values = {argument: _mark(i) for i, argument in enumerate(asked)} | dict.fromkeys(head, 0.0)
        values = {argument: value for argument, value in values.items() if argument not in refused}
        try:
            return _build_to_inspect(name, values), refused
        except (TypeError, ValueError, AssertionError) as error:
            words = (
                set(re.findall(r"'(\w+)'", str(error))) & values.keys()
                or set(_HIDDEN) & values.keys()
            )
            if not words:
                raise ConfigError(
                    f"model.name is {name!r}: it cannot be built ({first_line(error)})"
                ) from error
            refused |= words


def _build_to_inspect(name: str, values: dict[str, Any]) -> nn.Module:
    """A model to look at, on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            return _build(name, {"num_classes": _CLASSES} | values)
    except (NotImplementedError, RuntimeError):
        return _build(name, {"num_classes": _CLASSES} | values)


def _build(name: str, values: dict[str, Any]) -> nn.Module:
    model: nn.Module
    if not name.startswith(TORCHVISION):
        model = timm.create_model(name, pretrained=False, **values)
        return model
    plain = name.removeprefix(TORCHVISION)
    if plain in ("googlenet", "inception_v3"):  # one output, as every other model
        values = {"aux_logits": False, "init_weights": True} | values
    model = torchvision.models.get_model(plain, weights=None, **values)
    return model


def _sizes(name: str, cls: type, task: Task) -> dict[str, Any]:
    """The arguments for the number of classes, the channels and the image size of a task.

    The image size is given only to a class that takes it.
    """
    parameters = inspect.signature(cls).parameters
    values: dict[str, Any] = {"num_classes": task.classes}
    if not name.startswith(TORCHVISION):
        values["in_chans"] = task.channels
    side: Any = task.image_size
    for argument, value in (("img_size", side), ("image_size", side), ("input_size", (side, side))):
        if argument in parameters:
            values[argument] = value
    return values


def _in_head(model: nn.Module, sites: list[Site]) -> set[str]:
    """The unit sites in the module that directly holds the classifier, a model's last layer."""
    last: str | None = None
    for name, module in model.named_modules():
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if outputs == _CLASSES:
            last = name
    if last is None:
        return set()
    parent = last.rpartition(".")[0]
    unit = [site.name for site in sites if site.kind == "unit"]
    return {name for name in unit if name.rpartition(".")[0] == parent}


def _set_fixed_rates(model: nn.Module, dropout: DropoutArguments, task: Task) -> None:
    """Set in place the rates that no argument sets.

    Sites of the head get 0. For the other sites of a kind, the largest rate becomes the peak of the
    kind, and the others keep their ratio to it.
    """
    peaks = {"unit": task.unit, "path": task.path}
    fixed = [site for site in find_sites(model) if site.name in dropout.fixed]
    for kind, peak in peaks.items():
        built = [(site, site.base_rate) for site in fixed if site.kind == kind]
        largest = max((rate for _, rate in built), default=0.0)
        for site, rate in built:
            _set_rate(site, peak * (rate / largest) if largest > 0 else 0.0)
    for site in find_sites(model):
        if site.name in dropout.classifier:
            _set_rate(site, 0.0)


def _set_rate(site: Site, rate: float) -> None:
    setattr(site.module, site.attribute, rate)


def _adapt_channels(name: str, model: nn.Module, channels: int) -> None:
    """Give a torchvision model, which is for colour images, a first convolution for other channels.

    Raises:
        ConfigError: The model has no convolution, or its first one does not take 3 channels.
    """
    modules = model.named_modules()
    convolutions = ((path, m) for path, m in modules if isinstance(m, nn.Conv2d))
    full, module = next(convolutions, ("", None))
    if module is None or module.in_channels != 3:
        raise ConfigError(
            f"model.name is {name!r}: it takes images of 3 channels, and the data has {channels}; "
            "give another model"
        )
    first = nn.Conv2d(
        in_channels=channels,
        out_channels=module.out_channels,
        kernel_size=module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    parent, _, own = full.rpartition(".")
    setattr(model.get_submodule(parent), own, first)


def _grouped(sites: Iterable[str]) -> str:
    """The names of sites as text; names that differ only in numbers become one, with a count."""
    counts: dict[str, int] = {}
    for site in sites:
        pattern = re.sub(r"\d+", "*", site)
        counts[pattern] = counts.get(pattern, 0) + 1
    names = [f"{pattern} ({count})" if count > 1 else pattern for pattern, count in counts.items()]
    more = f", and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
