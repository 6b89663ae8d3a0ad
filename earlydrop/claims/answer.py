"""The answer: one row for each claim in plain words, with its verdict on each dataset.

The rows are in ``conf/claims/answer.yaml``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from earlydrop.analysis.stats import Paired
from earlydrop.claims.declare import Declaration
from earlydrop.claims.verdict import DECIDED, OPEN, UNJUDGED, Verdict
from earlydrop.metrics import METRICS
from earlydrop.training.compose import conf_folder

WORDS = {
    "reproduced": "confirmed",
    "absent": "no effect",
    "opposite": "opposite",
    OPEN: "undecided",
}
"""Each verdict in the words of the answer."""

SYMBOLS = {"confirmed": "✓", "no effect": "=", "opposite": "✗", "undecided": "?"}
"""The sign before each word, in tables and in legends."""

_DATA = {"fashion_mnist_mini": "Fashion-MNIST", "glyphs": "glyphs", "text": "text"}
"""Names of datasets for display, in the order of the columns.

They are here, because several files of claims can use one dataset.
"""


class Row(NamedTuple):
    """One row of the answer.

    Attributes:
        words: What is claimed.
        claims: The claims that test it, by id.
        ours: Whether the claim is ours; False for a claim of the paper.
    """

    words: str
    claims: tuple[str, ...]
    ours: bool = False


def answer_rows(path: Path | None = None) -> list[Row]:
    """The rows of the answer, in order.

    Args:
        path: A file like ``conf/claims/answer.yaml``, which is the default.

    Raises:
        ValueError: A row lacks its words or its claims, or has an unknown key, or a claim is in
            two rows.
    """
    path = path or conf_folder() / "claims" / "answer.yaml"
    rows = []
    for values in yaml.safe_load(path.read_text(encoding="utf-8")):
        keys = set(values) if isinstance(values, dict) else set()
        complete = {"words", "claims"} <= keys
        known = keys <= {"words", "claims", "ours"}
        if not (complete and known and _is_row(values)):
            expected = "expected words: a text, claims: a list of claims, and optionally ours: true"
            raise ValueError(f"{path.name}: a row is {values!r}: {expected}")
        ours = values.get("ours", False)
        rows.append(Row(values["words"], tuple(values["claims"]), ours=bool(ours)))
    counts = Counter(itertools.chain.from_iterable(row.claims for row in rows))
    twice = [claim for claim, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{path.name}: claim {twice[0]} is in two rows: expected one")
    return rows


def _is_row(values: Mapping[str, Any]) -> bool:
    """Whether the words of a row are a text, and its claims a list that is not empty."""
    claims = values["claims"]
    return isinstance(values["words"], str) and isinstance(claims, list) and bool(claims)


def words_of_claims() -> dict[str, str]:
    """The words of the row of each claim, by the claim's id."""
    words = {}
    for row in answer_rows():
        words.update(dict.fromkeys(row.claims, row.words))
    return words


def _is_about(verdict: Verdict, declaration: Declaration) -> bool:
    """Whether a verdict is on a claim of a file, from the file's main study."""
    if verdict.study != declaration.main_study:
        return False
    return any(verdict.claim is claim for claim in declaration.claims)


def _seeds_of_round(declaration: Declaration, verdict: Verdict) -> int:
    """The number of declared seeds of a verdict's round, of which a look may use fewer."""
    return len(declaration.studies[verdict.study].rounds[verdict.round])


def _rank(declaration: Declaration, verdict: Verdict) -> tuple[bool, int]:
    """Sort key: judged verdicts last, then by the number of declared seeds."""
    return verdict.verdict not in UNJUDGED, _seeds_of_round(declaration, verdict)


def counting_verdicts(declaration: Declaration, verdicts: Iterable[Verdict]) -> dict[str, Verdict]:
    """For each claim, the verdict that counts.

    It is the verdict of the judged round with the most declared seeds. If no round is judged yet,
    it is the verdict of the round with the most declared seeds.
    """
    chosen: dict[str, Verdict] = {}
    for verdict in verdicts:
        if _is_about(verdict, declaration):
            best = chosen.setdefault(verdict.claim.id, verdict)
            if _rank(declaration, verdict) > _rank(declaration, best):
                chosen[verdict.claim.id] = verdict
    return chosen


