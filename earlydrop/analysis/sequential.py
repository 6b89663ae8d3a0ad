"""Group-sequential designs: a study that is judged at declared looks and may stop at each of them.

A claim is tested several times on a growing number of seeds. The boundaries are chosen such that,
without an effect, some look is significant with a probability equal to the declared level. Sources:
O'Brien and Fleming (1979), Pocock (1977), and Jennison and Turnbull (2000), *Group Sequential
Methods*, chapters 2 and 19 (the recursion of Armitage, McPherson and Rowe).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.optimize
import scipy.stats

OBRIEN_FLEMING, POCOCK = "obrien-fleming", "pocock"
SHAPES = (OBRIEN_FLEMING, POCOCK)

_NODES = 160
"""Gauss-Legendre nodes per look.

The probabilities are exact to about ten digits if each look adds a tenth of the seeds or more.
"""
_FAR = 9.0
"""Standard deviations beyond which a normal density counts as 0."""


def level_of(constant: float, looks: Sequence[int], shape: str, sides: int) -> float:
    """The probability that any look crosses its boundary where there is no effect.

    At look k, with a share t of all seeds, the boundary of the z statistic is ``constant`` for
    Pocock's shape and ``constant / sqrt(t)`` for that of O'Brien and Fleming.

    Args:
        constant: The constant of the boundary.
        looks: Numbers of seeds, rising; the last one is the whole study.
        shape: ``obrien-fleming`` or ``pocock``.
        sides: 2 for a two-sided test, 1 for a one-sided test.

    Returns:
        The level of the whole study.

    >>> round(level_of(2.004, (20, 40, 60), "obrien-fleming", 2), 3)
    0.05
    """
    shares = np.array(looks, float) / looks[-1]
    # B(t) = z sqrt(t) is a Brownian motion; the boundaries of B are sqrt(t) times those of z.
    bounds = constant * np.sqrt(shares) if shape == POCOCK else np.full(len(looks), constant)
    density, points, weights = np.ones(1), np.zeros(1), np.ones(1)
    nodes, node_weights = np.polynomial.legendre.leggauss(_NODES)
    before = 0.0
    for share, bound in zip(shares, bounds, strict=True):
        low = -bound if sides == 2 else -_FAR * math.sqrt(share)
        if bound <= low:
            return 1.0
        to = low + (bound - low) * (nodes + 1) / 2
        step = scipy.stats.norm.pdf(to[:, None], points[None, :], math.sqrt(share - before))
        density = step @ (weights * density)
        points, weights, before = to, node_weights * (bound - low) / 2, share
    return min(1.0, max(0.0, 1.0 - float(weights @ density)))


@lru_cache(maxsize=64)
def constant_of(level: float, looks: tuple[int, ...], shape: str, sides: int) -> float:
    """The constant of the boundary whose level is ``level``: the inverse of `level_of`.

    >>> round(constant_of(0.05, (1, 2, 3), "pocock", 2), 3)
    2.289
    """
    return float(
        scipy.optimize.brentq(
            lambda constant: level_of(constant, looks, shape, sides) - level,
            a=0.05,
            b=_FAR,
            xtol=1e-10,
        )
    )


def nominal_level(
    level: float, looks: Sequence[int], look: int, shape: str, sides: int = 2
) -> float:
    """The p-value below which a look is significant.

    Args:
        level: The level of the whole study.
        looks: Numbers of seeds, rising.
        look: Which look, from 0.
        shape: ``obrien-fleming`` or ``pocock``.
        sides: 2 for a two-sided test, 1 for a one-sided test.

    Returns:
        The level of the look.
    """
    constant = constant_of(level, tuple(looks), shape, sides)
    share = looks[look] / looks[-1]
    boundary = constant if shape == POCOCK else constant / math.sqrt(share)
    return float(sides * scipy.stats.norm.sf(boundary))


def sequential_p(
    p_values: Sequence[float], looks: Sequence[int], shape: str, sides: int = 2
) -> float:
    """The p-value of a study after some looks: the smallest level at which it would have stopped.

    It is valid for Holm's procedure like any p-value, and further looks can only lower it.

    Args:
        p_values: The p-values of the looks so far, each from all seeds up to that look.
        looks: Numbers of seeds of all declared looks, rising.
        shape: ``obrien-fleming`` or ``pocock``.
        sides: 2 where the p-values are those of two-sided tests, else 1.

    Returns:
        The p-value.

    Raises:
        ValueError: There are no p-values, or more p-values than looks.
    """
    if not 0 < len(p_values) <= len(looks):
        raise ValueError(
            f"{len(p_values)} p-values for {len(looks)} looks: expected from 1 to {len(looks)}"
        )
    constant = -math.inf
    for i, p in enumerate(p_values):
        z = float(scipy.stats.norm.isf(max(p, 1e-300) / sides))
        share = looks[i] / looks[-1]
        constant = max(constant, z if shape == POCOCK else z * math.sqrt(share))
    last_look_alone = float(sides * scipy.stats.norm.sf(constant))  # never above the level
    if constant >= _FAR:
        return last_look_alone
    return max(level_of(constant, looks, shape, sides), last_look_alone)
