"""The tables of the findings: verdicts, regimes and studies, in text; and everything that is written for a set of claims."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from earlydrop.analysis.compare import paired_table, summary_table
from earlydrop.analysis.page import html_list, html_page, html_table, pictures, to_markdown
from earlydrop.analysis.runs import EARLY, find_runs
from earlydrop.analysis.stats import Paired
from earlydrop.claims.answer import answer_table, dissent_line
from earlydrop.claims.declare import LABEL, Claim, Declaration, LossWindow, Window, label_seeds
from earlydrop.claims.figures import MAPS, draw_answer, draw_findings, regime_cells
from earlydrop.claims.judge import DECIDED, Verdict, judge_all, regime
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.summaries import RUNS, Summaries, collect, merged, read_summaries


def labels(declarations: list[Declaration], summaries: Summaries) -> dict[str, str]:
    """The regime of each study in words: ``underfit (claimed for underfit): standard minus none -0.020 [-0.030, -0.010] ..., n = 3``."""
    words: dict[str, str] = {}
    ran = set(summaries.runs["study"])
    for declaration in declarations:
        for study in declaration.studies.values():
            name, found = regime(summaries.of(study.name), study, declaration.standard, study.rounds.get(LABEL, ()))
            if found is not None:
                words[study.name] = (
                    f"{name} (claimed for {declaration.regime}): standard minus none {_interval(found)} in test accuracy, "
                    f"n = {len(found.seeds)}"
                )
            elif study.name in ran and declaration.main_study == study.name:
                words[study.name] = f"not labelled (claimed for {declaration.regime}): no label seeds have run"
    return words


def _interval(found: Paired) -> str:
    return f"{_signed(found.effect)} [{_signed(found.low)}, {_signed(found.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 1 else f"{value:+.3f}"


def verdict_table(verdicts: list[Verdict], summaries: Summaries) -> pd.DataFrame:
    """One row a claim, study and round, in text."""
    rows = []
    for each in verdicts:
        claim, found = each.claim, each.paired
        first = summaries.runs[summaries.runs["study"] == each.study].iloc[0]
        words = f"{each.verdict} ({_after(each)})" if _after(each) else each.verdict
        row = {
            "claim": claim.id,
            "model": str(first["config/model.name"]),
            "study": each.study + ("" if each.round in ("first", each.study) else f", {each.round}"),
            "compared": " - ".join(each.arms) + (f" (with {each.remark})" if each.remark else ""),
            "metric": f"{claim.metric}, {window_words(claim.window)}{sensitivity_words(claim)}",
            "predicted": claim.direction,
            "smallest": "" if each.smallest is None else f"{each.smallest:.3g}",
            "difference": _interval(found) if found else "",
            "n": _count(each),
            "p": "" if each.p is None else f"{each.p:.2g}",
            "verdict": f"**{words}**" if each.verdict in DECIDED else words,
        }
        if each.bootstrap is not None:
            row["difference"] += f"; bootstrap [{_signed(each.bootstrap[0])}, {_signed(each.bootstrap[1])}]"
        rows.append(row)
    return pd.DataFrame(rows).set_index("claim")


def window_words(window: Window) -> str:
    """A claim's window in words, such as ``5% to 50%``."""
    if window is None:
        return "last"
    if isinstance(window, LossWindow):
        return f"at losses from {window.high:g} to {window.low:g}"
    return f"{window[0]:.0%} to {window[1]:.0%}"


def _after(verdict: Verdict) -> str:
    """What stands behind the word of a verdict: its look, or the price of what is not resolved."""
    if verdict.look and (verdict.verdict in DECIDED or verdict.look < verdict.looks):
        return f"look {verdict.look} of {verdict.looks}"
    return str(verdict.price) if verdict.price is not None else ""


def sensitivity_words(claim: Claim) -> str:
    """What a claim's sensitivity is to, such as ``, sensitivity to optim.lr``; empty for a claim without one."""
    return f", sensitivity to {claim.sensitivity.key}" if claim.sensitivity is not None else ""


def _count(verdict: Verdict) -> str:
    n = len(verdict.paired.seeds) if verdict.paired else 0
    return str(n) if n == verdict.expected else f"{n} of {verdict.expected}"


def short_table(declarations: list[Declaration], verdicts: list[Verdict]) -> pd.DataFrame:
    """One row a claim of each file's main study, in text: measurement, verdict, and the verdicts of other seeds and studies."""
    main = {(each.name, claim.id): each.main_study for each in declarations for claim in each.claims}
    of = {id(claim): (each.name, claim.id) for each in declarations for claim in each.claims}
    rows = []
    for verdict in verdicts:
        if verdict.study != main[of[id(verdict.claim)]] or verdict.round != "first":
            continue
        same = [other for other in verdicts if other.claim is verdict.claim and other is not verdict]
        others = [other for other in same if other.paired and other.study != "smoke"]
        row = {
            "finding": verdict.claim.id,
            "claimed": verdict.claim.claim,
            "study": verdict.study,
            "metric": verdict.claim.metric,
            "difference": _interval(verdict.paired) if verdict.paired else "",
            "n": _count(verdict),
            "verdict": verdict.verdict,
            "elsewhere": "; ".join(
                f"{other.round if other.study == verdict.study else other.study}: {other.verdict} (n = {_count(other)})"
                for other in others
            ),
        }
        rows.append(row)
    columns = ["finding", "claimed", "study", "metric", "difference", "n", "verdict", "elsewhere"]
    table = pd.DataFrame(rows, columns=columns).set_index("finding").sort_index(kind="stable")
    return table if (table["elsewhere"] != "").any() else table.drop(columns="elsewhere")


