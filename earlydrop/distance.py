"""Model distance: how far a model has moved from another, usually from its initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from earlydrop.exact import brought_home, exact_norm
from earlydrop.sites.unwrap import clean, named_parameters, unwrap

ModelOrState = nn.Module | Mapping[str, Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's buffers, which are not parameters


def _parameters(model: ModelOrState) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        model = unwrap(model)
        while isinstance(model, AveragedModel):
            model = unwrap(model.module)
        found = {name: p.detach() for name, p in named_parameters(model)}
    elif isinstance(model, Mapping):
        found = {
            clean(name): value.detach()
            for name, value in model.items()
            if isinstance(value, Tensor)
            and (value.is_floating_point() or value.is_complex())
            and name.rpartition(".")[2] not in _STATISTICS
        }
        if all(name.startswith("module.") for name in found):  # saved with DistributedDataParallel around it
            found = {name.removeprefix("module."): value for name, value in found.items()}
    else:
        raise ValueError(f"expected a module or a state dict, got {type(model).__name__}")
    refuse_sharded(
        found,
        "model_distance",
        "gather both sides first: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True))",
    )
    return found


def refuse_sharded(parameters: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Refuse parameters of which this process holds a part only.

    Args:
        parameters: Parameters by name.
        what: Who refuses.
        remedy: What to do instead.

    Raises:
        ValueError: One of them is a DTensor (FSDP2, tensor parallelism).
    """
    for name, parameter in parameters.items():
        if hasattr(parameter, "full_tensor"):
            raise ValueError(
                f"{what} does not support sharded parameters (FSDP2, tensor parallelism), and {name!r} is one: {remedy}"
            )


def _second_names(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> set[str]:
    """Names under which a state dict lists a parameter once more: one memory in either of the two, equal values in both."""
    again: set[str] = set()
    for one, other in ((ours, theirs), (theirs, ours)):
        first: dict[object, str] = {}
        for name, value in one.items():
            if value.numel() == 0 or value.is_meta or name in again:
                continue
            memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            kept = first.setdefault(memory, name)
            if kept != name and name in other and kept in other and torch.equal(other[name], other[kept]):
                again.add(name)
    return again


@torch.no_grad()
def model_distance(model: ModelOrState, initial: ModelOrState) -> float:
    """The Euclidean distance ‖W − W₀‖₂ between two models over all parameters (Liu et al. 2023, section 3, *model distance*).

    If one side is a module, its parameters are compared (buffers never count). Of two state dicts every floating-point and complex entry
    but BatchNorm's running statistics is compared. A tied parameter counts once: in two state dicts it is known by its shared memory,
    so a pair of clones counts it under each of its names.

    Args:
        model: A module (an AveragedModel is looked through) or a state dict.
        initial: Another, of the same architecture.

    Returns:
        The distance, summed in float64.

    Raises:
        ValueError: The two do not have the same parameters and shapes, or hold parts only (FSDP2).

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
    for name in _second_names(ours, theirs):
        del ours[name]
    if not ours:
        raise ValueError("the models have no parameters to compare")
    squares = []
    for name, value in ours.items():
        other = theirs[name]
        if value.shape != other.shape:
            raise ValueError(
                f"parameter {name!r} has shape {tuple(value.shape)} in one model and {tuple(other.shape)} in the other"
            )
        if other.dtype in (torch.float64, torch.complex128):
            value = brought_home(value)  # where the other can be
        difference = value.to(torch.promote_types(value.dtype, torch.float32)) - other.to(value.device)
        difference = torch.view_as_real(difference) if difference.is_complex() else difference
        squares.append(exact_norm(difference).square())
    return math.sqrt(torch.stack([square.to(squares[0].device) for square in squares]).sum().item())
