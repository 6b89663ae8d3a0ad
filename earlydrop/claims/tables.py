"""The tables of the findings, in text: verdicts, regimes and studies."""

from __future__ import annotations

import pandas as pd

from earlydrop.analysis.compare import paired_table, summary_table
from earlydrop.analysis.stats import Paired
from earlydrop.claims.answer import counting_verdicts
from earlydrop.claims.declare import (
    FIRST,
    LABEL,
    SMOKE,
    Claim,
    Declaration,
    LossWindow,
    Window,
    label_seeds,
)
from earlydrop.claims.regime import regime
from earlydrop.claims.summaries import Summaries
from earlydrop.claims.verdict import DECIDED, OPEN, Verdict


def labels(declarations: list[Declaration], summaries: Summaries) -> dict[str, str]:
    """The regime of studies in words, such as ``underfit (claimed for underfit): ...``, by name.

    A main study that ran without a label says so. Other studies without a label are left out.
    """
    words: dict[str, str] = {}
    ran = set(summaries.runs["study"])
    for declaration in declarations:
        claimed = f"(claimed for {declaration.regime})"
        for study in declaration.studies.values():
            seeds = study.rounds.get(LABEL, ())
            runs = summaries.of(study.name)
            name, difference = regime(runs, study, declaration.standard, seeds)
            if difference is not None:
                measured = f"{standard_minus_none(difference)} in test accuracy"
                words[study.name] = f"{name} {claimed}: {measured}, n = {len(difference.seeds)}"
            elif study.name in ran and declaration.main_study == study.name:
                reason = "its study declares no label seeds"
                if LABEL in study.rounds:
                    reason = "fewer than two label seeds have finished in both arms"
                words[study.name] = f"not labelled {claimed}: {reason}"
    return words


def standard_minus_none(difference: Paired) -> str:
    """The difference of a regime in words: ``standard minus none +0.0100 [...]``."""
    return f"standard minus none {_interval(difference)}"


def _interval(difference: Paired) -> str:
    ends = f"[{_signed(difference.low)}, {_signed(difference.high)}]"
    return f"{_signed(difference.effect)} {ends}"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 1 else f"{value:+.3f}"


