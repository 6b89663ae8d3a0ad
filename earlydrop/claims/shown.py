"""The verdicts of runs on the claims that are declared for their study, in two lines each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from earlydrop.claims.declare import LABEL, SETS, Declaration
from earlydrop.claims.judge import judge
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.tables import window_words
from earlydrop.claims.verdict import Verdict


def shown(runs: pd.DataFrame) -> list[str]:
    """Sentences on each claim about the studies of some runs.

    A round of seeds that has not run is left out. If the note of a study says what to expect, it
    follows the study's verdicts.

    Args:
        runs: From `earlydrop.analysis.load_runs`, with their measured steps in ``history``.
    """
    declarations: list[Declaration] = []
    for name in SETS:
        declarations += load_declarations(claims_folder(name))
    lines = []
    for study, rows in runs.groupby("study"):
        verdicts = list(_verdicts(declarations, rows))
        lines += [sentences(verdict) for verdict in verdicts]
        lines += _expectations(declarations, str(study)) if verdicts else []
    return lines


def _expectations(declarations: Iterable[Declaration], study: str) -> list[str]:
    """The notes that say what the runs of a study should show, as sentences."""
    expected = []
    for declaration in declarations:
        note = declaration.studies[study].note if study in declaration.studies else ""
        if note.startswith("expected"):
            expected.append(f"{note[0].upper()}{note[1:]}.")
    return expected


def _verdicts(declarations: Iterable[Declaration], runs: pd.DataFrame) -> Iterator[Verdict]:
    """The verdicts on every claim about the study of these runs."""
    study = str(runs["study"].iloc[0])
    for declaration in declarations:
        if study not in declaration.studies:
            continue
        for round_name in declaration.studies[study].rounds:
            if round_name == LABEL:
                continue
            for verdict in judge(declaration, study, round_name, runs):
                if verdict.paired is not None:
                    yield verdict


_SENTENCES = {
    "reproduced": "Confirmed: {claim}.",
    "opposite": 'Opposite: the runs show the reverse of "{claim}".',
    "absent": 'No effect that matters: "{claim}".',
    "incomplete": 'Not all seeds have run: "{claim}".',
}


def sentences(verdict: Verdict) -> str:
    """A line with the verdict, and a line with the measurement."""
    claim, difference = verdict.claim, verdict.paired
    if difference is None:
        why = f" ({verdict.remark})" if verdict.remark else ""
        return f'Not measured: "{claim.claim}"{why}.'
    seeds = len(difference.seeds)
    needed = verdict.price.seeds if verdict.price is not None else None
    undecided = f"Undecided with {seeds} seeds"
    if 0 < verdict.look < verdict.looks:
        undecided += f" (look {verdict.look} of {verdict.looks})"
    elif needed is not None:
        undecided += f" (about {needed} needed)"
    sentence = _SENTENCES.get(verdict.verdict, undecided + ': "{claim}".').format(claim=claim.claim)
    interval = f"95% interval {difference.low:+.3g} to {difference.high:+.3g}"
    where = f", over {window_words(claim.window)}" if claim.window is not None else ""
    measured = f"Measured {difference.effect:+.3g} ({interval}; {_seeds(verdict, seeds)}{where})."
    remark = f" Its runs are not as declared: {verdict.remark}." if verdict.remark else ""
    return f"{sentence}\n  {measured}{remark}"


def _seeds(verdict: Verdict, seeds: int) -> str:
    """The number of seeds in the claimed direction, such as ``lower in 8 of 10 seeds``."""
    directed = verdict.claim.direction in ("lower", "higher") and verdict.claim.test is None
    count = verdict.lower if verdict.claim.direction == "lower" else verdict.higher
    if count is None or not directed:
        return f"{seeds} seeds"
    return f"{verdict.claim.direction} in {count} of {seeds} seeds"
