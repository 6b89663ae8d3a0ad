"""The answer: one row a finding of the paper, and a verdict for each sort of data that it was tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from earlydrop.analysis.stats import Paired
from earlydrop.claims.declare import Declaration
from earlydrop.claims.judge import DECIDED, OPEN, Verdict
from earlydrop.claims.power import Price

FINDINGS = {
    "F1": "smaller gradient norm early",
    "F2": "moves further from the start",
    "F3": "lower GDV early, higher later",
    "F4": "lower GDE early, higher later",
    "F5": "early dropout helps",
    "F6": "standard dropout hurts",
    "F7": "early s.d. helps",
    "F8": "late dropout beats standard",
    "F9": "whatever cutoff, rate, shape",
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


def column(declaration: Declaration) -> str:
    """What the data of a file's main study is called."""
    name = str(declaration.studies[declaration.main_study].config.get("data.name", "fashion_mnist_mini"))
    return _DATA.get(name, name)


def answer_table(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """One row a finding: what is claimed, and by sort of data the verdict; where its parts differ, each part's, or how many have it.

    What is not resolved is *open*, with the seeds that would resolve it and their core hours. Where another round of seeds says something
    else, it is named behind it.
    """
    verdicts = list(verdicts)
    cells: dict[tuple[str, str], list[Verdict]] = {}
    others: dict[tuple[str, str], list[Verdict]] = {}
    for declaration in declarations:
        for verdict in dissent(declaration, verdicts):
            others.setdefault((verdict.claim.finding, column(declaration)), []).append(verdict)
        for verdict in decisive(declaration, verdicts).values():
            if verdict.claim.finding in FINDINGS and verdict.verdict != "not run":
                cells.setdefault((verdict.claim.finding, column(declaration)), []).append(verdict)
    found = dict.fromkeys(name for _, name in cells)
    columns = [name for name in dict.fromkeys([*_DATA.values(), *found]) if name in found]
    rows = [
        {"finding": finding, "claimed": words}
        | {name: _joined(cells.get((finding, name), []), others.get((finding, name), [])) for name in columns}
        for finding, words in FINDINGS.items()
        if any(key[0] == finding for key in cells)
    ]
    return pd.DataFrame(rows, columns=["finding", "claimed", *columns]).set_index("finding")


def _part(verdict: Verdict) -> str:
    """What tells a claim from the others of its finding."""
    return verdict.claim.id.removeprefix(verdict.claim.finding).lstrip("-")


def _word(verdict: Verdict) -> str:
    return "open" if verdict.verdict == OPEN else verdict.verdict


def _priced(price: Price) -> str:
    return f"n={price.seeds}, {price.hours:.2g} h" if price.seeds is not None else str(price)


def _joined(parts: list[Verdict], others: list[Verdict]) -> str:
    words = Counter(map(_word, parts))
    prices = [each.price for each in parts if each.price is not None]
    behind = [_priced(max(prices, key=lambda price: price.hours))] if prices else []
    if len(words) < 2:
        said = "".join(words)
    elif len(parts) < 3:
        said = ", ".join(
            f"{_part(each)} {_word(each)}" + (f" ({_priced(each.price)})" if each.price is not None else "") for each in parts
        )
        behind = []
    else:
        said = ", ".join(f"{count} {word}" for word, count in words.items())
    behind += [" ".join(filter(None, (f"{each.round}:", _part(each), _word(each)))) for each in others]
    return f"{said} ({'; '.join(behind)})" if behind else said


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
