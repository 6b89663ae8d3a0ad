"""timm models with the dropout sites and the stochastic depth profile of the released code.

timm 1.x has separate arguments for the rates of attention, projections, positions and head. Not
every architecture takes all of them. `ARCHITECTURES` lists the arguments of each, so that the head
never drops and no argument is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.fingerprint import LIBRARY_MODELS
from earlydrop.training.models.build import Task, set_path_profile


class _Architecture(NamedTuple):
    """An architecture of timm: the names of its rate arguments and of its blocks."""

    unit: tuple[str, ...]  # arguments that take the dropout rate
    path: tuple[str, ...]  # arguments that take the stochastic depth rate
    blocks: str  # attribute that holds the blocks, or the stages that hold them


ARCHITECTURES = {
    "vit": _Architecture(
        ("proj_drop_rate", "attn_drop_rate", "pos_drop_rate"), ("drop_path_rate",), "blocks"
    ),
    "deit": _Architecture(
        ("proj_drop_rate", "attn_drop_rate", "pos_drop_rate"), ("drop_path_rate",), "blocks"
    ),
    "mixer": _Architecture(("proj_drop_rate",), ("drop_path_rate",), "blocks"),
    "swin": _Architecture(("proj_drop_rate", "attn_drop_rate"), ("drop_path_rate",), "layers"),
    "convnext": _Architecture((), ("drop_path_rate",), "stages"),
}


def _built(name: str, task: Task, make: Callable[..., Any], **sizes: Any) -> nn.Module:
    """Build a model with its rates, the released position dropout and the released path profile."""
    architecture = ARCHITECTURES[name]
    rates = dict.fromkeys(architecture.unit, task.unit) | dict.fromkeys(
        architecture.path, task.path
    )
    model: nn.Module = make(
        in_chans=task.channels, num_classes=task.classes, drop_rate=0.0, **rates, **sizes
    )
    if name == "swin" and task.unit > 0:
        _add_position_dropout(model.get_submodule("patch_embed"), task.unit)
    parts: Any = getattr(model, architecture.blocks)
    blocks = list(parts)
    if architecture.blocks != "blocks":  # each part is a stage of blocks
        blocks = [block for stage in parts for block in stage.blocks]
    set_path_profile(blocks, task.path)
    return model


def vit_micro(
    task: Task, *, width: int | None, depth: int | None, heads: int | None, patch: int | None
) -> nn.Module:
    """A small VisionTransformer; by default width 64, depth 6, 2 heads, patch side image / 4."""
    width, depth, heads = width or 64, depth or 6, heads or 2
    if width % heads:
        raise ConfigError(f"model.heads is {heads}: expected a divisor of model.width ({width})")
    sizes = {
        "img_size": task.image_size,
        "patch_size": _patch(patch, task),
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
    }
    return _built("vit", task, timm.models.VisionTransformer, **sizes)


def mixer_micro(
    task: Task, *, width: int | None, depth: int | None, patch: int | None
) -> nn.Module:
    """An MLP-Mixer for small images; by default width 64, 6 blocks, patch side image / 4."""
    sizes = {
        "img_size": task.image_size,
        "patch_size": _patch(patch, task),
        "embed_dim": width or 64,
        "num_blocks": depth or 6,
    }
    return _built("mixer", task, timm.models.MlpMixer, **sizes)


def _patch(patch: int | None, task: Task) -> int:
    patch = patch or max(task.image_size // 4, 1)
    if task.image_size % patch:
        raise ConfigError(
            f"model.patch is {patch}: expected a divisor of the image's {task.image_size} pixels"
        )
    return patch


def swin_femto(task: Task) -> nn.Module:
    """Swin-F (Liu et al. 2023). timm has no model of this size."""
    sizes = {
        "img_size": task.image_size,
        "patch_size": 4,
        "window_size": 7,
        "embed_dim": 40,
        "depths": (2, 2, 6, 2),
    }
    return _built("swin", task, timm.models.SwinTransformer, num_heads=(2, 4, 8, 16), **sizes)


def named(name: str) -> Callable[[Task], nn.Module] | None:
    """The builder of a timm model; None for architectures outside `ARCHITECTURES`."""
    prefixes = [prefix for prefix in ARCHITECTURES if name.startswith(prefix + "_")]
    if not prefixes or name.startswith(LIBRARY_MODELS):
        return None
    architecture = prefixes[0]

    def build(task: Task) -> nn.Module:
        if name.split(".")[0] not in timm.list_models():
            raise ConfigError(
                f"model.name is {name!r}: timm has no such model; see "
                f"timm.list_models({architecture + '*'!r})"
            )
        sized = {} if architecture == "convnext" else {"img_size": task.image_size}

        def make(**arguments: Any) -> Any:
            return timm.create_model(name, pretrained=False, **arguments)

        model = _built(architecture, task, make, **sized)
        if architecture == "vit":
            _start_class_token(model)
        return model

    return build


def _start_class_token(model: nn.Module) -> None:
    """Initialise the class token with std 0.02, as in the released ViT; timm uses 1e-6.

    Its values are drawn last, so all other initial values are timm's. `vit_micro` keeps timm's
    class token, so that its earlier results stay the same.
    """
    token = getattr(model, "cls_token", None)
    if token is not None:  # a ViT that averages its patches has none
        nn.init.trunc_normal_(token, std=0.02)


def _add_position_dropout(patch_embed: nn.Module, rate: float) -> None:
    """The released Swin drops after the patch embedding; timm's has no such site."""
    patch_embed.add_module("pos_drop", nn.Dropout(rate))
    patch_embed.register_forward_hook(_apply_position_dropout)


def _apply_position_dropout(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    dropped: Tensor = module.get_submodule("pos_drop")(output)
    return dropped
