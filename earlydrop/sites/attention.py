"""Fused attention with its drop rate as a tensor, for compiled graphs.

``F.scaled_dot_product_attention`` takes the rate as a Python float, so every new rate would compile
a new graph. The operator ``earlydrop::attention`` takes it as a tensor on the host and reads it
when the graph runs, which waits for no device. It calls the kernels of torch: flash or
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

from earlydrop.sites.masks import COMPILED

DEVICES: tuple[str, ...] = ("cuda",)
"""Types of devices on which compiled graphs use the operator while attention drops.

On a CPU torch has no fused kernel with dropout, and plain attention is faster.
"""

_aten = torch.ops.aten


def available(device: torch.device) -> bool:
    """Whether compiled graphs use the operator on a device."""
    return COMPILED and device.type in DEVICES


class AttentionRate(Tensor):
    """A drop rate that ``F.scaled_dot_product_attention`` takes as its ``dropout_p``.

    torch.compile traces the call as one of the operator.
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
    if torch.is_autocast_enabled(query.device.type):  # which casts the inputs of torch's function
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
    """The kernel that torch takes for these inputs in training with dropout, without cuDNN's."""
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


# Flash attention


def _padded(tensor: Tensor, multiple: int) -> Tensor:
    """The tensor with zeros after its last dimension, up to a multiple."""
    lacking = -tensor.size(-1) % multiple
    return F.pad(tensor, (0, lacking)) if lacking else tensor


def _flash(
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


def _flash_backward(
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
    """The mask as numbers to add, (B, H, N, M), in rows of aligned memory as the kernel asks."""
    if mask is None:
        return None
    keys = key.size(2)
    aligned = _padded(mask.expand(*mask.shape[:-1], keys), 16)[..., :keys]
    return aligned.expand(query.size(0), query.size(1), query.size(2), keys)


def _efficient(
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


def _efficient_backward(
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
    of_mask = grads[3].sum_to_size(mask.shape).contiguous() if mask_grad else query.new_empty(0)  # type: ignore[union-attr]
    return grads[0], grads[1], grads[2], of_mask


# Plain arithmetic


_STATE_BYTES = {False: torch.get_rng_state().numel(), True: 16}
"""Bytes of the state of a generator: the host's, and that of a GPU."""


def _generator_state(device: torch.device) -> Tensor:
    """The state of the generator that a device draws from, as bytes on the host."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _math(
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


def _math_backward(
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


def _math_shapes(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:-1], value.size(-1)))
    return out, torch.empty(_STATE_BYTES[query.device.type == "cuda"], dtype=torch.uint8)


def _math_backward_shapes(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value, mask = args[:4]
    of_mask = query.new_empty(mask.shape if args[-1] else 0)
    grads = [query.new_empty(tensor.shape) for tensor in (query, key, value)]
    return grads[0], grads[1], grads[2], of_mask


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


# The operators

_ANY_RATE = 0.5  # for shapes, which do not depend on the rate


def _flash_saved(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, rate, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, rate)
    ctx.mark_non_differentiable(*output[1:])


def _flash_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    grads = torch.ops.earlydrop.flash_attention_backward(
        grad, *ctx.saved_tensors, ctx.causal, ctx.scale
    )
    return *grads, None, None, None


def _masked_saved(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
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
    schema: str,
    kernel: Any,
    draws: bool = False,
    shapes: Any = None,
) -> None:
    """Define an operator by a function of the same arguments, with the rate as a number.

    The function gives the shapes of the results too, unless another does.
    """
    # A CUDA graph would keep the rate with which it was recorded.
    tags = [torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe]
    if draws:
        tags.append(torch.Tag.nondeterministic_seeded)
    library.define(f"{name}({schema}", tags=tuple(tags))
    parameters = schema.partition(")")[0].split(", ")
    place = parameters.index("Tensor rate")

    def real(*args: Any) -> Any:
        return kernel(*args[:place], args[place].item(), *args[place + 1 :])

    def fake(*args: Any) -> Any:
        return (shapes or kernel)(*args[:place], _ANY_RATE, *args[place + 1 :])

    library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"earlydrop::{name}", fake, lib=library)


def _register() -> torch.library.Library:
    library = torch.library.Library("earlydrop", "FRAGMENT")
    inputs = "Tensor query, Tensor key, Tensor value"
    masked = f"{inputs}, Tensor? mask"
    options = "Tensor rate, bool causal, float? scale"
    library.define(f"attention({masked}, {options}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("attention", _by_choice, "CompositeImplicitAutograd")
    kept = "Tensor out, Tensor logsumexp, Tensor seed, Tensor offset"
    four = "(Tensor, Tensor, Tensor, Tensor)"
    _define(library, "flash_attention", f"{inputs}, {options}) -> {four}", _flash, draws=True)
    _define(
        library,
        "flash_attention_backward",
        f"Tensor grad, {inputs}, {kept}, {options}) -> (Tensor, Tensor, Tensor)",
        _flash_backward,
    )
    _define(
        library, "efficient_attention", f"{masked}, {options}) -> {four}", _efficient, draws=True
    )
    _define(
        library,
        "efficient_attention_backward",
        f"Tensor grad, {masked}, {kept}, {options}, bool mask_grad) -> {four}",
        _efficient_backward,
    )
    _define(
        library,
        "math_attention",
        f"{masked}, {options}) -> (Tensor, Tensor)",
        _math,
        draws=True,
        shapes=_math_shapes,
    )
    _define(
        library,
        "math_attention_backward",
        f"Tensor grad, {masked}, Tensor state, {options}, bool mask_grad) -> {four}",
        _math_backward,
        shapes=_math_backward_shapes,
    )
    for name, gradients, saved in (
        ("flash", _flash_gradients, _flash_saved),
        ("efficient", _efficient_gradients, _masked_saved),
        ("math", _math_gradients, _masked_saved),
    ):
        torch.library.register_autograd(
            f"earlydrop::{name}_attention", gradients, setup_context=saved, lib=library
        )
    return library


if COMPILED:
    _LIBRARY = _register()
