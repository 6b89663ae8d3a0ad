"""The answer: one row a claim in plain words, and what the runs say of it on each dataset.

The rows stand in ``conf/claims/answer.yaml``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from earlydrop.analysis.stats import Paired
from earlydrop.claims.declare import Declaration
from earlydrop.claims.judge import DECIDED, OPEN, Verdict
from earlydrop.metrics import METRICS
from earlydrop.training.compose import conf_folder

WORDS = {"reproduced": "confirmed", "absent": "no effect", "opposite": "opposite", OPEN: "undecided"}
"""Each verdict in the words of the answer."""

SYMBOLS = {"confirmed": "✓", "no effect": "=", "opposite": "✗", "undecided": "?"}
"""A sign beside each word, so that a table can be read without its colours."""

_DATA = {"fashion_mnist_mini": "Fashion-MNIST", "glyphs": "glyphs", "text": "text"}


class Row(NamedTuple):
    """One row of the answer.

    Attributes:
        words: What is claimed.
        claims: The claims that test it, by id.
    """

    words: str
    claims: tuple[str, ...]


def answer_rows(path: Path | None = None) -> list[Row]:
    """The rows of the answer, in order.

    Args:
        path: A file like ``conf/claims/answer.yaml``, which is the default.

    Raises:
        ValueError: A row lacks its words or its claims, or a claim is in two rows.
    """
    path = path or conf_folder() / "claims" / "answer.yaml"
    rows = []
    for values in yaml.safe_load(path.read_text(encoding="utf-8")):
        if not isinstance(values, dict) or set(values) != {"words", "claims"} or not values["claims"]:
            raise ValueError(f"{path.name}: a row is {values!r}: expected words and claims")
        rows.append(Row(values["words"], tuple(values["claims"])))
    counts = Counter(claim for row in rows for claim in row.claims)
    twice = [claim for claim, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{path.name}: claim {twice[0]} is in two rows: expected one")
    return rows


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
    words = {claim: row.words for row in answer_rows() for claim in row.claims}
    parts = [
        f'"{words[verdict.claim.id]}" on {column(declaration)} ({_word(verdict)} in the round "{verdict.round}")'
        for declaration in current(declarations, verdicts)
        for verdict in dissent(declaration, verdicts)
        if verdict.claim.id in words
    ]
    return f"Other seeds disagree: {', '.join(parts)}." if parts else ""


def column(declaration: Declaration) -> str:
    """What the data of a file's main study is called."""
    name = str(declaration.studies[declaration.main_study].config.get("data.name", "fashion_mnist_mini"))
    return _DATA.get(name, name)


def answer_table(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """One row a claim in words, one column a dataset; a cell says the verdict and the difference that was measured.

    Cells of a row with several claims say how many have each verdict.
    """
    cells = _cells(declarations, verdicts)
    found = {name for _, name in cells}
    columns = [*(name for name in _DATA.values() if name in found), *sorted(found - set(_DATA.values()))]
    rows = []
    for row in answer_rows():
        texts = {name: _text(cells.get((row.words, name), [])) for name in columns}
        if any(texts.values()):
            rows.append({"claim": row.words} | texts)
    return pd.DataFrame(rows, columns=["claim", *columns]).set_index("claim")


def current(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> list[Declaration]:
    """The files of claims without those that another file replaces, once the other has a verdict."""
    declarations = list(declarations)
    judged = {verdict.study for verdict in verdicts if verdict.verdict in WORDS}
    replaced = {file.replaces for file in declarations if file.main_study in judged}
    return [file for file in declarations if file.name not in replaced]


def _cells(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> dict[tuple[str, str], list[Verdict]]:
    """The verdicts that count, by the words of their row and the name of their dataset."""
    verdicts = list(verdicts)
    declarations = current(declarations, verdicts)
    words = {claim: row.words for row in answer_rows() for claim in row.claims}
    cells: dict[tuple[str, str], list[Verdict]] = {}
    for declaration in declarations:
        for verdict in decisive(declaration, verdicts).values():
            if verdict.claim.id in words and verdict.verdict in WORDS:
                key = (words[verdict.claim.id], column(declaration))
                cells.setdefault(key, []).append(verdict)
    return cells


def _word(verdict: Verdict) -> str:
    return WORDS.get(verdict.verdict, verdict.verdict)


def _text(verdicts: list[Verdict]) -> str:
    """What a cell says: the word and the difference of one claim, or how many of several have each word."""
    if not verdicts:
        return ""
    words = Counter(map(_word, verdicts))
    if len(verdicts) > 1:
        return ", ".join(f"{SYMBOLS[word]} {count} {word}" for word, count in words.items())
    (word,) = words
    return f"{SYMBOLS[word]} {word}: {measured(verdicts[0])}"


def measured(verdict: Verdict) -> str:
    """The difference that was measured, in plain units: ``-1.9% loss``, ``+0.45 points`` (of accuracy), ``-50 steps``.

    A percentage is relative to the mean of the arm that the claim is held against.
    """
    if verdict.paired is None or verdict.smallest is None:
        return "not measured"
    claim, effect = verdict.claim, verdict.paired.effect
    if claim.test is not None and claim.test.kind == "share above":
        text = f"{100 * effect:+.0f}% of runs"
    elif claim.test is not None and claim.test.kind == "steps to":
        text = f"{effect:+.0f} steps"
    elif claim.metric.endswith("accuracy"):
        text = f"{100 * effect:+.2f} points"
    elif claim.relative:
        mean = verdict.smallest / claim.smallest
        text = f"{100 * effect / mean:+.1f}% {METRICS[claim.metric].short}"
    else:
        text = f"{effect:+.3f} {METRICS[claim.metric].short}"
    return text.replace("-", "\N{MINUS SIGN}")


class Point(NamedTuple):
    """One point of the answer's figure.

    Attributes:
        words: The words of its row.
        data: The dataset.
        word: The verdict in the words of the answer.
        paired: The difference, with its sign turned so that more than 0 is towards the claim.
        size: The smallest effect that matters, in the same units.
    """

    words: str
    data: str
    word: str
    paired: Paired
    size: float


def points(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> list[Point]:
    """What the answer's figure shows: one point a claim and dataset, in the order of the rows.

    Claims of equivalence have no direction; they are left out.
    """
    cells = _cells(declarations, verdicts)
    found = []
    for (words, data), parts in sorted(cells.items(), key=lambda item: _order(item[0])):
        for verdict in parts:
            if verdict.claim.direction not in ("lower", "higher") or verdict.paired is None or not verdict.smallest:
                continue
            paired = verdict.paired if verdict.claim.direction == "higher" else _turned(verdict.paired)
            found.append(Point(words, data, _word(verdict), paired, verdict.smallest))
    return found


def _order(key: tuple[str, str]) -> tuple[int, int]:
    rows = [row.words for row in answer_rows()]
    names = list(_DATA.values())
    return rows.index(key[0]), names.index(key[1]) if key[1] in names else len(names)


def _turned(paired: Paired) -> Paired:
    return dataclasses.replace(paired, effect=-paired.effect, low=-paired.high, high=-paired.low)
