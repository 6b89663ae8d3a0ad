"""The losses and gradient norms of the steps since the last logged one, kept on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from earlydrop.training.distributed import Group
from earlydrop.training.endings import TrainingFailed

REMEDY = "lower optim.lr, lengthen optim.warmup or set optim.clip"
"""The advice where a loss, a gradient norm or a metric of training is not finite."""


class Window:
    """Losses and gradient norms of the unlogged steps.

    Each worker holds its own share of a loss; their sum is the loss of the step. The gradient norm
    is the same on every worker. Nothing is read from the device before it is asked for.

    Args:
        group: The workers.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._steps: list[Tensor] = []  # (loss, norm) of each

    def append(self, loss: Tensor, norm: Tensor) -> None:
        """Add a step: this worker's share of its loss, and its gradient norm."""
        self._steps.append(torch.stack((loss, norm)))

    def clear(self) -> None:
        """Forget the steps."""
        self._steps = []

    def summed(self) -> Tensor:
        """The loss of each step, summed over the workers, and its gradient norm, (steps, 2)."""
        if not self._steps:
            return torch.empty(0, 2)
        window = torch.stack(self._steps)
        window[:, 0] = self.group.sum(window[:, 0].clone())
        return window

    def load(self, window: Tensor) -> None:
        """Go on from `summed`. The first worker takes the whole loss, the others 0."""
        self._steps = list(window)
        if not self.group.main:
            self._steps = [torch.stack((torch.zeros_like(loss), norm)) for loss, norm in window]

    def check_finite(self, step: int) -> list[list[float]]:
        """Check that every loss and norm is finite. This waits for the device.

        Args:
            step: The step reached.

        Returns:
            The loss and the gradient norm of each step.

        Raises:
            TrainingFailed: One of them is not finite.
        """
        values: list[list[float]] = self.summed().tolist()
        for i, (loss, norm) in enumerate(values):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                there = step - len(values) + i
                what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
                raise TrainingFailed(f"the training {what} at step {there}: {REMEDY}")
        return values

    def means(self, step: int) -> tuple[float, float]:
        """The mean loss and the mean gradient norm. This waits for the device.

        Args:
            step: The step reached.

        Raises:
            TrainingFailed: A loss or a norm is not finite.
        """
        losses, norms = zip(*self.check_finite(step), strict=True)
        return math.fsum(losses) / len(losses), math.fsum(norms) / len(norms)
