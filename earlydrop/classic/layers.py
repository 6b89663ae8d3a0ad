"""Dropout layers of the classic family that torch does not have. All are sites: a `DropoutScheduler` drives them like nn.Dropout.

Shapes: inputs are floating-point tensors of any shape, with the mini-batch first where that matters; outputs have their shape and dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlydrop.schedules.base import check_rate


class _Dropout(nn.Module):
    """What the layers here share: a rate in [0, 1).

    Args:
        p: Drop rate.

    Raises:
        ValueError: The rate is outside [0, 1).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_rate(p, "p")

    def extra_repr(self) -> str:
        return f"p={self.p}"


class StandardDropout(_Dropout):
    """Standard, non-inverted dropout (Hinton et al. 2012, arXiv:1207.0580; Srivastava et al. 2014, section 4).

    In training y = x · mask with mask ~ Bernoulli(1 − p), so dy/dx = mask; at test y = (1 − p) · x. In expectation 1 − p times inverted
    dropout in both modes.

    >>> StandardDropout(0.25).eval()(torch.ones(2))
    tensor([0.7500, 0.7500])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1.0 - self.p)
        return x * torch.empty_like(x, dtype=torch.float32).bernoulli_(1.0 - self.p).to(x.dtype)


class SharedMaskDropout(_Dropout):
    """Inverted dropout with one mask for the whole mini-batch: y = x · mask / (1 − p), mask of shape (1, *x.shape[1:]).

    It draws a mini-batch's size times fewer random numbers; the gradients of a batch are then of one thinned network.

    >>> y = SharedMaskDropout(0.5)(torch.ones(3, 4))
    >>> bool((y == y[0]).all())
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = F.dropout(torch.ones((1, *x.shape[1:]), dtype=torch.float32, device=x.device), self.p)
        return (x * mask).to(x.dtype)


class GaussianDropout(_Dropout):
    """Multiplicative Gaussian noise (Srivastava et al. 2014, section 10): y = x · N(1, p/(1 − p)) in training, y = x at test.

    Mean and variance are those of inverted dropout at rate p.

    >>> GaussianDropout(0.5).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        noise = torch.randn(x.shape, dtype=torch.float32, device=x.device)
        return (x * noise.mul_((self.p / (1.0 - self.p)) ** 0.5).add_(1.0)).to(x.dtype)
