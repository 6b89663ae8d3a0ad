"""Everything that is written for a set of claims: summaries, tables, figures and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from earlydrop.analysis.page import html_list, html_page, html_table, pictures, to_markdown
from earlydrop.analysis.runs import EARLY, find_runs
from earlydrop.claims.answer import answer_table, differing_line
from earlydrop.claims.declare import Declaration
from earlydrop.claims.figures import draw_answer, draw_findings
from earlydrop.claims.judge import judge_all
from earlydrop.claims.map_figures import MAPS, regime_cells
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.summaries import RUNS, Summaries, collect, merged, read_summaries
from earlydrop.claims.tables import (
    labels,
    short_table,
    standard_minus_none,
    study_tables,
    verdict_table,
)
from earlydrop.claims.verdict import Verdict

# These two texts explain the columns of the tables, so they stand with the code that writes them.
_HOW = (
    "Differences are paired by seed, with 95% intervals: Student's t, or the interval of the "
    "claim's own test. An interval at a look is wider, because its claim is looked at several "
    "times. p is adjusted by Holm over the two tests of every claim of a family. It is the p-value "
    "of the test that decided. If none did, it is that of the test that would confirm the claim. "
    "An effect is absent if the tests show a difference below the smallest that matters. Where a "
    "claim with the t test is not resolved, the table gives the total number of seeds that would "
    "resolve it with a power of 90%, and the core hours of their runs. The number of seeds follows "
    "from the observed standard deviation of the differences. It is for a true difference of 0 and "
    "for one of the smallest that matters. For a claim of equivalence it is for 0, or for the "
    "observed difference if its interval excludes 0. Claims, windows and seeds were written down "
    "before the runs that test them. The smallest effects were too, unless the file of claims says "
    "otherwise."
)
_EARLY = (
    f"Early: the mean over the first {EARLY:.0%} of a run, without step 0. Claims have windows of "
    "their own. All rounds of seeds are together here, except those that label a regime. ± is half "
    "of a 95% interval over seeds. An arm minus none is compared with the arm without dropout that "
    "has the same other settings."
)


class _Remarks(NamedTuple):
    """The lines below the table of verdicts: notes on the studies, and the regimes."""

    notes: list[str]
    regimes: list[str]


def write_findings(
    folder: Path,
    out: Path,
    claims: str = "findings",
    add: bool = False,
) -> tuple[pd.DataFrame, dict[str, str], list[Path]]:
    """Judge a set of claims, and write its summaries, tables, figures and page.

    The files are ``table.md``, ``table.csv``, ``short.md``, ``studies.md``, ``fingerprints.csv``,
    ``findings.html`` and ``figures/``. The set ``findings`` also has ``answer.md``. The
    summaries (``runs.csv``, ``history.csv.xz``) are written too if ``folder`` holds runs, or if
    ``add`` is True and ``folder`` is not ``out``.

    Args:
        folder: A folder of runs, or of summaries of runs.
        out: The folder to write to.
        claims: The set of claims, a folder below ``conf/claims``.
        add: Add the runs of ``folder`` to the summaries in ``out``.

    Returns:
        The table of verdicts, the regimes of the studies, and the files of the figures.

    Raises:
        FileNotFoundError: There are neither runs nor summaries, or none of them has a declared
            seed, or ``add`` is True and ``out`` holds no summaries.
        DamagedFileError: Every run is damaged.
        ValueError: A file of claims is not valid, or a seed was run twice in one arm.
    """
    if add and not (out / RUNS).is_file():
        raise FileNotFoundError(f"{out} has no {RUNS} to add to: expected earlier summaries")
    declarations = load_declarations(claims_folder(claims))
    summaries, left_out = _summaries(folder, out, declarations, claims=claims, add=add)
    verdicts = _judged(declarations, summaries, folder, claims)
    table = verdict_table(verdicts, summaries)
    regimes = labels(declarations, summaries)
    remarks = _Remarks(_notes(declarations, summaries), _regimes(regimes, summaries))
    out.mkdir(parents=True, exist_ok=True)
    figures = draw_findings(declarations, summaries, out / "figures")
    if claims == "findings":
        _write(out / "answer.md", _answer(declarations, verdicts))
        figures |= draw_answer(declarations, verdicts, out / "figures")
    _write(out / "table.md", _table_text(table, remarks))
    _write(out / "studies.md", _studies_text(study_tables(declarations, summaries)))
    _write(out / "short.md", to_markdown(short_table(declarations, verdicts)) + "\n")
    table.to_csv(out / "table.csv", lineterminator="\n")
    _write(out / "fingerprints.csv", _fingerprints(verdicts, figures))
    _write(out / "findings.html", _page(table, remarks, list(figures), left_out, out=out))
    return table, regimes, list(figures)


def _summaries(
    folder: Path,
    out: Path,
    declarations: list[Declaration],
    claims: str,
    add: bool,
) -> tuple[Summaries, tuple[str, ...]]:
    """The summaries to judge, written to ``out`` if they are new, and the runs left out.

    If the folder holds both runs and summaries, the runs are summarised again, and the summaries
    in the folder are used only if ``add`` is True and the folder is ``out``.
    """
    has_runs = any(find_runs(folder)) or not (folder / RUNS).is_file()
    if not has_runs and (not add or folder.samefile(out)):
        return read_summaries(folder), ()
    studies: set[str] = set()
    for declaration in declarations:
        studies.update(declaration.studies)
    if claims == "findings":
        studies.update(MAPS)
    further = collect(folder, studies) if has_runs else read_summaries(folder)
    left_out = further.left_out
    if add:
        further = merged(read_summaries(out), further)
    _judged(declarations, further, folder, claims)  # nothing is overwritten if no run is declared
    further.write(out)
    return read_summaries(out), left_out  # rounded, as a later call reads them


def _judged(
    declarations: list[Declaration], summaries: Summaries, folder: Path, claims: str
) -> list[Verdict]:
    """The verdicts on some runs.

    Raises:
        FileNotFoundError: No run has a declared seed.
    """
    verdicts = judge_all(declarations, summaries)
    if not verdicts:
        declared = f"the seeds that {claims_folder(claims)} declares"
        advice = "train them (see earlydrop list), or choose another set with --claims"
        raise FileNotFoundError(f"{folder} holds no runs with {declared}: {advice}")
    return verdicts


def _notes(declarations: list[Declaration], summaries: Summaries) -> list[str]:
    """The notes on the studies that have run."""
    ran = set(summaries.runs["study"])
    notes = []
    for declaration in declarations:
        for study in declaration.studies.values():
            if study.note and study.name in ran:
                notes.append(f"{study.name}: {study.note}")
    return notes


def _regimes(labels_by_study: Mapping[str, str], summaries: Summaries) -> list[str]:
    """The regimes of the studies, then those of the cells of the regime map."""
    lines = [f"{study}: {label}" for study, label in labels_by_study.items()]
    for (width, images), (name, difference) in regime_cells(summaries).items():
        cell = f"width {width}, {images:,} images"
        measured = f"{standard_minus_none(difference)}, n = {len(difference.seeds)}"
        lines.append(f"{cell}: {name}, {measured}")
    return lines


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _table_text(table: pd.DataFrame, remarks: _Remarks) -> str:
    """The text of ``table.md``: the verdicts, how to read them, and the remarks."""
    lines = [to_markdown(table), "", _HOW]
    regimes = "Regimes, from seeds that no verdict uses:"
    for title, items in (("Notes:", remarks.notes), (regimes, remarks.regimes)):
        if items:
            lines += ["", title, "", *(f"- {item}" for item in items)]
    return "\n".join([*lines, ""])


def _studies_text(tables: Mapping[str, pd.DataFrame]) -> str:
    """The text of ``studies.md``: each table below its heading."""
    sections = [f"## {name}\n\n{to_markdown(table)}\n" for name, table in tables.items()]
    return f"{_EARLY}\n\n" + "\n".join(sections)


def _answer(declarations: list[Declaration], verdicts: list[Verdict]) -> str:
    """The text of ``answer.md``: the paper's claims, the rounds that disagree, and our claims."""
    paper = answer_table(declarations, verdicts, ours=False)
    parts = [to_markdown(paper, aligned=False), differing_line(declarations, verdicts)]
    own = answer_table(declarations, verdicts, ours=True)
    if not own.empty:
        parts += ["Claims of our own:", to_markdown(own, aligned=False)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _fingerprints(verdicts: list[Verdict], figures: Mapping[Path, list[str]]) -> str:
    """The text of ``fingerprints.csv``: the runs behind each verdict and each figure."""
    lines = ["what,fingerprints"]
    for verdict in verdicts:
        name = f"{verdict.study} {verdict.round} {verdict.claim.id}"
        lines.append(f"{name},{' '.join(verdict.fingerprints)}")
    for path, fingerprints in sorted(figures.items()):
        lines.append(f"figures/{path.name},{' '.join(fingerprints)}")
    return "\n".join(lines) + "\n"


def _page(
    table: pd.DataFrame,
    remarks: _Remarks,
    figures: list[Path],
    left_out: tuple[str, ...],
    out: Path,
) -> str:
    """The text of ``findings.html`` in the folder ``out``; it links to the figures."""
    trouble = html_list([f"left out: {line}" for line in left_out])
    sections = [
        f'<div class="trouble">{trouble}</div>' if left_out else "",
        f"<p>{_HOW}</p>",
        html_table(table),
        "<h2>Notes</h2>" + html_list(remarks.notes) if remarks.notes else "",
        "<h2>Regimes</h2>" + html_list(remarks.regimes) if remarks.regimes else "",
        "<h2>Figures</h2>" + pictures(figures, out),
    ]
    return html_page("Findings", sections)
