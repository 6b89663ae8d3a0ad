"""How many seeds each claim needs, and how many hours they take.

Both are estimated from the label seeds: the round of seeds that labels the regime of a study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from earlydrop.analysis.stats import paired
from earlydrop.claims.declare import LABEL, Claim, Declaration, Study
from earlydrop.claims.differences import differences
from earlydrop.claims.judge import smallest_effect
from earlydrop.claims.power import Price, first_level, price
from earlydrop.claims.summaries import Summaries

_COLUMNS = ["claim", "study", "metric", "n", "spread", "smallest", "seeds", "hours"]


def power_table(declarations: Iterable[Declaration], summaries: Summaries) -> pd.DataFrame:
    """One row per claim and study whose two arms have run on two or more label seeds.

    Claims with a test other than the paired t test are left out. So are claims for which the loss
    of a run does not fall through the window of losses.

    Returns:
        A table with the columns ``claim``, ``study``, ``metric``, ``n`` (the number of label
        seeds), ``spread`` (the standard deviation of the paired differences), ``smallest`` (the
        effect to show or to exclude), ``seeds`` and ``hours`` of one core. The seeds give a power
        of 90% at the level that Holm gives the smallest p-value of a family. ``seeds`` and
        ``hours`` are empty where all differences are equal. If more than 10,000 seeds are needed,
        ``seeds`` is empty and ``hours`` is the time of 10,000.
    """
    rows = []
    for declaration in declarations:
        for study in declaration.studies.values():
            runs = summaries.of(study.name)
            if runs.empty:
                continue
            for claim in declaration.claims:
                row = _row(declaration, study, claim, runs)
                if row is not None:
                    rows.append(row)
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"seeds": "Int64"})


def _row(
    declaration: Declaration,
    study: Study,
    claim: Claim,
    runs: pd.DataFrame,
) -> dict[str, Any] | None:
    """The row of a claim.

    None if its test is not the paired t test, if fewer than two label seeds have a value, or if the
    loss of a run does not fall through its window of losses.
    """
    measured = differences(runs, study, claim, study.rounds.get(LABEL, ()))
    summary = paired(measured.values)
    if summary is None or claim.test is not None:
        return None
    smallest = smallest_effect(claim, list(measured.against.values()))
    level = first_level(declaration.claims, claim)
    cost = Price(None, math.nan)
    if summary.spread > 0:
        cost = price(claim, summary.spread, smallest, level, seconds=measured.seconds)
    return {
        "claim": claim.id,
        "study": study.name,
        "metric": claim.metric,
        "n": len(summary.seeds),
        "spread": summary.spread,
        "smallest": smallest,
        "seeds": cost.seeds,
        "hours": cost.hours,
    }
