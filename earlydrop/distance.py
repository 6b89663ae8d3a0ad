"""Model distance: how far a model has moved from another, usually from its initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from earlydrop.sites import unwrap

ModelOrState = nn.Module | Mapping[str, Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's buffers, which are not parameters


def _parameters(model: ModelOrState) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        return {name.replace("_orig_mod.", ""): p.detach() for name, p in unwrap(model).named_parameters()}
    if not isinstance(model, Mapping):
        raise ValueError(f"expected a module or a state dict, got {type(model).__name__}")
    return {
        name.replace("_orig_mod.", "").removeprefix("module."): value.detach()
        for name, value in model.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name.rpartition(".")[2] not in _STATISTICS
    }


@torch.no_grad()
def model_distance(model: ModelOrState, initial: ModelOrState) -> float:
    """The Euclidean distance ‖W − W₀‖₂ between two models over all parameters (Liu et al. 2023, section 3, *model distance*).

    If one side is a module, its parameters are compared (buffers never count). Of two state dicts every floating-point entry but
    BatchNorm's running statistics is compared.

    Args:
        model: A module or a state dict.
        initial: Another, of the same architecture.

    Returns:
        The distance, summed in float64.

    Raises:
        ValueError: The two do not have the same parameters and shapes.

    >>> model_distance({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])})
    5.0
    """
    ours, theirs = _parameters(model), _parameters(initial)
    if isinstance(model, nn.Module) and not isinstance(initial, nn.Module):
        theirs = {name: value for name, value in theirs.items() if name in ours}
    elif isinstance(initial, nn.Module) and not isinstance(model, nn.Module):
        ours = {name: value for name, value in ours.items() if name in theirs}
    if ours.keys() != theirs.keys():
        name = sorted(ours.keys() ^ theirs.keys())[0]
        raise ValueError(f"parameter {name!r} is in one of the two models only: compare models of the same architecture")
    if not ours:
        raise ValueError("the models have no parameters to compare")
    squares = []
    for name, value in ours.items():
        other = theirs[name]
        if value.shape != other.shape:
            raise ValueError(
                f"parameter {name!r} has shape {tuple(value.shape)} in one model and {tuple(other.shape)} in the other"
            )
        difference = value.to(torch.promote_types(value.dtype, torch.float32)) - other.to(value.device)
        squares.append(torch.linalg.vector_norm(difference, dtype=torch.float64).square())
    return math.sqrt(torch.stack([square.to(squares[0].device) for square in squares]).sum().item())
