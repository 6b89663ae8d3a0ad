"""Models by name, built for their schedule: the scheduled kind of dropout at the schedule's peak, the other kind and the head at 0.

To add one: a builder here whose first argument is the `Task` and whose keyword arguments are the keys of ``model`` that it takes, its line
in `BUILDERS`, and a file in ``conf/model/``. Keys that it does not take are refused for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from earlydrop.training.config import ConfigError, ModelConfig, keys
from earlydrop.training.models import timm
from earlydrop.training.models.build import Task as Task
from earlydrop.training.models.convnet import convnet_micro
from earlydrop.training.models.gpt import gpt_micro
from earlydrop.training.models.mlp import mlp
from earlydrop.training.streams import stream_seed

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "vit_micro": timm.vit_micro,
    "mixer_micro": timm.mixer_micro,
    "mlp": mlp,
    "convnet_micro": convnet_micro,
    "swin_femto": timm.swin_femto,
    "gpt_micro": gpt_micro,
}
"""What builds each model that has a name of ours; any other name is timm's."""

READS_TEXT = ("gpt_micro",)
"""The models for text; every other one is for images."""

INPUT_DROPOUT = "input_dropout"
"""The site that no schedule drives."""

_EVERY_MODEL = ("name", "attention", "input_dropout")  # keys of `model` that are not for the builders


class WithInputDropout(nn.Module):
    """A network behind a dropout of its inputs at a fixed rate, which no schedule drives (Srivastava et al. 2014, appendix A.4)."""

    def __init__(self, rate: float, network: nn.Module) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(rate)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.input_dropout(x))
        return logits

    def no_weight_decay(self) -> set[str]:
        """The network's own parameters without weight decay, by their names here."""
        names: Callable[[], set[str]] = getattr(self.network, "no_weight_decay", set)
        return {f"network.{name}" for name in names()}


def build_model(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """Build a model on the CPU.

    The initial weights depend on the seed and the architecture alone, not on the rates. Nothing of the caller's random state is used.

    Raises:
        ConfigError: Unknown model, a key that it does not take, or sizes that do not fit.
    """
    build = BUILDERS.get(config.name) or timm.named(config.name)
    if build is None:
        raise ConfigError(
            f"model.name is {config.name!r}: expected {', '.join(BUILDERS)}, or a timm model of the architectures "
            f"{', '.join(timm.ARCHITECTURES)} (such as vit_tiny_patch16_224)"
        )
    if (config.name in READS_TEXT) != (task.context is not None):
        wanted, given = ("text", "images") if config.name in READS_TEXT else ("images", "text")
        other = "data=text" if wanted == "text" else f"model={READS_TEXT[0]}"
        raise ConfigError(f"model.name is {config.name!r}: it reads {wanted}, and the data is {given}; did you mean {other}?")
    takes = list(inspect.signature(build).parameters)[1:]
    for name in (key.removeprefix("model.") for key in keys() if key.startswith("model.")):
        if name not in (*_EVERY_MODEL, *takes) and getattr(config, name) is not None:
            raise ConfigError(f"model.{name} is {getattr(config, name)!r}: model.name={config.name} has no such key; leave it null")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "init"))
        try:
            model = build(task, **{name: getattr(config, name) for name in takes})
        except (AssertionError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"model.name is {config.name!r}: it cannot be built for {task.image_size}-pixel images ({error})"
            ) from error
    if config.input_dropout:
        model = WithInputDropout(config.input_dropout, model)
    fusable = [module for module in model.modules() if "fused_attn" in module.__dict__]
    if config.attention == "fused" and not fusable:
        raise ConfigError(f"model.attention is 'fused': model.name={config.name} has no attention; leave it plain")
    for module in fusable:
        module.fused_attn = config.attention == "fused"  # type: ignore[assignment]
    return model
