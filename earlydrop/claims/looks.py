"""What a study with declared looks has to run next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.claims.declare import FIRST, Claim, Declaration
from earlydrop.claims.judge import DECIDED, Verdict, judge
from earlydrop.claims.repeat import configurations
from earlydrop.claims.summaries import Summaries
from earlydrop.training.config import Config


@dataclass(frozen=True)
class Next:
    """What a finding's study has to run next.

    Attributes:
        study: The study.
        verdicts: What its runs say so far of the finding's claims.
        seeds: The seeds of the next look, without those that an earlier look has; empty where every claim is decided or all
            looks are done.
        configs: A configuration for each arm of the claims that are open, with the first of these seeds.
    """

    study: str
    verdicts: tuple[Verdict, ...]
    seeds: tuple[int, ...]
    configs: tuple[Config, ...]


def next_look(declaration: Declaration, claims: Iterable[Claim], summaries: Summaries) -> Next:
    """What decides some claims of a file with looks, at the least cost.

    Args:
        declaration: A file that declares looks.
        claims: The claims that are asked about.
        summaries: The runs so far.

    Raises:
        ValueError: The file declares no looks.
    """
    if declaration.looks is None:
        raise ValueError(f"{declaration.name}.yaml declares no looks: its rounds are judged when they are whole")
    study = declaration.studies[declaration.main_study]
    seeds = study.rounds[FIRST]
    asked = {claim.id for claim in claims}
    runs = summaries.of(study.name)
    verdicts = judge(declaration, study.name, FIRST, runs) if len(runs) else []
    verdicts = [verdict for verdict in verdicts if verdict.claim.id in asked]
    decided = {verdict.claim.id for verdict in verdicts if verdict.verdict in DECIDED}
    still = [claim for claim in declaration.claims if claim.id in asked - decided]
    done = [verdict.look for verdict in verdicts if verdict.claim.id not in decided and verdict.verdict == "not resolved"]
    look = min(done) if len(done) == len(still) and done else 0
    if not still or look == len(declaration.looks.seeds):
        return Next(study.name, tuple(verdicts), (), ())
    before = declaration.looks.seeds[look - 1] if look else 0
    coming = seeds[before : declaration.looks.seeds[look]]
    configs = configurations(study, still, coming[:1], Path("runs"))
    return Next(study.name, tuple(verdicts), coming, tuple(configs))


def no_runs() -> Summaries:
    """Summaries without any run, for a study that has not begun."""
    columns: dict[str, Any] = {"study": [], "fingerprint": [], "arm": [], "seed": []}
    return Summaries(pd.DataFrame(columns), pd.DataFrame(columns))
