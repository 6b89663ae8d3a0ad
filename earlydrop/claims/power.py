"""The number of seeds that a claim needs, and their cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from earlydrop.analysis.stats import LEVEL, first_enough, power_of_bound, power_of_difference
from earlydrop.claims.declare import EQUIVALENT, NOT_LOWER, Claim

POWER = 0.9
MOST_SEEDS = 10_000
"""The largest number of seeds that is tried."""


class Price(NamedTuple):
    """The seeds and time that would resolve a claim.

    Attributes:
        seeds: The number of seeds; None for more than `MOST_SEEDS`.
        hours: Hours of one core for the runs of both its arms; for `MOST_SEEDS` seeds if ``seeds``
            is None.
    """

    seeds: int | None
    hours: float

    def __str__(self) -> str:
        if self.seeds is None:
            return f"more than {MOST_SEEDS:,} seeds"
        hours = f"{self.hours:,.0f}" if self.hours >= 10 else f"{self.hours:.2g}"
        return f"{self.seeds} seeds, {hours} core hours"


def needed_seeds(
    claim: Claim,
    spread: float,
    smallest: float,
    level: float,
    assumed: float = 0.0,
) -> int | None:
    """The number of seeds that resolve a claim with a power of 90%.

    If the true effect is the smallest that matters, the seeds show with this power that there is an
    effect. If it is 0, they show with this power that the effect is smaller than that (for "not
    lower": not lower by that much). For a claim of equivalence the true effect is ``assumed``: the
    seeds show with this power that it is smaller than the smallest that matters; if it is not, they
    show that it is larger.

    Args:
        claim: The claim.
        spread: Standard deviation of its paired differences, in the metric's units.
        smallest: The smallest effect that matters, in the metric's units.
        level: The level of its tests.
        assumed: The effect to assume as the true one for a claim of equivalence, in the metric's
            units.

    Returns:
        The number; None for more than `MOST_SEEDS`.

    Raises:
        ValueError: The spread is not more than 0.
    """
    if spread <= 0:
        deviation = f"the paired differences have a standard deviation of {spread:g}"
        raise ValueError(f"{deviation}: expected more than 0, to find a number of seeds")
    sides = 1 if claim.direction == NOT_LOWER else 2

    def resolves_equivalence(n: int) -> bool:
        """Whether n seeds show with 90% power on which side of the bounds the effect is."""
        is_inside = abs(assumed) < smallest
        distances = [abs(smallest - abs(assumed))]  # to the nearer bound
        if is_inside:
            distances.append(smallest + abs(assumed))
        # The test for a larger effect is two-sided: each side has half the level.
        one_sided = level if is_inside else level / 2
        missed = [1 - power_of_bound(spread, each, n, one_sided, sides=1) for each in distances]
        return sum(missed) <= 1 - POWER

    def is_enough(n: int) -> bool:
        if claim.direction == EQUIVALENT:
            return resolves_equivalence(n)
        if power_of_difference(spread, smallest, n, level) < POWER:
            return False
        return power_of_bound(spread, smallest, n, level, sides=sides) >= POWER

    return first_enough(is_enough, MOST_SEEDS)


def price(
    claim: Claim,
    spread: float,
    smallest: float,
    level: float,
    seconds: Iterable[float],
    assumed: float = 0.0,
) -> Price:
    """The seeds and time that resolve a claim.

    Args:
        claim: The claim.
        spread: Standard deviation of its paired differences, in the metric's units.
        smallest: The smallest effect that matters, in the metric's units.
        level: The level of its tests.
        seconds: The time of one run of each of its arms, in seconds.
        assumed: The effect to assume as the true one for a claim of equivalence, in the metric's
            units.
    """
    seeds = needed_seeds(claim, spread, smallest, level, assumed=assumed)
    return Price(seeds, (seeds or MOST_SEEDS) * sum(seconds) / 3600)


def first_level(claims: Iterable[Claim], claim: Claim) -> float:
    """The level at which Holm's procedure tests the smallest p-value of a claim's family.

    A claim has two tests, so this level is 5% divided by twice the number of claims of the family.
    """
    members = [member for member in claims if member.family == claim.family]
    return LEVEL / (2 * len(members))
