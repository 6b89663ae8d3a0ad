"""An exponential moving average of a model's weights, evaluated as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averaged weights: a' = decay · a + (1 − decay) · w after every step, from the first on.

    This is the average of timm's ``ModelEma``, as the recipes of ConvNeXt use it (Liu et al. 2022,
    arXiv:2201.03545, appendix A.1). There is no warm-up of the decay. Buffers in floating point,
    such as the statistics of BatchNorm, are averaged too; other buffers are copied.

    Args:
        model: The model in training. Only `in_place` changes it.
        decay: In [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        # Weights that have two names, such as tied ones, have one average.
        by_memory: dict[tuple[int, torch.Size], Tensor] = {}
        self.averages: dict[str, Tensor] = {}
        for name, tensor in _tensors(model):
            memory = tensor.data_ptr(), tensor.shape
            self.averages[name] = by_memory.setdefault(memory, tensor.detach().clone())

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every weight once, with its average."""
        seen: set[int] = set()
        for name, weight in _tensors(self.model):
            average = self.averages[name]
            if id(average) not in seen:
                seen.add(id(average))
                yield weight, average

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the model's present weights, without waiting for the device."""
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for weight, average in self._pairs():
            if weight.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, weights, alpha=1.0 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the model has the averaged weights. Its own are restored exactly."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in self._pairs():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights by name, as the model would give them."""
        return self.model.state_dict() | self.averages

    @torch.no_grad()
    def load_state_dict(self, averages: dict[str, Tensor]) -> None:
        """Load saved averages."""
        for name, average in self.averages.items():
            average.copy_(averages[name])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's state dict by name. Other entries are left out."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            yield name, value
