"""Models by name, built for their schedule.

Each kind of dropout that the schedule drives is built with its peak rate. All other dropout, also
that of the head, is built with rate 0.

A new model needs a builder, its line in `BUILDERS`, and a file in ``conf/model/``. The builder's
first argument is the `Task`. Its keyword arguments are the keys of ``model`` that it takes; other
keys are refused. A user's builder, named as ``module:function``, is called in the same way. Its
further arguments are the keys of ``model.args``.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from earlydrop.sites.traceless import keep_global_random_state
from earlydrop.training.arguments import arguments
from earlydrop.training.config import ModelConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.keys import keys
from earlydrop.training.models import library
from earlydrop.training.models import timm as timm_models
from earlydrop.training.models.build import Task as Task
from earlydrop.training.models.convnet import convnet_micro
from earlydrop.training.models.gpt import gpt_micro
from earlydrop.training.models.mlp import mlp
from earlydrop.training.models.pretrained import load_pretrained
from earlydrop.training.plugins import (
    Code,
    installed,
    is_reference,
    load,
    nearest,
    raised,
    registered,
)
from earlydrop.training.streams import stream_seed

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "vit_micro": timm_models.vit_micro,
    "mixer_micro": timm_models.mixer_micro,
    "mlp": mlp,
    "convnet_micro": convnet_micro,
    "swin_femto": timm_models.swin_femto,
    "gpt_micro": gpt_micro,
}
"""The builders of the package's own models; other names are timm's, torchvision's or the user's."""

READS_TEXT = ("gpt_micro",)
"""The models for text; every other one is for images."""

INPUT_DROPOUT = "input_dropout"
"""The site that no schedule drives."""

# Keys of `model` that are no arguments of a builder.
_NOT_ARGUMENTS = ("name", "attention", "input_dropout", "args", "pretrained")


class WithInputDropout(nn.Module):
    """A network with dropout on its inputs, at a fixed rate that no schedule drives.

    Srivastava et al. 2014, appendix A.4.
    """

    PREFIX = "network."
    """The prefix of the network's weights in the ``state_dict``."""

    def __init__(self, rate: float, network: nn.Module) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(rate)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.input_dropout(x))
        return logits

    def no_weight_decay(self) -> set[str]:
        """The network's own parameters without weight decay, by their names here."""
        own = getattr(self.network, "no_weight_decay", None)
        names: set[str] = set() if own is None else own()
        return {f"{self.PREFIX}{name}" for name in names}


