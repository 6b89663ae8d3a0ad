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


def needed_seeds(claim: Claim, spread: float, smallest: float, level: float, seen: float = 0.0) -> int | None:
    """Seeds with which a claim is resolved with a power of 90%, whether its effect is the smallest that matters or none.

    A claim of equivalence is resolved where its effect is what was seen: within the smallest that matters, or beyond it.

    Args:
        claim: The claim.
        spread: Standard deviation of its paired differences.
        smallest: The smallest effect that matters, in the metric's units.
        level: The level of its tests.
        seen: For a claim of equivalence, the effect that is taken to be true, in the metric's units.

    Raises:
        ValueError: The differences do not scatter, so they say nothing of what more seeds would.
    """
    if spread <= 0:
        raise ValueError(f"the paired differences have a standard deviation of {spread:g}: their scatter cannot size a round")
    sides = 1 if claim.direction == NOT_LOWER else 2

    def shown(n: int) -> bool:
        """Whether a claim of equivalence is, each of its two bounds missed with the probability that it has."""
        near, far = abs(smallest - abs(seen)), smallest + abs(seen)
        missed = [1 - power_of_bound(spread, bound, n, level, 1) for bound in ((near, far) if abs(seen) < smallest else (near,))]
        return sum(missed) <= 1 - POWER

    def enough(n: int) -> bool:
        if claim.direction == EQUIVALENT:
            return shown(n)
        sees = power_of_difference(spread, smallest, n, level) >= POWER
        return sees and power_of_bound(spread, smallest, n, level, sides) >= POWER

    return first_enough(enough, MOST)


def price(claim: Claim, spread: float, smallest: float, level: float, seconds: Iterable[float], seen: float = 0.0) -> Price:
    """What resolves a claim costs, where a run of each of its arms took so many seconds; the rest as `needed_seeds` takes it."""
    seeds = needed_seeds(claim, spread, smallest, level, seen)
    return Price(seeds, (seeds or MOST) * sum(seconds) / 3600)


def first_level(claims: Iterable[Claim], claim: Claim) -> float:
    """The level that Holm gives the smallest p-value of a claim's family: two tests a claim."""
    return LEVEL / (2 * sum(each.family == claim.family for each in claims))