def verdict_table(verdicts: list[Verdict], summaries: Summaries) -> pd.DataFrame:
    """One row per claim, study and round, in text."""
    rows = []
    for verdict in verdicts:
        claim = verdict.claim
        runs = summaries.runs[summaries.runs["study"] == verdict.study]
        compared = " - ".join(verdict.arms)
        if verdict.remark:
            compared += f" (with {verdict.remark})"
        row = {
            "claim": claim.id,
            "model": str(runs["config/model.name"].iloc[0]),
            "study": _study_and_round(verdict),
            "compared": compared,
            "metric": metric_words(claim),
            "predicted": claim.direction,
            "smallest": "" if verdict.smallest is None else f"{verdict.smallest:.3g}",
            "difference": _difference(verdict),
            "n": _count(verdict),
            "p": "" if verdict.p is None else f"{verdict.p:.2g}",
            "verdict": _verdict(verdict),
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("claim")


def _study_and_round(verdict: Verdict) -> str:
    if verdict.round in (FIRST, verdict.study):
        return verdict.study
    return f"{verdict.study}, {verdict.round}"


def _difference(verdict: Verdict) -> str:
    """The difference with its interval, and its bootstrap interval where there is one."""
    text = _interval(verdict.paired) if verdict.paired else ""
    if verdict.bootstrap is not None:
        low, high = verdict.bootstrap
        text += f"; bootstrap [{_signed(low)}, {_signed(high)}]"
    return text


def _verdict(verdict: Verdict) -> str:
    """The word of a verdict, with its look or its price; bold where it decides the claim."""
    remark = _look_or_price(verdict)
    text = f"{verdict.verdict} ({remark})" if remark else verdict.verdict
    return f"**{text}**" if verdict.verdict in DECIDED else text


def _look_or_price(verdict: Verdict) -> str:
    """A remark on a verdict, or an empty text.

    It is the look, if the claim is decided or further looks follow. Otherwise, for a claim that is
    not resolved, it is the price, or the name of its test: only the t test has a price.
    """
    if verdict.look and (verdict.verdict in DECIDED or verdict.look < verdict.looks):
        return f"look {verdict.look} of {verdict.looks}"
    if verdict.verdict == OPEN and verdict.claim.test is not None:
        return f"test: {verdict.claim.test.kind}"
    return str(verdict.price) if verdict.price is not None else ""


def window_words(window: Window) -> str:
    """A claim's window in words, such as ``5% to 50%``."""
    if window is None:
        return "last"
    if isinstance(window, LossWindow):
        return f"at losses from {window.high:g} to {window.low:g}"
    return f"{100 * window[0]:g}% to {100 * window[1]:g}%"


def metric_words(claim: Claim) -> str:
    """What a claim compares, such as ``probe/gdv, 5% to 50%`` or ``train/loss, steps to 2.1``.

    If the two arms have different metrics, both are named: ``test_mc/loss minus test/loss, last``.
    """
    if claim.test is not None and claim.test.bound is not None:
        return f"{claim.metric}, {claim.test.kind} {claim.test.bound:g}"
    metric = claim.metric
    if claim.against_metric is not None:
        metric = f"{claim.metric} minus {claim.against_metric}"
    words = [metric, window_words(claim.window)]
    if claim.sensitivity is not None:
        words.append(f"sensitivity to {claim.sensitivity.key}")
    if claim.test is not None:
        words.append(claim.test.kind)
    return ", ".join(words)


def _count(verdict: Verdict) -> str:
    """The number of paired seeds, such as ``6``, or ``4 of 6`` where some are missing.

    One finished pair counts as 0, because it has no paired difference.
    """
    n = len(verdict.paired.seeds) if verdict.paired else 0
    return str(n) if n == verdict.expected else f"{n} of {verdict.expected}"


def short_table(declarations: list[Declaration], verdicts: list[Verdict]) -> pd.DataFrame:
    """One row per claim of each file's main study, in text.

    A row has the verdict that counts (`counting_verdicts`). The column ``elsewhere`` has those of
    other rounds and studies; it is left out if it is empty in every row.
    """
    rows = []
    for declaration in declarations:
        for verdict in counting_verdicts(declaration, verdicts).values():
            row = {
                "finding": verdict.claim.id,
                "claimed": verdict.claim.claim,
                "study": _study_and_round(verdict),
                "metric": metric_words(verdict.claim),
                "difference": _interval(verdict.paired) if verdict.paired else "",
                "n": _count(verdict),
                "verdict": verdict.verdict,
                "elsewhere": _elsewhere(verdict, verdicts),
            }
            rows.append(row)
    columns = ["finding", "claimed", "study", "metric", "difference", "n", "verdict", "elsewhere"]
    table = pd.DataFrame(rows, columns=columns).set_index("finding").sort_index(kind="stable")
    return table if (table["elsewhere"] != "").any() else table.drop(columns="elsewhere")


def _elsewhere(verdict: Verdict, verdicts: list[Verdict]) -> str:
    """The verdicts on the same claim from other rounds and studies."""
    parts = []
    for other in verdicts:
        same_claim = other.claim is verdict.claim and other is not verdict
        if same_claim and other.paired and other.study != SMOKE:
            same_study = other.study == verdict.study
            place = other.round if same_study else _study_and_round(other)
            parts.append(f"{place}: {other.verdict} (n = {_count(other)})")
    return "; ".join(parts)


def study_tables(
    declarations: list[Declaration],
    summaries: Summaries,
) -> dict[str, pd.DataFrame]:
    """Each study's table of arms and its table of paired differences, by heading.

    The seeds that label a regime are left out.
    """
    tables = {}
    for study in sorted(set(summaries.runs["study"]) - {SMOKE}):
        runs = summaries.of(study)
        runs = runs[~runs["seed"].isin(label_seeds(declarations, study))]
        if runs.empty:
            continue
        tables[study] = summary_table(runs)
        differences = paired_table(runs)
        if not differences.empty:
            tables[f"{study}, paired"] = differences
    return tables
