"""Early stopping: ``trainer.stop_metric`` and ``trainer.stop_patience``."""

from __future__ import annotations

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

    def take(self, value: float) -> bool:
        """Take the metric's value of one evaluation; return whether it is the best so far."""
        if self.metric is None:
            return False
        best = all(improved(self.metric, value, before) for before in self.values)
        self.values.append(value)
        return best

    @property
    def is_over(self) -> bool:
        """Whether the last ``evaluations`` evaluations brought no improvement."""
        if self.metric is None or not self.values:
            return False
        best = 0
        for i, value in enumerate(self.values):
            if improved(self.metric, value, self.values[best]):
                best = i
        return len(self.values) - 1 - best >= self.evaluations
