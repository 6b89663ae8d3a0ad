"""The next runs of a study with declared looks.

A look is an interim analysis: the claims are judged after a declared number of seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.claims.declare import FIRST, Claim, Declaration
from earlydrop.claims.judge import judge
from earlydrop.claims.repeat import configurations
from earlydrop.claims.summaries import Summaries
from earlydrop.claims.verdict import DECIDED, OPEN, Verdict
from earlydrop.training.config import Config


@dataclass(frozen=True)
class Next:
    """The next runs of a finding's study.

    Attributes:
        study: The study.
        verdicts: The verdicts on the finding's claims from the runs so far.
        seeds: The seeds of the next look, without those of earlier looks. Empty where all looks are
            done, or where every claim is decided or has a finished run whose loss does not fall
            through its window of losses.
        configs: A configuration for each arm of the claims that these seeds are for, with the first
            of the seeds.
    """

    study: str
    verdicts: tuple[Verdict, ...]
    seeds: tuple[int, ...]
    configs: tuple[Config, ...]


def next_look(declaration: Declaration, claims: Iterable[Claim], summaries: Summaries) -> Next:
    """The runs of the next look at some claims of a file.

    Args:
        declaration: A file that declares looks.
        claims: The claims to decide.
        summaries: The runs so far.

    Raises:
        ValueError: The file declares no looks, `judge` refuses the runs, or the study does not
            declare a setting that a claim's metric needs.
    """
    if declaration.looks is None:
        reason = "its rounds are judged once, when all their seeds have finished"
        raise ValueError(f"{declaration.name}.yaml declares no looks: {reason}")
    study = declaration.studies[declaration.main_study]
    runs = summaries.of(study.name)
    ids = {claim.id for claim in claims}
    judged = judge(declaration, study.name, FIRST, runs) if len(runs) else []
    verdicts = tuple(verdict for verdict in judged if verdict.claim.id in ids)
    decided = {verdict.claim.id for verdict in verdicts if verdict.verdict in DECIDED}
    # If a finished run has no value for a claim, more seeds cannot decide it.
    not_measured = {verdict.claim.id for verdict in verdicts if verdict.value_missing}
    undecided = [claim for claim in declaration.claims if claim.id in ids - decided - not_measured]
    look = _looks_done(verdicts, len(undecided))
    counts = declaration.looks.seeds
    if not undecided or look == len(counts):
        return Next(study.name, verdicts, seeds=(), configs=())
    before = counts[look - 1] if look else 0
    seeds = study.rounds[FIRST][before : counts[look]]
    configs = configurations(study, undecided, seeds[:1], Path("runs"))
    return Next(study.name, verdicts, seeds, tuple(configs))


def _looks_done(verdicts: Iterable[Verdict], undecided: int) -> int:
    """The number of looks that every undecided claim has had."""
    looks = [verdict.look for verdict in verdicts if verdict.verdict == OPEN]
    return min(looks) if looks and len(looks) == undecided else 0


def no_runs() -> Summaries:
    """Summaries without any run, for a study that has not begun."""
    columns: dict[str, Any] = {"study": [], "fingerprint": [], "arm": [], "seed": []}
    return Summaries(pd.DataFrame(columns), pd.DataFrame(columns))
