"""Masks: every kind of dropout with its rate as a tensor, and 16-bit masks for CPUs.

Each kind of dropout is a function that computes its forward in training mode. The rate is a 0-d
float32 tensor instead of a Python float, so a compiled graph reads it at run time. Uniform numbers
are drawn and scaled in float32, since bfloat16 is too coarse for small rates. `fast_dropout` and
`fast_inverted` draw 16 random bits an entry instead, and `fast_dropout` takes a Python float.

Shapes: ``x`` is any floating-point tensor, ``rate`` is 0-d float32 on the device of ``x``. The
result has the shape and dtype of ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A rate just below 1 can round to 1 in float32. Without the clamp its scale would be infinite.
_SMALLEST_KEEP = 2.0**-24
_SELU_ALPHA_PRIME = 1.7580993408473766  # lambda * alpha of SELU: alpha dropout drops to minus this


def _keep(shape: tuple[int, ...] | torch.Size, rate: Tensor) -> Tensor:
    """A boolean mask that is False with probability ``rate``."""
    return torch.rand(shape, dtype=torch.float32, device=rate.device) >= rate


def inverted(
    x: Tensor, rate: Tensor, shape: tuple[int, ...] | torch.Size, scale: bool = True
) -> Tensor:
    """Inverted dropout: x · mask / (1 − rate), with one draw for each entry of the mask.

    ``shape`` is the shape of the mask, which broadcasts to ``x``. Without ``scale`` the result is
    not divided by the keep probability.
    """
    keep = _keep(shape, rate)
    if not scale:
        return x * keep
    return (x * (keep / (1.0 - rate).clamp_min(_SMALLEST_KEEP))).to(x.dtype)


def nested(x: Tensor, rate: Tensor) -> Tensor:
    """`inverted` for a nested tensor, with one draw for each of its entries.

    Args:
        x: Input, a nested tensor.
        rate: Drop rate, 0-d.

    Returns:
        The input with its dropped entries set to 0.
    """
    keep = torch.rand_like(x, dtype=torch.float32) >= rate
    return (x * (keep / (1.0 - rate).clamp_min(_SMALLEST_KEEP))).to(x.dtype)


def gaussian(x: Tensor, rate: Tensor) -> Tensor:
    """Multiplicative Gaussian noise: x · N(1, rate/(1 − rate)).

    Srivastava et al. 2014, section 10.
    """
    spread = (rate / (1.0 - rate).clamp_min(_SMALLEST_KEEP)).sqrt()
    noise = torch.randn(x.shape, dtype=torch.float32, device=x.device)
    return (x * (1.0 + spread * noise)).to(x.dtype)


def alpha(x: Tensor, rate: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Alpha dropout, which keeps the zero mean and unit variance of SELU.

    Klambauer et al. 2017, arXiv:1706.02515. The result is a · (x where kept, else −α') + b, with
    a = ((1 − rate)(1 + rate α'²))^−½ and b = a α' rate.
    """
    keep = _keep(shape, rate)
    kept = (1.0 - rate).clamp_min(_SMALLEST_KEEP)
    a = ((_SELU_ALPHA_PRIME**2 * rate + 1.0) * kept).rsqrt()
    b = torch.where(keep, 0.0, -_SELU_ALPHA_PRIME) * a + _SELU_ALPHA_PRIME * rate * a
    return (x * (keep * a) + b).to(x.dtype)


