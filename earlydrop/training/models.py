"""Models, built for their schedule: the scheduled kind of dropout at the schedule's peak, the other kind and the head at 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from earlydrop.training.config import ConfigError, ModelConfig
from earlydrop.training.streams import stream_seed


class _Family(NamedTuple):
    """How timm builds one family: the arguments that take a rate, and where its blocks are."""

    unit: tuple[str, ...]  # arguments that take the dropout rate
    path: tuple[str, ...]  # arguments that take the stochastic depth rate
    blocks: str  # attribute that holds the blocks, or the stages that hold them


_FAMILIES = {
    "vit": _Family(("proj_drop_rate", "attn_drop_rate", "pos_drop_rate"), ("drop_path_rate",), "blocks"),
    "deit": _Family(("proj_drop_rate", "attn_drop_rate", "pos_drop_rate"), ("drop_path_rate",), "blocks"),
    "mixer": _Family(("proj_drop_rate",), ("drop_path_rate",), "blocks"),
    "swin": _Family(("proj_drop_rate", "attn_drop_rate"), ("drop_path_rate",), "layers"),
    "convnext": _Family((), ("drop_path_rate",), "stages"),
}
_MICRO = {  # width, depth, heads; a patch of a quarter of the image
    "vit_micro": (64, 6, 2),
    "mixer_micro": (64, 6, None),
}
NAMES = ("vit_micro", "mixer_micro", "mlp", "convnet_micro", "swin_femto")
INPUT_DROPOUT = "input_dropout"
"""The site that no schedule drives."""


def build_model(
    config: ModelConfig, channels: int, classes: int, image_size: int, unit: float, path: float, seed: int
) -> nn.Module:
    """Build a model with its dropout at ``unit`` and its stochastic depth rising linearly with depth from 0 to ``path``.

    The initial weights depend on the seed and the architecture alone, not on the rates. Nothing of the caller's random state is used.

    Args:
        config: Which model.
        channels: Channels of the images.
        classes: Number of classes.
        image_size: Side of the images in pixels.
        unit: Dropout rate of every dropout but the classifier head's, which has none.
        path: Peak stochastic depth rate.
        seed: The run's seed.

    Returns:
        The model, on the CPU.

    Raises:
        ConfigError: Unknown model, or sizes that do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "init"))
        model: nn.Module = _build(config, channels, classes, image_size, unit, path)
    if config.input_dropout:
        from earlydrop.training.networks import WithInputDropout

        model = WithInputDropout(config.input_dropout, model)
    for module in model.modules():
        if "fused_attn" in module.__dict__:
            module.fused_attn = config.attention == "fused"  # type: ignore[assignment]
    return model


def _choose(config: ModelConfig, choices: Mapping[str, Callable[[float], nn.Module]]) -> Callable[[float], nn.Module]:
    name = config.dropout or next(iter(choices))
    if name not in choices:
        raise ConfigError(f"model.dropout is {name!r}: model.name={config.name} takes {', '.join(choices)}")
    return choices[name]


def _build_mlp(config: ModelConfig, inputs: int, classes: int, unit: float) -> nn.Module:
    from earlydrop.training.networks import MLP, MLP_DROPOUTS

    _no_sizes(config, "width", "depth", "heads", "patch")
    hidden = [512, 256, 128] if config.hidden is None else list(config.hidden)
    if not hidden or min(hidden) < 1:
        raise ConfigError(
            f"model.hidden is {config.hidden}: expected the widths of one or more hidden layers, such as [512,256,128]"
        )
    profile = config.profile or [1.0] * len(hidden)
    if len(profile) != len(hidden) or not all(0 < rate < math.inf for rate in profile):
        raise ConfigError(f"model.profile is {config.profile}: expected {len(hidden)} rates above 0, one for each hidden layer")
    rates = [unit * (rate / max(profile)) for rate in profile]  # the schedule says the largest; the profile keeps its shape
    return MLP(inputs, hidden, classes, rates, _choose(config, MLP_DROPOUTS))


def _build_convnet(config: ModelConfig, channels: int, classes: int, unit: float, path: float) -> nn.Module:
    from earlydrop.training.networks import CONVNET_DROPOUTS, ConvNet

    _no_sizes(config, "depth", "heads", "patch", "hidden", "profile")
    model = ConvNet(channels, config.width or 32, classes, unit, _choose(config, CONVNET_DROPOUTS))
    set_path_profile(model, "blocks", path)
    return model


