"""Early stopping: ``trainer.stop_metric`` and ``trainer.stop_patience``."""

from __future__ import annotations

from collections.abc import Mapping

from earlydrop.metrics import improved


class Patience:
    """The values of a watched metric, and whether it still improves.

    Args:
        metric: Its name; None watches nothing.
        evaluations: Evaluations without improvement after which patience is over.
    """

    def __init__(self, metric: str | None, evaluations: int) -> None:
        self.metric, self.evaluations = metric, evaluations
        self.values: list[float] = []

    def take(self, metrics: Mapping[str, float]) -> None:
        """Take the metric's value from the metrics of a step, if it was measured there."""
        if self.metric is not None and self.metric in metrics:
            self.values.append(metrics[self.metric])

    def is_best(self, value: float) -> bool:
        """Whether a value is better than all that were taken."""
        if self.metric is None:
            return False
        return all(improved(self.metric, value, before) for before in self.values)

    @property
    def is_over(self) -> bool:
        """Whether the last evaluations brought no improvement."""
        if self.metric is None or not self.values:
            return False
        best = 0
        for i, value in enumerate(self.values):
            if improved(self.metric, value, self.values[best]):
                best = i
        return len(self.values) - 1 - best >= self.evaluations
