"""Classic dropout layers that torch does not have.

All are sites: a `DropoutScheduler` drives them like nn.Dropout.

Shapes: inputs are floating-point tensors of any shape; `SharedMaskDropout` expects the mini-batch
first. Outputs have the shape and dtype of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlydrop.schedules.base import check_rate


class _Dropout(nn.Module):
    """Base class of the layers here, with a rate in [0, 1).

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
    """Standard, non-inverted dropout.

    Hinton et al. 2012, arXiv:1207.0580; Srivastava et al. 2014, section 4. In training y = x · mask
    with mask ~ Bernoulli(1 − p), so dy/dx = mask. At test y = (1 − p) · x. In both modes the
    expectation is 1 − p times that of inverted dropout.

    >>> StandardDropout(0.25).eval()(torch.ones(2))
    tensor([0.7500, 0.7500])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1.0 - self.p)
        mask = torch.empty_like(x, dtype=torch.float32).bernoulli_(1.0 - self.p)
        return x * mask.to(x.dtype)


class SharedMaskDropout(_Dropout):
    """Inverted dropout with one mask for the whole mini-batch: y = x · mask / (1 − p).

    The mask has shape (1, *x.shape[1:]), so a batch of B inputs draws 1/B of the random numbers.
    The gradients of a batch are then of one thinned network.

    >>> y = SharedMaskDropout(0.5)(torch.ones(3, 4))
    >>> bool((y == y[0]).all())
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        ones = torch.ones((1, *x.shape[1:]), dtype=torch.float32, device=x.device)
        return (x * F.dropout(ones, self.p)).to(x.dtype)


class GaussianDropout(_Dropout):
    """Multiplicative Gaussian noise: y = x · N(1, p/(1 − p)) in training, y = x at test.

    Srivastava et al. 2014, section 10. Mean and variance are those of inverted dropout at rate p.

    >>> GaussianDropout(0.5).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        noise = torch.randn(x.shape, dtype=torch.float32, device=x.device)
        return (x * noise.mul_((self.p / (1.0 - self.p)) ** 0.5).add_(1.0)).to(x.dtype)
