"""Weights to begin with, from a file on this machine: ``model.pretrained``."""

from __future__ import annotations

import functools
import hashlib
import importlib
import pickle
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.record.foreign import read_weights

_HOLDS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where a checkpoint may keep its weights; averaged ones first


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
            f"model.pretrained is {path!r}: {error.strerror or error}; expected a file of weights on this machine (.safetensors, .pth)"
        ) from error


@functools.lru_cache(maxsize=16)
def _digest(file: Path, changed: int, size: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_pretrained(path: str, name: str, model: nn.Module, classes: int) -> str:
    """Give a model the weights of a file, all but a classifier for another number of classes; say so in words.

    Raises:
        ConfigError: The file cannot be read, or holds another model.
    """
    said = f"model.pretrained is {path!r}"
    pretrained_digest(path)
    weights = _renamed(_weights(said, path), model)
    wanted = model.state_dict()
    weights = _for_channels(weights, wanted)
    head = _head(weights, wanted, classes)
    found = {key: value for key, value in weights.items() if key not in head}
    reason = _unfit(found, {key: value for key, value in wanted.items() if key not in head})
    if reason is not None:
        raise ConfigError(f"{said}: it holds another model than model.name={name} on this data: {reason}")
    model.load_state_dict(found, strict=False)
    words = f"{len(found)} of {len(wanted)} tensors from {path}"
    if head:
        left_out = [key for key in wanted if key in head]
        there = f"{len(weights[left_out[0]])} classes there" if left_out[0] in weights else "not in the file"
        words += f"; new, for {classes} classes: {', '.join(left_out)} ({there})"
    return words


def _unfit(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    """Why weights are not those of a model; None if they are."""
    for key in sorted(wanted.keys() - found.keys()):
        return f"it lacks {key}"
    for key in sorted(found.keys() - wanted.keys()):
        return f"it has {key}"
    for key, value in found.items():
        if value.shape != wanted[key].shape:
            return f"{key} is {tuple(value.shape)} there and {tuple(wanted[key].shape)} here"
    return None if found else "it has nothing but a classifier"


def _weights(said: str, path: str) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    file = Path(path).expanduser()
    try:
        content: Any = read_weights(file)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{said}: it cannot be read as weights ({(str(error).splitlines() or ['?'])[0]}); expected a .safetensors or a .pth file"
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in _HOLDS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{said}: it has no weights by name; expected a state_dict, by itself or under {', '.join(_HOLDS)}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _renamed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under the names and in the shapes that the model has, by its library's own rules where they are not so already."""
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if {key: value.shape for key, value in weights.items()} == shapes:
        return weights
    home = type(model).__module__
    if home.partition(".")[0] != "timm":
        return weights
    rename = getattr(importlib.import_module(home), "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    try:
        renamed: dict[str, Tensor] = rename(dict(weights), model)
    except (KeyError, RuntimeError, AttributeError, TypeError, ValueError):  # another model: said where the names are compared
        return weights
    return renamed


def _for_channels(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A first convolution for colour images, summed over the colours for grey ones, as timm does."""
    found = dict(weights)
    for key, value in wanted.items():
        there = weights.get(key)
        if there is None or value.dim() != 4 or there.dim() != 4 or value.shape == there.shape:
            continue
        if there.shape[1] == 3 and value.shape[1] == 1 and there.shape[2:] == value.shape[2:]:
            found[key] = there.float().sum(1, keepdim=True).to(there.dtype)
    return found


def _head(weights: dict[str, Tensor], wanted: dict[str, Tensor], classes: int) -> set[str]:
    """The tensors of a classifier for another number of classes, or of one that the file lacks."""
    other = {
        key
        for key, value in wanted.items()
        if key in weights
        and value.shape[:1] == (classes,)
        and weights[key].shape[:1] != value.shape[:1]
        and weights[key].shape[1:] == value.shape[1:]
    }
    if other:
        return other
    lacking = [key for key in wanted if key not in weights]
    homes = {key.rpartition(".")[0] for key in lacking}
    return set(lacking) if len(homes) == 1 and all(wanted[key].shape[:1] == (classes,) for key in lacking) else set()
