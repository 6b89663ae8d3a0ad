"""The max-norm constraint on the incoming weights of each unit.

Srivastava et al. 2014, section 5.1 and appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED_CONVOLUTIONS)


@torch.no_grad()
def max_norm_(model: nn.Module, limit: float) -> None:
    """Scale the incoming weights of every unit to a norm of at most ``limit``, in place.

    w ← w · min(1, limit / ‖w‖₂). A unit is an output of a linear layer or an output channel of a
    convolution. The projections of attention and the ``Conv1D`` of transformers are linear layers.
    Biases and the weights of recurrent layers are left alone. Call it after each step of the
    optimizer.

    Args:
        model: The model.
        limit: The largest norm (c in the paper), above 0. The paper recommends 3 to 4.

    Raises:
        ValueError: The limit is not above 0, the model has no such layer, or a weight is computed
            from other tensors (parametrizations, weight norm, spectral norm, pruning).

    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> max_norm_(layer, 1.0)
    >>> layer.weight.data
    tensor([[0.6000, 0.8000]])
    """
    if not limit > 0:
        raise ValueError(f"limit is {limit!r}: expected a norm above 0, such as 3")
    for name, module in model.named_modules():
        _refuse_computed(name, module)
    layers = [module for module in model.modules() if _is_layer(module)]
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    if not layers and not attentions:
        raise ValueError(
            f"{type(model).__name__} has no linear layer or convolution: "
            "max-norm has no incoming weights to limit"
        )
    for attention in attentions:
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            projection = getattr(attention, name)
            if projection is not None:
                _limit(projection, (1,), limit)
    for layer in layers:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if isinstance(layer, _ConvTransposeNd):
            # The weight is (in, out / groups, ...): split the first dimension into its groups.
            weight = weight.unflatten(0, (layer.groups, -1))
            axes: tuple[int, ...] = (1, *range(3, weight.dim()))
        elif _is_transposed_linear(layer):
            axes = (0,)
        else:
            axes = tuple(range(1, weight.dim()))
        _limit(weight, axes, limit)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is Conv1D of transformers, a linear layer with its weight as (in, out)."""
    for cls in type(module).__mro__:
        if cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers."):
            return True
    return False


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _LAYERS) or _is_transposed_linear(module)


def _refuse_computed(name: str, module: nn.Module) -> None:
    """Refuse a weight that is computed before each forward: scaling it would not last."""
    weight = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
    checked = _is_layer(module) or isinstance(module, nn.MultiheadAttention)
    if "parametrizations" in module._modules:
        how = "a parametrization"
    elif checked and weight not in module._parameters:
        how = "a hook (torch.nn.utils' older weight_norm or spectral_norm, or pruning)"
    else:
        return
    raise ValueError(
        f"{name or type(module).__name__} computes its weight by {how}, which max-norm cannot "
        "scale: remove it first"
    )


def _limit(weight: Tensor, axes: tuple[int, ...], limit: float) -> None:
    norms = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    weight.mul_(torch.clamp(limit / norms.clamp_min(torch.finfo(norms.dtype).tiny), max=1.0))
