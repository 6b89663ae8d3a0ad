"""The max-norm constraint on each unit's incoming weights (Srivastava et al. 2014, section 5.1 and appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def max_norm_(model: nn.Module, limit: float) -> None:
    """Scale every unit's incoming weights down to a norm of at most ``limit``, in place. Call it after the optimizer's step.

    A unit is an output of a linear layer (attention's projections included) or an output channel of a convolution:
    w ← w · min(1, limit / ‖w‖₂). Biases are left alone.

    Args:
        model: The model.
        limit: c, above 0; the paper recommends 3 to 4.

    Raises:
        ValueError: The limit is not above 0, the model has no such layer, or a layer's weight is parametrized.

    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> max_norm_(layer, 1.0)
    >>> layer.weight.data
    tensor([[0.6000, 0.8000]])
    """
    check_limit(limit)
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    for name, module in model.named_modules():
        if "parametrizations" in module._modules:
            raise ValueError(
                f"{name or type(module).__name__} computes its weight by a parametrization, which max-norm cannot scale"
            )
        if isinstance(module, nn.MultiheadAttention):
            for projection in (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
                if projection is not None:
                    _limit(projection, (1,), limit)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer or convolution: max-norm has no incoming weights to limit")
    for layer in layers:
        if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...): a unit's weights are spread over the first dimension
            groups = layer.groups
            weight: Tensor = layer.weight.unflatten(0, (groups, -1))
            axes = (1, *range(3, weight.dim()))
        else:
            weight, axes = layer.weight, tuple(range(1, layer.weight.dim()))
        _limit(weight, axes, limit)


def _limit(weight: Tensor, axes: tuple[int, ...], limit: float) -> None:
    norms = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    weight.mul_(torch.clamp(limit / norms.clamp_min(torch.finfo(norms.dtype).tiny), max=1.0))


def check_limit(limit: float, name: str = "limit") -> None:
    """Refuse what cannot be a limit.

    Args:
        limit: The limit.
        name: What to call it.

    Raises:
        ValueError: It is not above 0.
    """
    if not limit > 0:
        raise ValueError(f"{name} is {limit!r}: expected a norm above 0, such as 3")