def _build(config: ModelConfig, channels: int, classes: int, image_size: int, unit: float, path: float) -> Any:
    if config.name == "mlp":
        return _build_mlp(config, channels * image_size**2, classes, unit)
    if config.name == "convnet_micro":
        return _build_convnet(config, channels, classes, unit, path)
    _no_sizes(config, "dropout", "profile")
    _no_sizes(config, "hidden")
    import timm

    family = _family(config.name)
    rates = dict.fromkeys(family.unit, unit) | dict.fromkeys(family.path, path)
    common: dict[str, Any] = {"in_chans": channels, "num_classes": classes, "drop_rate": 0.0} | rates
    try:
        if config.name in _MICRO:
            model = _micro(config, image_size, common)
        elif config.name == "swin_femto":
            _no_sizes(config, "width", "depth", "heads", "patch")
            model = timm.models.SwinTransformer(
                img_size=image_size,
                patch_size=4,
                window_size=7,
                embed_dim=40,
                depths=(2, 2, 6, 2),
                num_heads=(2, 4, 8, 16),
                **common,
            )
        else:
            _no_sizes(config, "width", "depth", "heads", "patch")
            if config.name.split(".")[0] not in timm.list_models():
                raise ConfigError(
                    f"model.name is {config.name!r}: timm has no such model; see timm.list_models({config.name[:4] + '*'!r})"
                )
            sized = {} if config.name.startswith("convnext") else {"img_size": image_size}
            model = timm.create_model(config.name, pretrained=False, **common, **sized)
    except (AssertionError, TypeError, RuntimeError) as error:
        raise ConfigError(f"model.name is {config.name!r}: it cannot be built for {image_size}-pixel images ({error})") from error
    if family.blocks == "layers" and unit > 0:
        _add_position_dropout(model.get_submodule("patch_embed"), unit)
    set_path_profile(model, family.blocks, path)
    return model


def _family(name: str) -> _Family:
    prefix = next((prefix for prefix in _FAMILIES if name.startswith(prefix + "_") or name == prefix), None)
    if prefix is None:
        raise ConfigError(
            f"model.name is {name!r}: expected {', '.join(NAMES)}, or a timm model of the families {', '.join(_FAMILIES)} "
            "(such as vit_tiny_patch16_224)"
        )
    return _FAMILIES[prefix]


def _no_sizes(config: ModelConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) is not None:
            raise ConfigError(f"model.{name} is {getattr(config, name)!r}: model.name={config.name} has no such key; leave it null")


def _micro(config: ModelConfig, image_size: int, common: dict[str, Any]) -> Any:
    import timm

    width, depth, heads = _MICRO[config.name]
    width, depth, heads = config.width or width, config.depth or depth, config.heads or heads
    patch = config.patch or image_size // 4
    if image_size % patch:
        raise ConfigError(f"model.patch is {patch}: expected a divisor of the image's {image_size} pixels")
    if config.name == "mixer_micro":
        _no_sizes(config, "heads")
        return timm.models.MlpMixer(img_size=image_size, patch_size=patch, embed_dim=width, num_blocks=depth, **common)
    if width % (heads or 1):
        raise ConfigError(f"model.heads is {heads}: expected a divisor of model.width ({width})")
    return timm.models.VisionTransformer(
        img_size=image_size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, **common
    )


def _add_position_dropout(patch_embed: nn.Module, rate: float) -> None:
    """The released Swin drops after the patch embedding; timm's has no such site."""
    patch_embed.add_module("pos_drop", nn.Dropout(rate))
    patch_embed.register_forward_hook(_apply_position_dropout)


def _apply_position_dropout(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    dropped: Tensor = module.get_submodule("pos_drop")(output)
    return dropped


def set_path_profile(model: nn.Module, blocks: str, peak: float) -> None:
    """Set the stochastic depth rates to the paper's profile: linear over all blocks from 0 to the peak.

    Args:
        model: A timm model.
        blocks: The attribute that holds its blocks, or the stages that hold them.
        peak: The last block's rate.
    """
    parts = getattr(model, blocks)
    units = list(parts) if blocks == "blocks" else [block for stage in parts for block in stage.blocks]
    for rate, block in zip(torch.linspace(0, peak, len(units), dtype=torch.float64).tolist(), units, strict=True):
        for module in block.modules():
            if type(module).__name__ == "DropPath":
                module.drop_prob = rate