def timm_drop_block(
    x: Tensor,
    rate: Tensor,
    block_size: int,
    gamma_scale: float,
    with_noise: bool,
    couple_channels: bool,
    scale_by_keep: bool,
) -> Tensor:
    """DropBlock (Ghiasi et al. 2018, arXiv:1810.12890) as timm's ``drop_block_2d`` computes it."""
    batch, channels, height, width = x.shape
    kh, kw = min(block_size, height), min(block_size, width)
    positions = (height - kh + 1) * (width - kw + 1)
    gamma = rate * (gamma_scale * height * width / (kh * kw) / positions)
    shape = (batch, 1 if couple_channels else channels, height, width)
    dropped = (torch.rand(shape, dtype=torch.float32, device=x.device) < gamma).to(torch.float32)
    dropped = F.max_pool2d(dropped, (kh, kw), stride=1, padding=(kh // 2, kw // 2))
    if kh % 2 == 0 or kw % 2 == 0:
        dropped = dropped[..., (kh + 1) % 2 :, (kw + 1) % 2 :]
    keep = 1.0 - dropped
    if with_noise:
        return (x * keep + torch.randn_like(keep) * dropped).to(x.dtype)
    if scale_by_keep:
        keep = keep * (keep.numel() / (keep.sum() + 1e-7))
    return (x * keep).to(x.dtype)


def torchvision_drop_block(x: Tensor, rate: Tensor, block_size: int, eps: float) -> Tensor:
    """DropBlock as torchvision's ``drop_block2d`` and ``drop_block3d`` compute it."""
    spatial = tuple(x.shape[2:])
    block = min(block_size, *spatial)
    if block % 2 == 0:
        raise ValueError(f"block size should be odd. Got {block} which is even.")  # as torchvision
    starts = tuple(side - block + 1 for side in spatial)
    gamma = rate * (math.prod(spatial) / (block ** len(spatial) * math.prod(starts)))
    uniform = torch.rand((*x.shape[:2], *starts), dtype=torch.float32, device=x.device)
    dropped = (uniform < gamma).to(torch.float32)
    dropped = F.pad(dropped, [block // 2] * (2 * len(spatial)), value=0)
    pool = F.max_pool2d if len(spatial) == 2 else F.max_pool3d
    keep = 1.0 - pool(dropped, kernel_size=block, stride=1, padding=block // 2)
    return (x * keep * (keep.numel() / (eps + keep.sum()))).to(x.dtype)


def fast_dropout(x: Tensor, rate: float) -> Tensor:
    """Inverted dropout with masks of 16 random bits an entry (ours).

    It takes about a third of the time of the native kernel on a CPU. The rate is rounded to a
    multiple of 1/65,536, and the scale is 1 / (the rounded keep probability), so the mean is exact.
    The distribution is that of the native kernel; the random numbers differ. It raises RuntimeError
    under torch.func.vmap and for a nested tensor.
    """
    refuse_nested(x)
    if torch._C._functorch.is_batchedtensor(x):
        _refuse_vmap()
    dropped_of_65536 = min(round(rate * 65_536), 65_535)
    try:
        bits = _draw_bits(x.shape, x.device)
    except RuntimeError:
        # An input that all models of a vmap share is not batched, so the check above misses it.
        if torch._C._functorch.peek_interpreter_stack() is not None:
            _refuse_vmap()
        raise
    keep = bits >= dropped_of_65536 - 32_768
    scale = 65_536 / (65_536 - dropped_of_65536)
    if x.dtype == torch.float32:
        return x * keep.to(x.dtype).mul_(scale)
    return torch.where(keep, x, 0.0) * scale  # a Python float: as bfloat16 it would be rounded


def fast_inverted(x: Tensor, rate: Tensor) -> Tensor:
    """`fast_dropout` with the rate as a tensor, for compiled graphs on a CPU (ours).

    With the same seed and order of draws, the masks are those of eager mode.
    """
    dropped_of_65536 = (rate * 65_536.0).round().clamp_max(65_535.0)
    keep = torch.ops.earlydrop.random_bits(x.shape, x.device) >= dropped_of_65536 - 32_768.0
    return (torch.where(keep, x, 0.0) * (65_536.0 / (65_536.0 - dropped_of_65536))).to(x.dtype)


def refuse_nested(x: Tensor) -> None:
    """Refuse a nested tensor, which 16-bit masks do not take."""
    if x.is_nested:
        raise RuntimeError(
            "masks='fast' does not take nested tensors: make the scheduler with masks='native'"
        )


def _refuse_vmap(*arguments: object) -> Tensor:
    raise RuntimeError(
        "masks='fast' does not work under torch.func.vmap, which cannot see its random numbers: "
        "make the scheduler with masks='native'"
    )


def _draw_bits(shape: Sequence[int], device: torch.device) -> Tensor:
    """16 random bits an entry, as int16."""
    if device.type == "mps":  # it cannot draw 64 random bits at once
        bits = torch.randint(-(2**15), 2**15, tuple(shape), dtype=torch.int32, device=device)
        return bits.to(torch.int16)
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    # The whole range of int64. Plain random_() leaves the top bit 0: at rates up to 1/2, every
    # fourth entry would never be dropped.
    return words.random_(-(2**63), None).view(torch.int16)[:count].view(tuple(shape))


COMPILED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
"""Whether compiled graphs can draw 16-bit masks.

torch 2.11 merges two draws of a custom operator into one. 2.14 was tested; the versions between
were not.
"""


if COMPILED:
    _LIBRARY = torch.library.Library("earlydrop", "DEF")
    _LIBRARY.define(
        "random_bits(SymInt[] shape, Device device) -> Tensor",
        tags=(torch.Tag.nondeterministic_seeded,),
    )
    _LIBRARY.impl("random_bits", _draw_bits, "CompositeExplicitAutograd")
    # Under vmap the models of a batch would share their masks.
    _LIBRARY.impl("random_bits", _refuse_vmap, "FuncTorchVmapMode")
    torch.library.register_fake(
        "earlydrop::random_bits",
        lambda shape, device: torch.empty(shape, dtype=torch.int16, device=device),
        lib=_LIBRARY,
    )