def write_findings(
    folder: Path, out: Path, claims: str = "findings", add: bool = False
) -> tuple[pd.DataFrame, dict[str, str], list[Path]]:
    """Write summaries, ``answer.md`` (of the findings), ``table.md``, ``short.md``, ``table.csv``, ``studies.md``, ``figures/`` and a page.

    ``folder`` holds runs, or the summaries of runs; ``add`` adds them to the summaries that ``out`` has.
    Returns the table, the studies' regimes, and the figures' files.

    Raises:
        FileNotFoundError: There are neither runs nor summaries.
    """
    declarations = load_declarations(claims_folder(claims))
    left_out: tuple[str, ...] = ()
    runs_there = any(find_runs(folder)) or not (folder / RUNS).is_file()  # summaries of earlier runs may lie beside new runs
    if runs_there or (add and not folder.samefile(out)):
        names = {study for each in declarations for study in each.studies} | (set(MAPS) if claims == "findings" else set())
        found = collect(folder, names) if runs_there else read_summaries(folder)
        (merged(read_summaries(out), found) if add else found).write(out)
        left_out = found.left_out
        folder = out
    summaries = read_summaries(folder)
    verdicts = judge_all(declarations, summaries)
    if not verdicts:
        raise FileNotFoundError(f"{folder} holds no runs with the seeds that {claims_folder(claims)} declares")
    studies = study_tables(declarations, summaries)
    table, words = verdict_table(verdicts, summaries), labels(declarations, summaries)
    figures = draw_findings(declarations, summaries, out / "figures")
    ran = set(summaries.runs["study"])
    notes = [f"{s.name}: {s.note}" for each in declarations for s in each.studies.values() if s.note and s.name in ran]
    regimes = [f"{study}: {label}" for study, label in words.items()] + [
        f"width {width}, {images:,} images: {name}, standard minus none {_interval(found)}, n = {len(found.seeds)}"
        for (width, images), (name, found) in regime_cells(summaries).items()
        if found is not None
    ]
    text = [to_markdown(table), "", _HOW]
    for title, lines in (("Notes:", notes), ("Regimes, from seeds that enter no verdict:", regimes)):
        text += ["", title, "", *(f"- {line}" for line in lines)] if lines else []
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n".join([*text, ""]), encoding="utf-8")
    (out / "studies.md").write_text(
        f"{_EARLY}\n\n" + "\n".join(f"## {name}\n\n{to_markdown(each)}\n" for name, each in studies.items()), encoding="utf-8"
    )
    (out / "short.md").write_text(to_markdown(short_table(declarations, verdicts)) + "\n", encoding="utf-8")
    if claims == "findings":
        answer = [to_markdown(answer_table(declarations, verdicts), aligned=False), dissent_line(declarations, verdicts)]
        (out / "answer.md").write_text("\n\n".join(filter(None, answer)) + "\n", encoding="utf-8")
        figures |= draw_answer(declarations, verdicts, out / "figures")
    table.to_csv(out / "table.csv", lineterminator="\n")
    (out / "fingerprints.csv").write_text(_fingerprints(verdicts, figures), encoding="utf-8")
    sections = [
        '<div class="trouble">' + html_list([f"left out: {line}" for line in left_out]) + "</div>" if left_out else "",
        f"<p>{_HOW}</p>",
        html_table(table),
        "<h2>Notes</h2>" + html_list(notes) if notes else "",
        "<h2>Regimes</h2>" + html_list(regimes) if regimes else "",
        "<h2>Figures</h2>" + pictures(list(figures)),
    ]
    (out / "findings.html").write_text(html_page("Findings", sections), encoding="utf-8")
    return table, words, list(figures)


_HOW = (
    "Paired differences by seed with 95% intervals (Student's t); p after Holm over the two tests of every claim of a family: that of the "
    "test that decided, of equivalence where the verdict is absent or the claim is one of equivalence, else of difference. An effect is "
    "absent where the difference is shown to be smaller than the smallest that matters. What is not resolved says how many seeds in all "
    "would resolve it with a power of 90% if the true difference is 0 or the smallest that matters (for a claim of equivalence: 0, or "
    "what was seen where its interval excludes 0), and their price; both rest on the scatter that was seen. Claims, windows and seeds were "
    "written down before the runs that test them; so were the smallest effects, but for those of the rounds on Fashion-MNIST that ran "
    "first, and of the repeat of dynamics, added later from the paper's gains."
)
_EARLY = (
    f"Early: the mean over the first {EARLY:.0%} of a run, step 0 left out; the claims' windows are their own. "
    "All rounds of seeds are together here, but for those that label a regime."
)


def study_tables(declarations: list[Declaration], summaries: Summaries) -> dict[str, pd.DataFrame]:
    """By heading: each study's table of arms, and its table of paired differences; without the seeds that label its regime."""
    tables = {}
    for study in sorted(set(summaries.runs["study"]) - {"smoke"}):
        runs = summaries.of(study)
        runs = runs[~runs["seed"].isin(label_seeds(declarations, study))]
        if runs.empty:
            continue
        tables[study] = summary_table(runs)
        differences = paired_table(runs)
        if not differences.empty:
            tables[f"{study}, paired"] = differences
    return tables


def _fingerprints(verdicts: list[Verdict], figures: Mapping[Path, list[str]]) -> str:
    """What runs each verdict and each figure comes from."""
    lines = [f"{f.study} {f.round} {f.claim.id},{' '.join(f.fingerprints)}" for f in verdicts]
    lines += [f"figures/{path.name},{' '.join(prints)}" for path, prints in sorted(figures.items())]
    return "\n".join(["what,fingerprints", *lines]) + "\n"
