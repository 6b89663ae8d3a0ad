"""Weights for evaluation, from other runs and from the paper's released code."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.names import first_line
from earlydrop.training.record.checkpoint import BEST, list_checkpoints

# The errors that timm's renaming raises for the weights of another model.
_NOT_OF_THIS_MODEL = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def foreign_weights(path: str, name: str, model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """The weights in a checkpoint, each with a title, under the names that the model uses.

    Args:
        path: A file, a run's folder, or its folder ``checkpoints``. The newest ``step-*.pt`` of a
            folder is used, or else its only ``*.pt*`` file besides ``best.pt``. A checkpoint holds
            ``model`` and perhaps ``model_ema``; one of the released code also holds the arguments
            of its command line. A file that holds only weights by name is read as ``model``.
        name: ``model.name``.
        model: The model that the weights are for. It is not changed.

    Returns:
        Pairs of a title and a dictionary: ``model`` has the weights, ``scheduler`` the state of
        the scheduler or None. The averaged weights (``model_ema``), if there are any, come first.

    Raises:
        ConfigError: There is no such file, several files of a folder fit, the file is not a
            checkpoint, or it is of another model.
    """
    file = _file(Path(path).expanduser(), path)
    try:
        content = read_weights(file)
    except UnreadableWeightsError as error:
        raise ConfigError(
            f"checkpoint is {path!r}: {file.name} cannot be read as weights ({error}); expected a "
            "run's checkpoint, one of the released code, or a file of weights"
        ) from error
    if is_weights(content):
        content = {"model": content}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ConfigError(
            f"checkpoint is {path!r}: {file.name} has no 'model' with weights by name"
        )
    titled = []
    for key, words in (("model_ema", "averaged weights"), ("model", "weights")):
        if isinstance(content.get(key), dict):
            weights = content[key]
            if weights.keys() != model.state_dict().keys():
                renamed = renamed_by_timm(weights, model)
                weights = weights if _has_resized(renamed, weights) else renamed
            _check(weights, model, f"checkpoint is {path!r}: {file.name}", name)
            title = f"{words} of {file}{_position(content)}"
            titled.append((title, {"model": weights, "scheduler": content.get("scheduler")}))
    return titled


def is_weights(content: object) -> bool:
    """Whether the content of a file is weights by name and nothing else."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(value, Tensor) for value in content.values())


def _position(content: Mapping[str, Any]) -> str:
    """The step or epoch of a checkpoint, as the end of a title; empty if it holds neither."""
    for key in ("step", "epoch"):
        if key in content:
            return f", {key} {content[key]}"
    return ""


class UnreadableWeightsError(Exception):
    """A file of weights cannot be read; the message is the reason, in one line."""


def read_weights(file: Path) -> Any:
    """The content of a file of weights, on the CPU. Nothing in it is run.

    Raises:
        UnreadableWeightsError: It cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # The released files hold this class. No other class is allowed.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # pickle, zipfile, torch and safetensors have errors of their own for damaged files.
        raise UnreadableWeightsError(first_line(error)) from error


def _file(path: Path, given: str) -> Path:
    if path.is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    files = list_checkpoints(folder)
    if not files:
        files = [file for file in sorted(folder.glob("*.pt*")) if file.name != BEST]
    if not files:
        raise ConfigError(
            f"checkpoint is {given!r}: there is no such file, nor a folder with checkpoints"
        )
    if len(files) > 1 and not files[0].name.startswith("step-"):
        raise ConfigError(
            f"checkpoint is {given!r}: {len(files)} files are there "
            f"({', '.join(x.name for x in files[:3])}, ...); name one"
        )
    return files[0]


def renamed_by_timm(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The weights under the present names of a model of timm, by timm's own rules.

    The rules also interpolate position embeddings to the model's image size.
    If the model is not of timm, or if timm's rules fail because the weights are of another model,
    the weights are returned unchanged.
    """
    home = type(model).__module__
    rename = None
    if home.startswith("timm."):
        rename = getattr(importlib.import_module(home), "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    try:
        renamed: dict[str, Any] = rename(dict(weights), model)
    except _NOT_OF_THIS_MODEL:
        return weights
    return renamed


def _has_resized(renamed: Mapping[str, Any], weights: Mapping[str, Any]) -> bool:
    """Whether position embeddings were interpolated, so that the weights are of another size."""
    sizes = {value.numel() for value in weights.values() if isinstance(value, Tensor)}
    positions = [value for name, value in renamed.items() if "pos" in name]
    return any(value.numel() not in sizes for value in positions)


def _check(weights: dict[str, Any], model: nn.Module, where: str, name: str) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    further = sorted(weights.keys() - own.keys())
    shared = [key for key in own if key in weights]
    shapes = [key for key in shared if weights[key].shape != own[key].shape]
    if missing or further or shapes:
        reason = (
            f"it lacks {missing[0]}" if missing
            else f"it has {further[0]}" if further
            else f"{shapes[0]} is {tuple(weights[shapes[0]].shape)} there and "
            f"{tuple(own[shapes[0]].shape)} here"
        )  # fmt: skip
        raise ConfigError(
            f"{where} holds another model than model.name={name} on this data: {reason}"
        )
