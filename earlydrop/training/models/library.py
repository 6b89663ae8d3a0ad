"""Any model of timm and torchvision by its name, its dropout found from its signature.

The architectures of `earlydrop.training.models.timm` have an explicit map of arguments, and the released profiles; this is for every other
one. An argument of the class with ``drop`` or ``stochastic_depth`` in its name takes a rate. Which sites it gives, and of which kind they
are, is seen on a model built on the meta device, once a process. What only the classifier's head uses stays 0.
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

TORCHVISION = "torchvision/"
"""What the names of torchvision's models begin with."""

_TIMM_HEAD = ("drop_rate", "head_drop_rate")  # in timm these drop in front of the classifier
_NOT_RATES = ("size", "type", "patch_drop")  # in the names of arguments that set no rate of units or paths
_HIDDEN = ("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "drop_path_rate")  # what a class may take without naming it
_CLASSES = 7  # of a model that is only looked at


class Found(NamedTuple):
    """What is known of a model.

    Attributes:
        cls: Its class.
        unit: The sites that each argument of a dropout rate gives.
        path: The sites that each argument of a stochastic depth rate gives.
        head: Arguments that stay 0.
        fixed: Sites whose rate no argument sets.
        classifier: Sites of the classifier's head that an argument of other sites sets too.
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
    """What builds the model of a name."""

    def build(task: Task, **further: Any) -> nn.Module:
        found = look_at(name)
        values = _sizes(name, found.cls, task) | rates(found, task)
        values |= typed("model", name, found.cls, further)
        model = _make(name, values)
        _set(model, found, task)
        if name.startswith(TORCHVISION) and task.channels != 3:
            _adapt_channels(name, model, task.channels)
        return model

    return build


def rates(found: Found, task: Task) -> dict[str, float]:
    """The arguments that set rates, for a task."""
    return dict.fromkeys(found.unit, task.unit) | dict.fromkeys(found.path, task.path) | dict.fromkeys(found.head, 0.0)


def in_words(name: str, task: Task) -> list[str]:
    """What a model's dropout arguments are set to, and which sites each gives; a line each."""
    found = look_at(name)
    lines = []
    for argument, rate in rates(found, task).items():
        sites = found.unit.get(argument) or found.path.get(argument)
        gives = _grouped(sites) if sites else "the classifier's head, which does not drop"
        lines.append(f"{argument}={rate:.4g}: {gives}")
    if found.fixed:
        lines.append(f"no argument, so set in place: {_grouped(found.fixed)}")
    return lines or ["none: it has no argument that sets a rate"]


@functools.cache
def look_at(name: str) -> Found:
    """Find a model's arguments of rates, and the sites that each gives."""
    with torch.random.fork_rng(devices=[]):
        cls = type(_look(name, {}))
    candidates = _candidates(cls)
    head = tuple(each for each in candidates if each in _TIMM_HEAD and not name.startswith(TORCHVISION))
    asked = [each for each in candidates if each not in head]
    with torch.random.fork_rng(devices=[]):
        model, refused = _without_refused(name, asked, head)
    marks = {each: _mark(i) for i, each in enumerate(asked) if each not in refused}
    sites = [site for site in find_sites(model) if site.base_rate > 0]
    unit: dict[str, tuple[str, ...]] = {}
    path: dict[str, tuple[str, ...]] = {}
    behind: set[str] = set()
    for argument, mark in marks.items():
        theirs = [site for site in sites if site.kind == "unit" and site.base_rate == mark]
        paths = [] if theirs else [site for site in sites if site.kind == "path" and _sets_paths(argument)]
        for group, of in ((unit, theirs), (path, paths)):
            if of:
                group[argument] = tuple(site.name for site in of)
                behind |= set(group[argument])
    in_head = _in_head(model, sites) if name.startswith(TORCHVISION) else set()
    only_head = [argument for argument, theirs in unit.items() if set(theirs) <= in_head]
    for argument in only_head:
        del unit[argument]
    return Found(
        cls=cls,
        unit=unit,
        path=path,
        head=(*(each for each in head if each not in refused), *only_head),
        fixed=tuple(site.name for site in sites if site.name not in behind),
        classifier=tuple(sorted(in_head)) if unit else (),
    )


def _mark(index: int) -> float:
    """A rate by which an argument is recognised at its sites."""
    return 0.125 + index / 64


def _sets_paths(argument: str) -> bool:
    return "path" in argument or "stochastic_depth" in argument or "connect" in argument


def _candidates(cls: type) -> list[str]:
    """The arguments of a class that may set a rate."""
    parameters = inspect.signature(cls).parameters
    found = [
        each.name
        for each in parameters.values()
        if ("drop" in each.name or "stochastic_depth" in each.name)
        and not any(word in each.name for word in _NOT_RATES)
        and not isinstance(each.default, (bool, str))
    ]
    open_ended = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    return found + [each for each in _HIDDEN if open_ended and each not in found]


def _without_refused(name: str, asked: list[str], head: Iterable[str]) -> tuple[nn.Module, set[str]]:
    """The model with a mark at each argument, and those that its builder does not let through."""
    refused: set[str] = set()
    while True:
        values = {each: _mark(i) for i, each in enumerate(asked)} | dict.fromkeys(head, 0.0)
        values = {each: value for each, value in values.items() if each not in refused}
        try:
            return _look(name, values), refused
        except (TypeError, ValueError, AssertionError) as error:
            words = set(re.findall(r"'(\w+)'", str(error))) & values.keys() or set(_HIDDEN) & values.keys()
            if not words:
                raise ConfigError(f"model.name is {name!r}: it cannot be built ({str(error).splitlines()[0]})") from error
            refused |= words


def _look(name: str, values: dict[str, Any]) -> nn.Module:
    """A model to look at, on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            return _make(name, {"num_classes": _CLASSES} | values)
    except (NotImplementedError, RuntimeError):
        return _make(name, {"num_classes": _CLASSES} | values)


def _make(name: str, values: dict[str, Any]) -> nn.Module:
    if not name.startswith(TORCHVISION):
        model: nn.Module = timm.create_model(name, pretrained=False, **values)
        return model
    plain = name.removeprefix(TORCHVISION)
    if plain in ("googlenet", "inception_v3"):  # one output, as every other model
        values = {"aux_logits": False, "init_weights": True} | values
    found: nn.Module = torchvision.models.get_model(plain, weights=None, **values)
    return found


def _sizes(name: str, cls: type, task: Task) -> dict[str, Any]:
    """The arguments of classes, channels and image size that a class takes."""
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
    """The unit sites beside a model's last layer, which gives the scores."""
    last = [
        name
        for name, module in model.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == _CLASSES
    ]
    if not last:
        return set()
    beside = last[-1].rpartition(".")[0]
    return {site.name for site in sites if site.kind == "unit" and site.name.rpartition(".")[0] == beside}


def _set(model: nn.Module, found: Found, task: Task) -> None:
    """Set in place the rates that no argument sets: those of the head to 0, others to their kind's peak, in their own proportions."""
    peaks = {"unit": task.unit, "path": task.path}
    fixed = [site for site in find_sites(model) if site.name in found.fixed]
    for kind, peak in peaks.items():
        built = [(site, site.base_rate) for site in fixed if site.kind == kind]
        largest = max((rate for _, rate in built), default=0.0)
        for site, rate in built:
            _write(site, peak * (rate / largest) if largest > 0 else 0.0)
    for site in find_sites(model):
        if site.name in found.classifier:
            _write(site, 0.0)


def _write(site: Site, rate: float) -> None:
    setattr(site.module, site.attribute, rate)


def _adapt_channels(name: str, model: nn.Module, channels: int) -> None:
    """Give a torchvision model, which is for colour images, a first convolution for other channels.

    Raises:
        ConfigError: It begins with something else.
    """
    layers = ((full, each) for full, each in model.named_modules() if isinstance(each, nn.Conv2d))
    full, module = next(layers, ("", None))
    if module is None or module.in_channels != 3:
        raise ConfigError(f"model.name is {name!r}: it takes images of 3 channels, and the data has {channels}; give another model")
    first = nn.Conv2d(
        channels, module.out_channels, module.kernel_size, module.stride, module.padding, module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None, padding_mode=module.padding_mode,
    )  # fmt: skip
    parent, _, own = full.rpartition(".")
    setattr(model.get_submodule(parent), own, first)


def _grouped(sites: Iterable[str]) -> str:
    """Names of sites, those that differ in their numbers as one, with how many there are."""
    counts: dict[str, int] = {}
    for site in sites:
        pattern = re.sub(r"\d+", "*", site)
        counts[pattern] = counts.get(pattern, 0) + 1
    said = [f"{pattern} ({count})" if count > 1 else pattern for pattern, count in counts.items()]
    return ", ".join(said[:6]) + (f", and {len(said) - 6} more" if len(said) > 6 else "")
