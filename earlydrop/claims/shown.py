"""What a study that has just run shows of the claims that are declared for it, in a line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from earlydrop.claims.declare import LABEL, SETS, Declaration, load_declarations
from earlydrop.claims.judge import Verdict, judge
from earlydrop.claims.tables import claims_folder, window_words


def shown(runs: pd.DataFrame) -> list[str]:
    """A line for each claim on the study of some runs, from `earlydrop.analysis.load_runs` with their measured steps in ``history``.

    A round of seeds that has not run says nothing.
    """
    declarations = [declaration for name in SETS for declaration in load_declarations(claims_folder(name))]
    return [sentences(verdict) for _, study in runs.groupby("study") for verdict in _verdicts(declarations, study)]


def _verdicts(declarations: Iterable[Declaration], runs: pd.DataFrame) -> Iterator[Verdict]:
    """What the runs of one study say of every claim on it."""
    study = str(runs["study"].iloc[0])
    for declaration in declarations:
        if study in declaration.studies:
            for each in declaration.studies[study].rounds:
                found = judge(declaration, study, each, runs) if each != LABEL else []
                yield from (verdict for verdict in found if verdict.paired is not None)


_SENTENCES = {
    "reproduced": "Confirmed: {claim}.",
    "opposite": 'The opposite of "{claim}".',
    "absent": 'No effect that matters: "{claim}".',
    "incomplete": 'Not all seeds have run: "{claim}".',
}


def sentences(verdict: Verdict) -> str:
    """A line with the verdict, and one with the measurement."""
    claim, found = verdict.claim, verdict.paired
    if found is None:
        return f'Not measured: "{claim.claim}".'
    seeds = len(found.seeds)
    needed = verdict.price.seeds if verdict.price is not None else None
    undecided = f"Undecided with {seeds} seeds"
    if 0 < verdict.look < verdict.looks:
        undecided += f" (look {verdict.look} of {verdict.looks})"
    elif needed is not None:
        undecided += f" (about {needed} needed)"
    sentence = _SENTENCES.get(verdict.verdict, undecided + ': "{claim}".').format(claim=claim.claim)
    where = f", {window_words(claim.window)}" if claim.window is not None else ""
    measured = f"Measured {found.effect:+.3g} (95% interval {found.low:+.3g} to {found.high:+.3g}, {seeds} seeds{where})."
    remark = f" Its runs are not as declared: {verdict.remark}." if verdict.remark else ""
    return f"{sentence}\n  {measured}{remark}"
