"""The kernels of torch that `earlydrop.sites.attention` calls, forward and backward.

The rate is a number here. Shapes are those of `earlydrop.sites.attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


# Flash attention


def _padded(tensor: Tensor, multiple: int) -> Tensor:
    """The tensor with its last dimension padded with zeros to a multiple of a number."""
    lacking = -tensor.size(-1) % multiple
    return F.pad(tensor, (0, lacking)) if lacking else tensor


def flash(
    query: Tensor, key: Tensor, value: Tensor, rate: float, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, logarithms of the sums of exponentials, seed and offset of the random numbers."""
    channels = query.size(-1)
    result = _aten._scaled_dot_product_flash_attention(
        _padded(query, 8),
        _padded(key, 8),
        _padded(value, 8),
        rate,
        causal,
        False,
        scale=channels**-0.5 if scale is None else scale,
    )
    out, logsumexp, seed, offset = result[0], result[1], result[6], result[7]
    if out.size(-1) != channels:
        out = out[..., :channels].contiguous()
    return out, logsumexp, seed, offset


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    seed: Tensor,
    offset: Tensor,
    rate: float,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    channels = query.size(-1)
    grads = _aten._scaled_dot_product_flash_attention_backward(
        _padded(grad, 8),
        _padded(query, 8),
        _padded(key, 8),
        _padded(value, 8),
        _padded(out, 8),
        logsumexp,
        None,
        None,
        query.size(2),
        key.size(2),
        rate,
        causal,
        seed,
        offset,
        scale=channels**-0.5 if scale is None else scale,
    )
    if channels % 8:
        grads = [grad[..., :channels].contiguous() for grad in grads]
    return tuple(grads)


# Memory-efficient attention


def _bias(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as a bias of shape (B, H, N, M). Its rows are aligned, as the kernel requires."""
    if mask is None:
        return None
    keys = key.size(2)
    aligned = _padded(mask.expand(*mask.shape[:-1], keys), 16)[..., :keys]
    return aligned.expand(query.size(0), query.size(1), query.size(2), keys)


def efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rate: float,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, logarithms of the sums of exponentials, seed and offset of the random numbers."""
    return _aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
        query, key, value, _bias(query, key, mask), True, rate, causal, scale=scale
    )


def efficient_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    seed: Tensor,
    offset: Tensor,
    rate: float,
    causal: bool,
    scale: float | None,
    mask_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and mask; the last is empty unless it is asked for."""
    grads = _aten._scaled_dot_product_efficient_attention_backward(
        grad,
        query,
        key,
        value,
        _bias(query, key, mask),
        out,
        logsumexp,
        seed,
        offset,
        rate,
        [True, True, True, mask_grad],
        causal,
        scale=scale,
    )
    of_mask = query.new_empty(0)
    if mask is not None and mask_grad:
        of_mask = grads[3].sum_to_size(mask.shape).contiguous()
    return grads[0], grads[1], grads[2], of_mask


# Plain arithmetic


_HOST_STATE_BYTES = torch.get_rng_state().numel()


def _state_bytes(device: torch.device) -> int:
    """Size in bytes of the state of a device's generator."""
    return 16 if device.type == "cuda" else _HOST_STATE_BYTES


def _generator_state(device: torch.device) -> Tensor:
    """The state of the generator that a device draws from, as bytes on the host."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def math_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rate: float,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Output, and the state of the generator before the mask was drawn."""
    state = _generator_state(query.device)
    out = _aten._scaled_dot_product_attention_math(
        query, key, value, mask, rate, causal, None, scale=scale
    )[0]
    return out.contiguous(), state


def math_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    state: Tensor,
    rate: float,
    causal: bool,
    scale: float | None,
    mask_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and mask, by computing the forward again.

    The gradient of the mask is empty unless it is asked for.
    """
    device = query.device
    now = _generator_state(device)
    inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    if mask_grad:
        mask = mask.detach().requires_grad_()  # type: ignore[union-attr]
        inputs.append(mask)
    _set_generator_state(device, state)
    try:
        with torch.enable_grad():
            out = _aten._scaled_dot_product_attention_math(
                *inputs[:3], mask, rate, causal, None, scale=scale
            )[0]
            grads = [g.contiguous() for g in torch.autograd.grad(out, inputs, grad)]
    finally:
        _set_generator_state(device, now)
    of_mask = grads[3] if mask_grad else query.new_empty(0)
    return grads[0], grads[1], grads[2], of_mask


def math_shapes(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:-1], value.size(-1)))
    return out, torch.empty(_state_bytes(query.device), dtype=torch.uint8)


def math_backward_shapes(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value, mask = args[:4]
    of_mask = query.new_empty(mask.shape if args[-1] else 0)
    grads = [query.new_empty(tensor.shape) for tensor in (query, key, value)]
    return grads[0], grads[1], grads[2], of_mask


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
