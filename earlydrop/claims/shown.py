"""What a study that has just run shows of the claims that are declared for it, in a line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from earlydrop.claims.declare import LABEL, SETS, Declaration, load_declarations
from earlydrop.claims.judge import Verdict, judge
from earlydrop.claims.tables import claims_folder


def shown(runs: pd.DataFrame) -> list[str]:
    """A line for each claim on the study of some runs, from `earlydrop.analysis.load_runs` with their measured steps in ``history``.

    A round of seeds that has not run says nothing.
    """
    declarations = [declaration for name in SETS for declaration in load_declarations(claims_folder(name))]
    return [_line(verdict) for _, study in runs.groupby("study") for verdict in _verdicts(declarations, study)]


def _verdicts(declarations: Iterable[Declaration], runs: pd.DataFrame) -> Iterator[Verdict]:
    """What the runs of one study say of every claim on it."""
    study = str(runs["study"].iloc[0])
    for declaration in declarations:
        if study in declaration.studies:
            for each in declaration.studies[study].rounds:
                found = judge(declaration, study, each, runs) if each != LABEL else []
                yield from (verdict for verdict in found if verdict.paired is not None)


def _line(verdict: Verdict) -> str:
    claim, found = verdict.claim, verdict.paired
    said = {
        "reproduced": "yes", "opposite": "the opposite", "absent": "no difference that matters", "incomplete": "not all seeds have run",
    }.get(verdict.verdict, "")  # fmt: skip
    seeds = len(found.seeds) if found is not None else 0
    if not said:
        needed = verdict.price.seeds if verdict.price is not None else None
        said = f"{seeds} seeds cannot tell" + (f", {needed} would" if needed is not None else "")
    interval = f"{found.effect:+.3g} [{found.low:+.3g}, {found.high:+.3g}]" if found is not None else ""
    remark = f" with {verdict.remark}, not as declared" if verdict.remark else ""
    return f"{claim.id:<4} {said + ':':<29} {claim.claim}, {interval}{remark}"
