"""How large a round has to be: the seeds that each claim needs and their price, from the seeds that label a study's regime alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from earlydrop.analysis.stats import paired
from earlydrop.claims.declare import LABEL, Declaration
from earlydrop.claims.judge import differences, smallest_effect
from earlydrop.claims.measured import WindowError
from earlydrop.claims.power import Price, first_level, price
from earlydrop.claims.summaries import Summaries


def power_table(declarations: Iterable[Declaration], summaries: Summaries) -> pd.DataFrame:
    """One row a claim and study whose two arms have run on two or more label seeds.

    ``spread`` is the standard deviation of the paired differences over ``n`` label seeds, ``smallest`` the effect to be seen or excluded
    with a power of 90%, at the level that Holm gives a family's smallest p-value; ``seeds`` and ``hours`` (of one core) are what it takes,
    empty where the differences do not scatter.
    """
    rows = []
    for declaration in declarations:
        for study in declaration.studies.values():
            runs = summaries.of(study.name)
            for claim in declaration.claims if not runs.empty else ():
                try:
                    found = differences(runs, study, claim, study.rounds.get(LABEL, ()))
                except WindowError:
                    continue
                summary = paired(found.values)
                if summary is None or claim.test is not None:  # a round is sized for the paired t test
                    continue
                smallest = smallest_effect(claim, list(found.against.values()))
                level = first_level(declaration.claims, claim)
                cost = price(claim, summary.spread, smallest, level, found.seconds) if summary.spread > 0 else Price(None, math.nan)
                facts = {"claim": claim.id, "study": study.name, "metric": claim.metric, "n": len(summary.seeds)}
                rows.append(facts | {"spread": summary.spread, "smallest": smallest, "seeds": cost.seeds, "hours": cost.hours})
    return pd.DataFrame(rows, columns=["claim", "study", "metric", "n", "spread", "smallest", "seeds", "hours"]).astype(
        {"seeds": "Int64"}
    )
