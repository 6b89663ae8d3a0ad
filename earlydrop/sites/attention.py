"""Fused attention with its drop rate as a tensor, for compiled graphs.

``F.scaled_dot_product_attention`` takes the rate as a Python float, so every new rate would compile
a new graph. The operator ``earlydrop::attention`` takes it as a tensor on the host and reads it
when the graph runs, without synchronising the device. It calls the kernels of torch: flash or
memory-efficient attention where torch would take them, and plain arithmetic elsewhere.

Shapes: B samples, H heads, N queries, M keys, D channels of a head. ``query`` is (B, H, N, D),
``key`` and ``value`` are (B, H, M, D), ``mask`` is None or broadcasts to (B, H, N, M), ``rate`` is
(1,) float64 on the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from earlydrop.sites import attention_kernels as kernels
from earlydrop.sites.masks import COMPILED

DEVICES: tuple[str, ...] = ("cuda",)
"""Types of devices on which compiled graphs use the operator while attention drops.

On a CPU torch has no fused kernel with dropout, and plain attention is faster.
"""


def available(device: torch.device) -> bool:
    """Whether compiled graphs use the operator on a device."""
    return COMPILED and device.type in DEVICES


class AttentionRate(Tensor):
    """A drop rate that ``F.scaled_dot_product_attention`` takes as its ``dropout_p``.

    torch.compile traces the call as a call of the operator.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunctionSubclass():
                return _attention(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: Any = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` by the operator."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    if torch.is_autocast_enabled(query.device.type):  # cast as autocast does for torch's function
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    attended: Tensor = torch.ops.earlydrop.attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale
    )
    return attended


# The choice of a kernel


def _choose(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> int:
    """The kernel that torch takes for these inputs in training with dropout, if cuDNN is off."""
    query, key, value = (t.detach().requires_grad_() for t in (query, key, value))
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return torch._fused_sdp_choice(
            query, key, value, attn_mask=mask, dropout_p=0.5, is_causal=causal, scale=scale
        )
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def _by_choice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rate: Tensor,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Attention by the kernel that torch takes; a graph keeps the kernel it was traced with."""
    if mask is not None and mask.dtype == torch.bool:  # as torch does for all its kernels
        zeros = torch.zeros_like(mask, dtype=query.dtype)
        mask = zeros.masked_fill(~mask, float("-inf"))
    choice = _choose(query, key, value, mask, causal, scale)
    ops = torch.ops.earlydrop
    if choice == SDPBackend.FLASH_ATTENTION.value and mask is None:
        out = ops.flash_attention(query, key, value, rate, causal, scale)[0]
    elif choice == SDPBackend.EFFICIENT_ATTENTION.value:
        out = ops.efficient_attention(query, key, value, mask, rate, causal, scale)[0]
    else:
        out = ops.math_attention(query, key, value, mask, rate, causal, scale)[0]
    return out  # type: ignore[no-any-return]


# The operators

_ANY_RATE = 0.5  # for shapes, which do not depend on the rate


def _save_flash(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, rate, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, rate)
    ctx.mark_non_differentiable(*output[1:])


def _flash_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    grads = torch.ops.earlydrop.flash_attention_backward(
        grad, *ctx.saved_tensors, ctx.causal, ctx.scale
    )
    return *grads, None, None, None


def _save_masked(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, mask, rate, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, mask, *output, rate)
    ctx.mark_non_differentiable(*output[1:])


def _efficient_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    of_mask = ctx.needs_input_grad[3]
    grads = torch.ops.earlydrop.efficient_attention_backward(
        grad, *ctx.saved_tensors, ctx.causal, ctx.scale, of_mask
    )
    return *grads[:3], grads[3] if of_mask else None, None, None, None


def _math_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    query, key, value, mask, _out, state, rate = ctx.saved_tensors
    of_mask = ctx.needs_input_grad[3]
    grads = torch.ops.earlydrop.math_attention_backward(
        grad, query, key, value, mask, state, rate, ctx.causal, ctx.scale, of_mask
    )
    return *grads[:3], grads[3] if of_mask else None, None, None, None


def _define(
    library: torch.library.Library,
    name: str,
    arguments: str,
    results: str,
    kernel: Any,
    draws: bool = False,
    shapes: Any = None,
) -> None:
    """Define an operator that reads the rate from its tensor and calls a kernel with the number.

    ``arguments`` and ``results`` are in torch's schema language; one argument is ``Tensor rate``.
    ``kernel`` takes the same arguments, with the rate as a number. ``shapes`` returns empty results
    of the right shapes; None to use the kernel.
    """
    # A CUDA graph would keep the rate with which it was recorded.
    tags = [torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe]
    if draws:
        tags.append(torch.Tag.nondeterministic_seeded)
    library.define(f"{name}({arguments}) -> {results}", tags=tuple(tags))
    place = arguments.split(", ").index("Tensor rate")
    shape_function = shapes or kernel

    def real(*args: Any) -> Any:
        return kernel(*args[:place], args[place].item(), *args[place + 1 :])

    def fake(*args: Any) -> Any:
        return shape_function(*args[:place], _ANY_RATE, *args[place + 1 :])

    library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"earlydrop::{name}", fake, lib=library)


_INPUTS = "Tensor query, Tensor key, Tensor value"
_MASKED = f"{_INPUTS}, Tensor? mask"
_OPTIONS = "Tensor rate, bool causal, float? scale"
_KEPT = "Tensor out, Tensor logsumexp, Tensor seed, Tensor offset"


def _register() -> torch.library.Library:
    """Define the operators ``earlydrop::attention`` and one for each kernel."""
    library = torch.library.Library("earlydrop", "FRAGMENT")
    library.define(
        f"attention({_MASKED}, {_OPTIONS}) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.impl("attention", _by_choice, "CompositeImplicitAutograd")
    _register_flash(library)
    _register_efficient(library)
    _register_math(library)
    return library


def _register_flash(library: torch.library.Library) -> None:
    _define(
        library,
        "flash_attention",
        arguments=f"{_INPUTS}, {_OPTIONS}",
        results=_tensors(4),
        kernel=kernels.flash,
        draws=True,
    )
    _define(
        library,
        "flash_attention_backward",
        arguments=f"Tensor grad, {_INPUTS}, {_KEPT}, {_OPTIONS}",
        results=_tensors(3),
        kernel=kernels.flash_backward,
    )
    _differentiable(library, "flash_attention", _flash_gradients, _save_flash)


def _register_efficient(library: torch.library.Library) -> None:
    _define(
        library,
        "efficient_attention",
        arguments=f"{_MASKED}, {_OPTIONS}",
        results=_tensors(4),
        kernel=kernels.efficient,
        draws=True,
    )
    _define(
        library,
        "efficient_attention_backward",
        arguments=f"Tensor grad, {_MASKED}, {_KEPT}, {_OPTIONS}, bool mask_grad",
        results=_tensors(4),
        kernel=kernels.efficient_backward,
    )
    _differentiable(library, "efficient_attention", _efficient_gradients, _save_masked)


def _register_math(library: torch.library.Library) -> None:
    _define(
        library,
        "math_attention",
        arguments=f"{_MASKED}, {_OPTIONS}",
        results=_tensors(2),
        kernel=kernels.math_plain,
        draws=True,
        shapes=kernels.math_shapes,
    )
    _define(
        library,
        "math_attention_backward",
        arguments=f"Tensor grad, {_MASKED}, Tensor state, {_OPTIONS}, bool mask_grad",
        results=_tensors(4),
        kernel=kernels.math_backward,
        shapes=kernels.math_backward_shapes,
    )
    _differentiable(library, "math_attention", _math_gradients, _save_masked)


def _differentiable(library: torch.library.Library, name: str, gradients: Any, saved: Any) -> None:
    torch.library.register_autograd(
        f"earlydrop::{name}", gradients, setup_context=saved, lib=library
    )


def _tensors(count: int) -> str:
    """The type of several results in torch's schema language."""
    return f"({', '.join(['Tensor'] * count)})"


if COMPILED:
    _LIBRARY = _register()
