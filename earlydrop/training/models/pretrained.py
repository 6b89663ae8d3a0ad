"""Initial weights from a file on this machine: ``model.pretrained``."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.record.foreign import (
    UnreadableWeightsError,
    is_weights,
    read_weights,
    renamed_by_timm,
)

# Where a checkpoint may keep its weights; averaged ones first.
_HOLDS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
)


def pretrained_digest(path: str) -> str:
    """SHA-256 of the file.

    Raises:
        ConfigError: There is no such file.
    """
    file = Path(path).expanduser()
    try:
        stat = file.stat()
        return _digest(file.resolve(), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ConfigError(
            f"model.pretrained is {path!r}: {error.strerror or error}; expected a file of weights "
            "on this machine (.safetensors, .pth)"
        ) from error


@functools.lru_cache(maxsize=16)
def _digest(file: Path, changed: int, size: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_pretrained(path: str, name: str, model: nn.Module, classes: int) -> str:
    """Load a file's weights, except a classifier for another number of classes.

    Returns:
        A sentence on what was loaded.

    Raises:
        ConfigError: The file cannot be read, or holds another model.
    """
    prefix = f"model.pretrained is {path!r}"
    pretrained_digest(path)
    weights = _renamed(_weights(prefix, path), model)
    own = model.state_dict()
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):  # files from before torch 0.4.1 lack these counts
            weights.setdefault(key, value)
    weights = _for_channels(weights, own)
    head = _head(weights, own, classes)
    loaded = {key: value for key, value in weights.items() if key not in head}
    reason = _unfit(loaded, {key: value for key, value in own.items() if key not in head})
    if reason is not None:
        raise ConfigError(
            f"{prefix}: it holds another model than model.name={name} on this data: {reason}"
        )
    model.load_state_dict(loaded, strict=False)
    words = f"{len(loaded)} of {len(own)} tensors from {path}"
    if head:
        left_out = [key for key in own if key in head]
        there = (
            f"{len(weights[left_out[0]])} classes there"
            if left_out[0] in weights
            else "not in the file"
        )
        words += f"; new, for {classes} classes: {', '.join(left_out)} ({there})"
    return words


def _unfit(loaded: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """The reason why weights do not fit a model; None if they fit."""
    for key in sorted(own.keys() - loaded.keys()):
        return f"it lacks {key}"
    for key in sorted(loaded.keys() - own.keys()):
        return f"it has {key}"
    for key, value in loaded.items():
        if value.shape != own[key].shape:
            return f"{key} is {tuple(value.shape)} there and {tuple(own[key].shape)} here"
    return None if loaded else "it has nothing but a classifier"


def _weights(prefix: str, path: str) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    file = Path(path).expanduser()
    try:
        content: Any = read_weights(file)
    except UnreadableWeightsError as error:
        raise ConfigError(
            f"{prefix}: it cannot be read as weights ({error}); expected a .safetensors or a .pth "
            "file"
        ) from error
    if isinstance(content, dict):
        content = next(
            (content[key] for key in _HOLDS if isinstance(content.get(key), dict)), content
        )
    if not is_weights(content):
        raise ConfigError(
            f"{prefix}: it has no weights by name; expected a state_dict, by itself or under "
            f"{', '.join(_HOLDS)}"
        )
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _renamed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under the model's names and in its shapes, by its library's own rules."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if {key: value.shape for key, value in weights.items()} == shapes:
        return weights
    return renamed_by_timm(weights, model)


def _for_channels(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum the first convolution over the colours if the model takes grey images, as timm does."""
    adapted = dict(weights)
    for key, value in own.items():
        there = weights.get(key)
        if there is None or value.dim() != 4 or there.dim() != 4 or value.shape == there.shape:
            continue
        if there.shape[1] == 3 and value.shape[1] == 1 and there.shape[2:] == value.shape[2:]:
            adapted[key] = there.float().sum(1, keepdim=True).to(there.dtype)
    return adapted


def _head(weights: dict[str, Tensor], own: dict[str, Tensor], classes: int) -> set[str]:
    """The tensors of a classifier for another number of classes, or of one that the file lacks."""
    resized = set()
    for key, value in own.items():
        if key not in weights or value.shape[:1] != (classes,):
            continue
        there = weights[key].shape
        if there[:1] != value.shape[:1] and there[1:] == value.shape[1:]:
            resized.add(key)
    if resized:
        return resized
    lacking = [key for key in own if key not in weights]
    homes = {key.rpartition(".")[0] for key in lacking}
    return (
        set(lacking)
        if len(homes) == 1 and all(own[key].shape[:1] == (classes,) for key in lacking)
        else set()
    )
