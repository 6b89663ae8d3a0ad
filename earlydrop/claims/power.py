"""How many seeds a claim needs, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from earlydrop.analysis.stats import LEVEL, first_enough, power_of_bound, power_of_difference
from earlydrop.claims.declare import EQUIVALENT, NOT_LOWER, Claim

POWER = 0.9
MOST = 10_000
"""More seeds than this are not counted."""


class Price(NamedTuple):
    """What would resolve a claim.

    Attributes:
        seeds: How many seeds; None for more than `MOST`.
        hours: Hours of one core for the runs of both its arms.
    """

    seeds: int | None
    hours: float

    def __str__(self) -> str:
        return f"{self.seeds} seeds, {self.hours:.2g} core hours" if self.seeds is not None else f"more than {MOST:,} seeds"


def needed_seeds(claim: Claim, spread: float, smallest: float, level: float) -> int | None:
    """Seeds with which a claim is resolved with a power of 90%, whether its effect is the smallest that matters or none.

    Args:
        claim: The claim.
        spread: Standard deviation of its paired differences.
        smallest: The smallest effect that matters, in the metric's units.
        level: The level of its tests.

    Raises:
        ValueError: The differences do not scatter, so they say nothing of what more seeds would.
    """
    if spread <= 0:
        raise ValueError(f"the paired differences have a standard deviation of {spread:g}: their scatter cannot size a round")
    sides = 1 if claim.direction == NOT_LOWER else 2

    def enough(n: int) -> bool:
        sees = claim.direction == EQUIVALENT or power_of_difference(spread, smallest, n, level) >= POWER
        return sees and power_of_bound(spread, smallest, n, level, sides) >= POWER

    return first_enough(enough, MOST)


def price(claim: Claim, spread: float, smallest: float, level: float, seconds: Iterable[float]) -> Price:
    """What resolves a claim costs, where a run of each of its arms took so many seconds."""
    seeds = needed_seeds(claim, spread, smallest, level)
    return Price(seeds, (seeds or MOST) * sum(seconds) / 3600)


def first_level(claims: Iterable[Claim], claim: Claim) -> float:
    """The level that Holm gives the smallest p-value of a claim's family: two tests a claim."""
    return LEVEL / (2 * sum(each.family == claim.family for each in claims))
