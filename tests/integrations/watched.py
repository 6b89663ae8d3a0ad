"""A small model that notes its rate at each training forward, and the rates of early dropout."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from earlydrop import early

DATA = [(torch.randn(4), i % 2) for i in range(32)]


class Kernels(TorchDispatchMode):
    """Notes the rate that each kernel which draws a dropout mask is given."""

    def __init__(self):
        super().__init__()
        self.rates = []

    @classmethod
    def _should_skip_dynamo(
        cls,
    ):  # or torch imports its compiler to keep it out of here, which takes seconds
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bernoulli_.float:
            self.rates.append(1 - (args[1] if len(args) > 1 else 0.5))  # its default is left out
        elif func is torch.ops.aten.native_dropout.default:
            self.rates.append(args[1])
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    def __init__(self, fails_at=None, error=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.seen = []
        self.kernels = []  # what the kernels were given at each forward; 0 where none was called
        self.fails_at, self.error = fails_at, error

    def forward(self, x, labels=None):
        if self.training:
            self.seen.append(self.layers[1].p)
            if len(self.seen) - 1 == self.fails_at:
                raise self.error
        with Kernels() as kernels:
            logits = self.layers(x)
        if self.training:
            self.kernels.append(max(kernels.rates, default=0.0))
        return (
            {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
            if labels is not None
            else logits
        )


def at_kernels(schedule, steps):
    """What the kernels are given at these steps: they take the probability to keep."""
    return [1 - (1 - schedule(step)) for step in steps]


EXPECTED = [early(0.5, 4)(step) for step in range(8)]
