"""The answer: one row a finding of the paper, and a verdict for each sort of data that it was tested on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from earlydrop.analysis.stats import Paired
from earlydrop.claims.declare import Declaration
from earlydrop.claims.judge import DECIDED, OPEN, Verdict

FINDINGS = {
    "F1": "smaller gradient norm early",
    "F2": "moves further from the start",
    "F3": "lower GDV early, higher later",
    "F4": "lower GDE early, higher later",
    "F5": "early dropout helps",
    "F6": "standard dropout hurts",
    "F7": "early s.d. helps",
    "F8": "late dropout beats standard",
    "F9": "robust to its settings",
    "F10": "ours: at equal loss not lower",
}
"""The findings in the words of the README's table."""

_DATA = {"fashion_mnist_mini": "Fashion-MNIST", "glyphs": "glyphs", "text": "text"}


def _rank(verdict: Verdict) -> tuple[bool, int]:
    return verdict.verdict not in ("not run", "incomplete"), verdict.expected


def decisive(declaration: Declaration, verdicts: Iterable[Verdict]) -> dict[str, Verdict]:
    """By claim, the verdict of a file's main study that counts: that of its largest round that has run."""
    found: dict[str, Verdict] = {}
    for verdict in verdicts:
        claim = verdict.claim
        ours = verdict.study == declaration.main_study and any(claim is each for each in declaration.claims)
        if ours and (claim.id not in found or _rank(verdict) > _rank(found[claim.id])):
            found[claim.id] = verdict
    return found


def dissent(declaration: Declaration, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts of a file's main study in which another round, such as a repetition, says something else than the one that counts.

    A round that leaves open what a larger one decides does not disagree.
    """
    verdicts = list(verdicts)
    chosen = decisive(declaration, verdicts)
    others = []
    for verdict in verdicts:
        if verdict.study == declaration.main_study and any(verdict.claim is claim for claim in declaration.claims):
            counts = chosen[verdict.claim.id]
            speaks = verdict.verdict in DECIDED or (verdict.verdict == OPEN and verdict.expected >= counts.expected)
            if speaks and verdict.verdict != counts.verdict:
                others.append(verdict)
    return others


def dissent_line(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> str:
    """Each verdict that another round does not share, in a sentence; empty if there is none."""
    verdicts = list(verdicts)
    parts = [
        f"{verdict.claim.id} on {column(declaration)} {_word(verdict)} ({verdict.round})"
        for declaration in declarations
        for verdict in dissent(declaration, verdicts)
        if verdict.claim.finding in FINDINGS
    ]
    return f"Other seeds say otherwise: {', '.join(parts)}." if parts else ""


def column(declaration: Declaration) -> str:
    """What the data of a file's main study is called."""
    name = str(declaration.studies[declaration.main_study].config.get("data.name", "fashion_mnist_mini"))
    return _DATA.get(name, name)


def answer_table(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """One row a finding: what is claimed, and by sort of data the verdict; where its parts differ, each part's, or how many have it.

    What is not resolved is *open*, with the seeds that would resolve it and their core hours.
    """
    verdicts = list(verdicts)
    cells: dict[tuple[str, str], list[Verdict]] = {}
    for declaration in declarations:
        for verdict in decisive(declaration, verdicts).values():
            if verdict.claim.finding in FINDINGS and verdict.verdict != "not run":
                cells.setdefault((verdict.claim.finding, column(declaration)), []).append(verdict)
    found = dict.fromkeys(name for _, name in cells)
    columns = [name for name in dict.fromkeys([*_DATA.values(), *found]) if name in found]
    rows = [
        {"finding": finding, "claimed": words} | {name: _joined(cells.get((finding, name), [])) for name in columns}
        for finding, words in FINDINGS.items()
        if any(key[0] == finding for key in cells)
    ]
    return pd.DataFrame(rows, columns=["finding", "claimed", *columns]).set_index("finding")


def _part(verdict: Verdict) -> str:
    """What tells a claim from the others of its finding."""
    return verdict.claim.id.removeprefix(verdict.claim.finding).lstrip("-")


def _word(verdict: Verdict) -> str:
    return "open" if verdict.verdict == OPEN else verdict.verdict


def _priced(parts: list[Verdict]) -> str:
    """What would resolve every part that has a price: the seeds of the one that needs most, in the arms of all."""
    priced = [(each, each.price) for each in parts if each.price is not None]
    if not priced:
        return ""
    worst = max((price for _, price in priced), key=lambda price: price.seeds or math.inf)
    if worst.seeds is None:
        return f" ({worst})"
    seconds = {(each.study, arm): took for each, _ in priced for arm, took in zip(each.arms, each.seconds, strict=True)}
    return f" (n={worst.seeds}, {worst.seeds * sum(seconds.values()) / 3600:.2g} h)"


def _joined(parts: list[Verdict]) -> str:
    words = Counter(map(_word, parts))
    if len(words) == len(parts) == 2:
        return ", ".join(f"{_part(each)} {_word(each)}{_priced([each])}" for each in parts)
    said = "".join(words) if len(words) < 2 else ", ".join(f"{count} {word}" for word, count in words.items())
    return said + _priced(parts)


def points(
    declarations: Iterable[Declaration], verdicts: Iterable[Verdict]
) -> dict[tuple[str, str], list[tuple[str, Paired, float]]]:
    """By finding and sort of data: the name of each part, its paired difference, and the smallest effect that matters."""
    verdicts = list(verdicts)
    found: dict[tuple[str, str], list[tuple[str, Paired, float]]] = {}
    for declaration in declarations:
        for verdict in decisive(declaration, verdicts).values():
            if verdict.claim.finding in FINDINGS and verdict.paired is not None and verdict.smallest:
                key = (verdict.claim.finding, column(declaration))
                found.setdefault(key, []).append((_part(verdict), verdict.paired, verdict.smallest))
    return found
