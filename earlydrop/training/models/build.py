"""The argument that every model builder is given, and parts that builders share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from earlydrop.training.fields import ConfigError


class Task(NamedTuple):
    """The images or text, classes and drop rates that a model is built for.

    Attributes:
        channels: Channels of an image; 0 for a text.
        classes: Number of classes; for a text, of tokens.
        image_size: Side of an image in pixels; 0 for a text.
        unit: Rate of the dropout layers; with ``model.profile``, the largest. The classifier's head
            never drops.
        path: Rate of the last block's stochastic depth; the first block's is 0, also where it is
            the only one.
        context: Tokens of a context; None for images.
    """

    channels: int
    classes: int
    image_size: int
    unit: float
    path: float
    context: int | None = None


def choose_dropout(
    name: str | None, model: str, choices: Mapping[str, Callable[[float], nn.Module]]
) -> Callable[[float], nn.Module]:
    """The class of dropout layer that ``model.dropout`` names; by default the first.

    Raises:
        ConfigError: The model has no such dropout layer.
    """
    name = name or next(iter(choices))
    if name not in choices:
        raise ConfigError(
            f"model.dropout is {name!r}: model.name={model} takes {', '.join(choices)}"
        )
    return choices[name]


def set_path_profile(blocks: list[nn.Module], peak: float) -> None:
    """Set the paper's profile of stochastic depth: linear over all blocks from 0 to the peak."""
    for rate, block in zip(
        torch.linspace(0, peak, len(blocks), dtype=torch.float64).tolist(), blocks, strict=True
    ):
        for module in block.modules():
            if type(module).__name__ == "DropPath":
                module.drop_prob = rate
