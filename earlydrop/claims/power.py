"""The number of seeds that a claim needs, and their cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from earlydrop.analysis.stats import LEVEL, first_enough, power_of_bound, power_of_difference
from earlydrop.claims.declare import EQUIVALENT, NOT_LOWER, Claim

POWER = 0.9
MOST = 10_000
"""The largest number of seeds that is tried."""


class Price(NamedTuple):
    """The seeds and time that would resolve a claim.

    Attributes:
        seeds: The number of seeds; None for more than `MOST`.
        hours: Hours of one core for the runs of both its arms; for `MOST` seeds if ``seeds`` is
            None.
    """

    seeds: int | None
    hours: float

    def __str__(self) -> str:
        if self.seeds is None:
            return f"more than {MOST:,} seeds"
        return f"{self.seeds} seeds, {self.hours:.2g} core hours"


def needed_seeds(
    claim: Claim,
    spread: float,
    smallest: float,
    level: float,
    seen: float = 0.0,
) -> int | None:
    """The number of seeds that resolve a claim with a power of 90%.

    The seeds give this power if the true effect is the smallest that matters, and also if it is 0.
    For a claim of equivalence, they give it if the true effect is ``seen``. It is then the power to
    show that this effect is smaller than the smallest that matters, or that it is larger.

    Args:
        claim: The claim.
        spread: Standard deviation of its paired differences, in the metric's units.
        smallest: The smallest effect that matters, in the metric's units.
        level: The level of its tests.
        seen: The effect to assume as the true one for a claim of equivalence, in the metric's
            units.

    Returns:
        The number; None for more than `MOST`.

    Raises:
        ValueError: The spread is not more than 0.
    """
    if spread <= 0:
        deviation = f"the paired differences have a standard deviation of {spread:g}"
        raise ValueError(f"{deviation}: expected more than 0, to find a number of seeds")
    sides = 1 if claim.direction == NOT_LOWER else 2

    def shows_equivalence(n: int) -> bool:
        """Whether n seeds give 90% power for a claim of equivalence."""
        bounds = [abs(smallest - abs(seen))]  # the distances from the effect to the two bounds
        if abs(seen) < smallest:
            bounds.append(smallest + abs(seen))
        # That an effect is larger is a two-sided test.
        one_sided = level if abs(seen) < smallest else level / 2
        missed = [1 - power_of_bound(spread, bound, n, one_sided, sides=1) for bound in bounds]
        return sum(missed) <= 1 - POWER

    def is_enough(n: int) -> bool:
        if claim.direction == EQUIVALENT:
            return shows_equivalence(n)
        if power_of_difference(spread, smallest, n, level) < POWER:
            return False
        return power_of_bound(spread, smallest, n, level, sides=sides) >= POWER

    return first_enough(is_enough, MOST)


def price(
    claim: Claim,
    spread: float,
    smallest: float,
    level: float,
    seconds: Iterable[float],
    seen: float = 0.0,
) -> Price:
    """The seeds and time that resolve a claim.

    Args:
        claim: The claim.
        spread: Standard deviation of its paired differences, in the metric's units.
        smallest: The smallest effect that matters, in the metric's units.
        level: The level of its tests.
        seconds: The time of one run of each of its arms, in seconds.
        seen: The effect to assume as the true one for a claim of equivalence, in the metric's
            units.
    """
    seeds = needed_seeds(claim, spread, smallest, level, seen=seen)
    return Price(seeds, (seeds or MOST) * sum(seconds) / 3600)


def first_level(claims: Iterable[Claim], claim: Claim) -> float:
    """The level at which Holm's procedure tests the smallest p-value of a claim's family.

    A claim has two tests, so this level is 5% divided by twice the number of claims of the family.
    """
    members = [member for member in claims if member.family == claim.family]
    return LEVEL / (2 * len(members))