def differing_verdicts(declaration: Declaration, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts of other rounds of seeds that differ from the verdict that counts.

    An undecided verdict counts as different only if its round has at least as many seeds as the
    round of the verdict that counts.
    """
    verdicts = list(verdicts)
    chosen = counting_verdicts(declaration, verdicts)
    differing = []
    for verdict in verdicts:
        if not _is_about(verdict, declaration):
            continue
        counting = chosen[verdict.claim.id]
        seeds = [_seeds_of_round(declaration, each) for each in (verdict, counting)]
        as_large = seeds[0] >= seeds[1]
        may_differ = verdict.verdict in DECIDED or (verdict.verdict == OPEN and as_large)
        if may_differ and verdict.verdict != counting.verdict:
            differing.append(verdict)
    return differing


def differing_line(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> str:
    """A sentence that lists the claims on which another round has a different verdict.

    It is empty if there are none.
    """
    verdicts = list(verdicts)
    words = words_of_claims()
    parts = []
    for declaration in not_replaced(declarations, verdicts):
        for verdict in differing_verdicts(declaration, verdicts):
            if verdict.claim.id in words:
                claim = f'"{words[verdict.claim.id]}" on {dataset_label(declaration)}'
                parts.append(f'{claim} ({WORDS[verdict.verdict]} in "{verdict.round}")')
    if not parts:
        return ""
    listed = ", ".join(parts)
    return f"Another round differs (smaller undecided rounds left out): {listed}."


def dataset_label(declaration: Declaration) -> str:
    """The name of the dataset of a file's main study, for display."""
    name = str(declaration.studies[declaration.main_study].arm({}).get("data.name"))
    return _DATA.get(name, name)


def answer_table(
    declarations: Iterable[Declaration],
    verdicts: Iterable[Verdict],
    ours: bool | None = None,
) -> pd.DataFrame:
    """One row per claim in words, one column per dataset.

    A cell has the verdict and the measured difference. A cell of a row with several claims has the
    number of claims with each verdict.

    Args:
        declarations: The files of claims.
        verdicts: The verdicts on them.
        ours: True for our own claims, False for those of the paper, None for all.
    """
    cells = _cells(declarations, verdicts)
    asked = [row for row in answer_rows() if ours is None or row.ours == ours]
    words = {row.words for row in asked}
    columns = sorted({name for row, name in cells if row in words}, key=_column_order)
    rows = []
    for row in asked:
        texts = {name: _text(cells.get((row.words, name), [])) for name in columns}
        if any(texts.values()):
            rows.append({"claim": row.words} | texts)
    return pd.DataFrame(rows, columns=["claim", *columns]).set_index("claim")


def _column_order(name: str) -> tuple[int, str]:
    """Sort key: the names of `_DATA` first, in their order, then all others by name."""
    names = list(_DATA.values())
    return (names.index(name), "") if name in names else (len(names), name)


def not_replaced(
    declarations: Iterable[Declaration], verdicts: Iterable[Verdict]
) -> list[Declaration]:
    """The files of claims without those that another file replaces.

    A file replaces the earlier one that it names (``replaces``) once a claim of its main study has
    a verdict.
    """
    declarations = list(declarations)
    judged = {verdict.study for verdict in verdicts if verdict.verdict in WORDS}
    replaced = {
        declaration.replaces for declaration in declarations if declaration.main_study in judged
    }
    return [declaration for declaration in declarations if declaration.name not in replaced]


def _cells(
    declarations: Iterable[Declaration],
    verdicts: Iterable[Verdict],
) -> dict[tuple[str, str], list[Verdict]]:
    """The verdicts that count, by the words of their row and the name of their dataset."""
    verdicts = list(verdicts)
    words = words_of_claims()
    cells: dict[tuple[str, str], list[Verdict]] = {}
    for declaration in not_replaced(declarations, verdicts):
        for verdict in counting_verdicts(declaration, verdicts).values():
            if verdict.claim.id in words and verdict.verdict in WORDS:
                key = (words[verdict.claim.id], dataset_label(declaration))
                cells.setdefault(key, []).append(verdict)
    return cells


def _text(verdicts: list[Verdict]) -> str:
    """The text of a cell: the word and difference of one claim, or the counts of several."""
    if not verdicts:
        return ""
    words = Counter(WORDS[verdict.verdict] for verdict in verdicts)
    if len(verdicts) > 1:
        return ", ".join(f"{SYMBOLS[word]} {count} {word}" for word, count in words.items())
    word = WORDS[verdicts[0].verdict]
    return f"{SYMBOLS[word]} {word}: {measured(verdicts[0])}"


def measured(verdict: Verdict) -> str:
    """The measured difference in plain units.

    Examples: ``-1.9% loss``, ``+0.45 points`` (of accuracy), ``-50 steps``. A percentage of a
    metric is relative to the mean of the arm that the claim's arm is compared with. ``-20% of
    runs`` is a difference of two shares.
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
    elif claim.relative and verdict.smallest > 0:
        # verdict.smallest is claim.smallest times the mean of the other arm
        mean = verdict.smallest / claim.smallest
        text = f"{100 * effect / mean:+.1f}% {METRICS[claim.metric].short}"
    else:
        text = f"{effect:+.3f} {METRICS[claim.metric].short}"
    return text.replace("-", "\N{MINUS SIGN}")


class Point(NamedTuple):
    """One point of the answer's figure.

    Attributes:
        claim: The claim in words.
        data: The dataset.
        verdict: The verdict in the words of the answer.
        paired: The difference. It is positive if it has the direction that is claimed.
        smallest: The smallest effect that matters, in the same units.
        fingerprints: The runs behind it.
    """

    claim: str
    data: str
    verdict: str
    paired: Paired
    smallest: float
    fingerprints: tuple[str, ...]


def points(declarations: Iterable[Declaration], verdicts: Iterable[Verdict]) -> list[Point]:
    """The points of the answer's figure: one for each claim and dataset, in the order of the rows.

    Only claims that an arm is lower or higher have points, and only where the difference was
    measured.
    """
    cells = _cells(declarations, verdicts)
    rows = [row.words for row in answer_rows()]
    drawn = []
    in_order = sorted(cells, key=lambda cell: (rows.index(cell[0]), _column_order(cell[1])))
    for words, data in in_order:
        for verdict in cells[words, data]:
            direction = verdict.claim.direction
            paired = verdict.paired
            if direction in ("lower", "higher") and paired is not None and verdict.smallest:
                point = Point(
                    claim=words,
                    data=data,
                    verdict=WORDS[verdict.verdict],
                    paired=paired if direction == "higher" else _negated(paired),
                    smallest=verdict.smallest,
                    fingerprints=tuple(verdict.fingerprints),
                )
                drawn.append(point)
    return drawn


def _negated(paired: Paired) -> Paired:
    """The paired difference with its sign changed."""
    return dataclasses.replace(paired, effect=-paired.effect, low=-paired.high, high=-paired.low)
