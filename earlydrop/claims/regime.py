"""The regime of a study: whether its model generalises better with standard dropout or without."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from earlydrop.analysis.sentences import decided
from earlydrop.analysis.stats import Paired, paired
from earlydrop.claims.declare import Claim, Settings, Study
from earlydrop.claims.differences import differences


def regime(
    runs: pd.DataFrame,
    study: Study,
    standard: Settings,
    seeds: Iterable[int],
) -> tuple[str, Paired | None]:
    """Label the regime of a study by the paper's definition, from seeds that no verdict uses.

    Args:
        runs: The runs of the study.
        study: The study.
        standard: The settings of standard dropout.
        seeds: The label seeds.

    Returns:
        The label, and the difference in test accuracy, standard minus none. The label is
        ``underfit`` if the model generalises better without standard dropout, ``overfit`` if it
        generalises better with it, and ``unclear`` if the difference decides neither.
        Without two seeds the label is ``unclear`` and the difference is None.
    """
    seeds = list(seeds)
    if not seeds:
        return "unclear", None
    claim = Claim(
        id="regime",
        claim="",
        source="",
        arm=standard,
        against={**standard, "schedule.name": "none"},
        metric="test/accuracy",
        window=None,
        direction="lower",
        smallest=1.0,
    )
    accuracy = paired(differences(runs, study, claim, seeds).values)
    if accuracy is None or not decided(accuracy):
        return "unclear", accuracy
    return ("underfit" if accuracy.high < 0 else "overfit"), accuracy
