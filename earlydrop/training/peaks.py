"""Two peaks in one run: a scheduler for the unit sites and one for the path sites, used as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earlydrop.scheduler import DropoutScheduler


class TwoPeaks:
    """Two schedulers with the interface of one.

    Args:
        unit: Drives the unit sites.
        path: Drives the path sites.
    """

    def __init__(self, unit: DropoutScheduler, path: DropoutScheduler) -> None:
        self.kinds = {"unit": unit, "path": path}

    @property
    def last_rate(self) -> float:
        """The larger of the two rates that the sites have now."""
        return max(scheduler.last_rate for scheduler in self.kinds.values())

    def step(self) -> None:
        """Set the rates of the next optimizer step."""
        for scheduler in self.kinds.values():
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each kind's scheduler."""
        return {kind: scheduler.state_dict() for kind, scheduler in self.kinds.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: It was saved with one peak for both kinds, or for another model.
        """
        if set(state) != set(self.kinds):
            raise ValueError(
                "the state was saved with one peak, not with one for each of unit and path sites"
            )
        for kind, scheduler in self.kinds.items():
            scheduler.load_state_dict(state[kind])


Driver = DropoutScheduler | TwoPeaks
"""The driver of a run's dropout."""