def build_model(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """Build a model on the CPU.

    The initial weights are those of ``model.pretrained``, if it is given. Else they depend only on
    the seed and the architecture, not on the rates. The caller's random state is not used.

    Raises:
        ConfigError: Unknown model, a key that it does not take, or sizes that do not fit.
    """
    build, own = _builder(config.name)
    if own is None and (config.name in READS_TEXT) != (task.context is not None):
        reads, given = ("text", "images") if config.name in READS_TEXT else ("images", "text")
        option = "data=text" if reads == "text" else f"model={READS_TEXT[0]}"
        raise ConfigError(
            f"model.name is {config.name!r}: it reads {reads}, and the data is {given}; did you "
            f"mean {option}?"
        )
    values = _values(config, build, own is not None)
    with _seeded(stream_seed(seed, "init")):
        model = _built(config, build, own=own, task=task, values=values)
    if config.pretrained is not None:
        load_pretrained(config.pretrained, config.name, model, task.classes)
    if config.input_dropout:
        if task.context is not None:
            raise ConfigError(
                f"model.input_dropout is {config.input_dropout:g}: the data is text, whose tokens "
                "cannot be dropped; leave it null"
            )
        model = WithInputDropout(config.input_dropout, model)
    fusable = [module for module in model.modules() if "fused_attn" in module.__dict__]
    if config.attention == "fused" and not fusable:
        raise ConfigError(
            f"model.attention is 'fused': model.name={config.name} has no attention that can be "
            "switched (ours and timm's can); use model.attention=plain"
        )
    for module in fusable:
        module.fused_attn = config.attention == "fused"  # type: ignore[assignment]
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Context in which the generators of torch, Python and NumPy begin at a seed.

    A user's builder may draw from any of them. Afterwards their states are as before.
    """
    restores = keep_global_random_state()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        for restore in restores:
            restore()


def in_words(config: ModelConfig, task: Task) -> dict[str, list[str]]:
    """Remarks on how a model is built: a list of lines for each heading."""
    remarks = {}
    if (
        config.name not in BUILDERS
        and timm_models.named(config.name) is None
        and library.is_known(config.name)
    ):
        remarks["arguments"] = library.in_words(config.name, task)
    if config.pretrained is not None:
        plain = build_model(replace(config, pretrained=None, input_dropout=None), task, 0)
        remarks["begins with"] = [
            load_pretrained(config.pretrained, config.name, plain, task.classes)
        ]
    return remarks


def code_of_model(name: str) -> Code | None:
    """The user's code that builds a model; None if earlydrop or a library builds it."""
    if name in BUILDERS:
        return registered(name, BUILDERS[name])
    if is_reference(name) or (not library.is_known(name) and name in installed("model")):
        return load("model.name", "model", name)
    return None


def _builder(name: str) -> tuple[Callable[..., nn.Module], Code | None]:
    """The builder of a model, and the code behind it if it is the user's own."""
    if name in BUILDERS:
        return BUILDERS[name], None
    own = code_of_model(name)
    if own is not None:
        return own.value, own
    build = timm_models.named(name)
    if build is None and library.is_known(name):
        build = library.named(name)
    if build is None:
        raise ConfigError(
            f"model.name is {name!r}: expected {', '.join(BUILDERS)}, a model of timm or "
            "torchvision (such as resnet18 or torchvision/regnet_y_400mf), or module:function of "
            f"your own{nearest(name, [*BUILDERS, *library.names()])}"
        )
    return build, None


def _values(config: ModelConfig, build: Callable[..., nn.Module], is_own: bool) -> dict[str, Any]:
    """The arguments of a builder: the keys of ``model`` that it takes, and ``model.args``.

    A user's builder keeps its defaults where a key of ``model`` is null.
    """
    takes = list(inspect.signature(build).parameters)[1:]
    offered = {}
    names = [key.removeprefix("model.") for key in keys() if key.startswith("model.")]
    for name in names:
        if name in _NOT_ARGUMENTS:
            continue
        value = getattr(config, name)
        if name not in takes and value is not None:
            raise ConfigError(
                f"model.{name} is {value!r}: model.name={config.name} has no such key; leave it "
                "null"
            )
        if name not in takes or (value is None and is_own):
            continue
        if name in config.args:
            raise ConfigError(
                f"model.args.{name} is {config.args[name]!r}: model.{name} is a key of its own; "
                "give only that"
            )
        offered[name] = value
    return arguments("model", config.name, build, given=config.args, offered=offered, positional=1)


def _built(
    config: ModelConfig,
    build: Callable[..., nn.Module],
    own: Code | None,
    task: Task,
    values: dict[str, Any],
) -> nn.Module:
    """Call a builder. An error in it becomes one line, except in an unexpected one of ours."""
    try:
        model = build(task, **values)
    except ConfigError:
        raise
    except Exception as error:
        if own is None and isinstance(error, (AssertionError, TypeError, RuntimeError)):
            given = f" with model.args={config.args}" if config.args else ""
            raise ConfigError(
                f"model.name is {config.name!r}: it cannot be built for {task.image_size}-pixel "
                f"images{given} ({error})"
            ) from error
        if own is None and config.name in BUILDERS:
            raise
        files = own.paths if own is not None else ()
        raise ConfigError(
            f"model.name is {config.name!r}: building it raised {raised(error, files)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.name is {config.name!r}: it returned a {type(model).__name__}, expected a "
            "torch.nn.Module"
        )
    return model
