"""Model distance: the Euclidean distance of two models, usually a model and its initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from earlydrop.exact import brought_home, exact_norm
from earlydrop.sites.unwrap import clean, named_parameters, unwrap

ModelOrState = nn.Module | Mapping[str, Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm, in buffers
_GATHER = (
    "gather both sides first: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True))"
)


def _parameters(model: ModelOrState) -> dict[str, Tensor]:
    """The parameters of a module, or of a state dict, by name."""
    if isinstance(model, nn.Module):
        model = unwrap(model)
        while isinstance(model, AveragedModel):
            model = unwrap(model.module)
        parameters = {name: p.detach() for name, p in named_parameters(model)}
    elif isinstance(model, Mapping):
        entries = {clean(name): value for name, value in model.items()}
        parameters = {name: p.detach() for name, p in entries.items() if _may_be_parameter(name, p)}
    else:
        raise ValueError(f"expected a module or a state dict, got {type(model).__name__}")
    refuse_sharded(parameters, "model_distance", _GATHER)
    return parameters


_Parameters = dict[str, Tensor]


def _with_equal_names(ours: _Parameters, theirs: _Parameters) -> tuple[_Parameters, _Parameters]:
    """Both sides, without the prefix of DistributedDataParallel where only one side has it."""
    if ours.keys().isdisjoint(theirs):
        for pair in ((_without_prefix(ours), theirs), (ours, _without_prefix(theirs))):
            if not pair[0].keys().isdisjoint(pair[1]):
                return pair
    return ours, theirs


def _without_prefix(parameters: _Parameters) -> _Parameters:
    """The parameters without the prefix that DistributedDataParallel puts before every name."""
    if not all(name.startswith("module.") for name in parameters):
        return parameters
    return {name.removeprefix("module."): value for name, value in parameters.items()}


def _may_be_parameter(name: str, value: object) -> bool:
    """Whether an entry of a state dict may be a parameter.

    Floating-point buffers pass too, except the running statistics of BatchNorm.
    """
    if not isinstance(value, Tensor) or name.rpartition(".")[2] in _STATISTICS:
        return False
    return value.is_floating_point() or value.is_complex()


def refuse_sharded(parameters: Mapping[str, Tensor], function: str, remedy: str) -> None:
    """Refuse sharded parameters, of which this process holds only a part.

    A DTensor (FSDP2, tensor parallelism) is sharded. The error names the refusing ``function`` and
    the ``remedy``.
    """
    kinds = "FSDP2, tensor parallelism"
    for name, parameter in parameters.items():
        if hasattr(parameter, "full_tensor"):
            refusal = f"{function} does not support sharded parameters ({kinds})"
            raise ValueError(f"{refusal}, and {name!r} is one: {remedy}")


def _second_names(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> set[str]:
    """All names of tied parameters except the first.

    Names are tied if they share memory in one of the two models and have equal values in the other.
    """
    second: set[str] = set()
    for tied, compared in ((ours, theirs), (theirs, ours)):
        first: dict[object, str] = {}
        for name, value in tied.items():
            if value.numel() == 0 or value.is_meta or name in second:
                continue
            memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
            kept = first.setdefault(memory, name)
            if kept == name or name not in compared or kept not in compared:
                continue
            if torch.equal(compared[name], compared[kept]):
                second.add(name)
    return second


@torch.no_grad()
def model_distance(model: ModelOrState, initial: ModelOrState) -> float:
    """The Euclidean distance ‖W − W₀‖₂ of two models over all parameters.

    Liu et al. 2023, section 3, *model distance*. If one side is a module, its parameters are
    compared, and all other entries of a state dict are ignored. If both are state dicts, every
    floating-point and complex entry is compared, except the running statistics of BatchNorm. A tied
    parameter counts once. In two state dicts it is recognised by its shared memory in one and its
    equal values in the other. If both are clones, it counts under each of its names.

    Args:
        model: A module or a state dict. An AveragedModel stands for the model inside.
        initial: Another module or state dict, of the same architecture.

    Returns:
        The distance, summed in float64.

    Raises:
        ValueError: An argument is neither a module nor a state dict, the two differ in their
            parameters or shapes, they have no parameters, or a parameter is sharded (FSDP2).

    >>> model_distance({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])})
    5.0
    """
    ours, theirs = _with_equal_names(_parameters(model), _parameters(initial))
    if isinstance(model, nn.Module) and not isinstance(initial, nn.Module):
        theirs = {name: value for name, value in theirs.items() if name in ours}
    elif isinstance(initial, nn.Module) and not isinstance(model, nn.Module):
        ours = {name: value for name, value in ours.items() if name in theirs}
    if ours.keys() != theirs.keys():
        name = sorted(ours.keys() ^ theirs.keys())[0]
        remedy = "compare models of the same architecture"
        raise ValueError(f"parameter {name!r} is in one of the two models only: {remedy}")
    for name in _second_names(ours, theirs):
        del ours[name]
    if not ours:
        raise ValueError("the models have no parameters to compare")
    squares = []
    for name, value in ours.items():
        start = theirs[name]
        if value.shape != start.shape:
            shapes = f"{tuple(value.shape)} in one model and {tuple(start.shape)} in the other"
            raise ValueError(f"parameter {name!r} has shape {shapes}")
        if start.dtype in (torch.float64, torch.complex128):
            value = brought_home(value)  # the difference needs a device with float64
        precision = torch.promote_types(value.dtype, torch.float32)
        difference = value.to(precision) - start.to(value.device)
        difference = torch.view_as_real(difference) if difference.is_complex() else difference
        squares.append(exact_norm(difference).square())
    total = torch.stack([square.to(squares[0].device) for square in squares]).sum()
    return math.sqrt(total.item())
