"""What a number of seeds can resolve."""

from __future__ import annotations

from earlydrop.analysis.stats import Paired, resolvable_difference, resolvable_margin
from earlydrop.claims.declare import Claim

POWER = 0.8


def resolvable(claim: Claim, found: Paired, level: float) -> float:
    """The smallest true effect that these seeds would have resolved with a power of 80%, at the level that Holm gave the claim.

    For a claim of equivalence: the smallest margin that they would have shown.
    """
    return resolvable_margin(found, level) if claim.margin is not None else resolvable_difference(found, level, POWER)
