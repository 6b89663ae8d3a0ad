"""The findings table: every claim of ``conf/claims/`` against the runs. ``earlydrop-findings FOLDER`` makes table, figures and page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from earlydrop.analysis.claims import Family, Finding, Paired, judge, label_seeds, load_claims, regime
from earlydrop.analysis.findings_figures import MAP_STUDY, draw_findings, regime_cells
from earlydrop.analysis.report import html_list, html_page, html_table, paired_table, pictures, summary_table, to_markdown
from earlydrop.analysis.summaries import RUNS, Summaries, collect, read_summaries

SETS = ("findings", "classic")


def claims_folder(name: str = "findings") -> Path:
    """Where a set of claims is.

    Args:
        name: ``findings`` or ``classic``.

    Returns:
        ``conf/claims/<name>`` of the repository or the package.
    """
    from earlydrop.cli import conf_folder

    return conf_folder() / "claims" / name


def judge_all(families: list[Family], summaries: Summaries) -> list[Finding]:
    """Verdicts on every claim, for each study and round of seeds that has runs.

    Args:
        families: From `earlydrop.analysis.claims.load_claims`.
        summaries: The runs.

    Returns:
        The findings, by family, study and round.
    """
    findings = []
    for family in families:
        for study, rounds in family.studies.items():
            runs = summaries.of(study)
            for name in rounds:
                if name != "label":
                    found = judge(family, study, name, runs)
                    ran = [f for f in found if f.verdict != "not run"]
                    main = name == "first" and study == next(iter(family.studies))
                    findings += found if ran and main else ran  # other rounds and studies may take up some of the claims
    return findings


def labels(families: list[Family], summaries: Summaries) -> dict[str, str]:
    """The regime of each study in words, with its interval.

    Args:
        families: The claims.
        summaries: The runs.

    Returns:
        For example ``{"dynamics": "underfit: standard minus none -0.020 [-0.030, -0.010] in test accuracy, n = 3"}``.
    """
    words = {}
    for family in families:
        for study, rounds in family.studies.items():
            name, found = regime(summaries.of(study), family.standard, rounds.get("label", ()))
            if found is not None:
                words[study] = (
                    f"{name} (claimed for {family.regime}): standard minus none {_interval(found)} in test accuracy, "
                    f"n = {len(found.seeds)}"
                )
    return words


def _interval(found: Paired) -> str:
    return f"{_signed(found.effect)} [{_signed(found.low)}, {_signed(found.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 1 else f"{value:+.3f}"


def findings_table(findings: list[Finding], summaries: Summaries) -> pd.DataFrame:
    """One row a claim, study and round.

    Args:
        findings: From `judge_all`.
        summaries: The runs, for model and data.

    Returns:
        Text, the claims as the index.
    """
    rows = []
    for finding in findings:
        claim, found = finding.claim, finding.paired
        first = summaries.runs[summaries.runs["study"] == finding.study].iloc[0]
        window = "last" if claim.window is None else f"{claim.window[0]:.0%} to {claim.window[1]:.0%}"
        predicted = claim.direction if claim.margin is None else f"within {claim.margin:g}"
        verdict = finding.verdict
        if verdict == "not resolved" and finding.resolvable is not None:
            verdict += f" ({'within' if claim.margin else 'from'} {finding.resolvable:.2g})"
        row = {
            "claim": claim.id,
            "model": str(first["config/model.name"]),
            "study": finding.study + ("" if finding.round in ("first", finding.study) else f", {finding.round}"),
            "compared": f"{claim.arm} - {claim.against}",
            "metric": f"{claim.metric}, {window}",
            "predicted": predicted,
            "difference": _interval(found) if found else "",
            "n": _count(finding),
            "p": "" if finding.p is None else f"{finding.p:.2g}",
            "verdict": f"**{verdict}**" if finding.verdict in ("reproduced", "opposite") else verdict,
        }
        if finding.bootstrap is not None:
            row["difference"] += f"; bootstrap [{_signed(finding.bootstrap[0])}, {_signed(finding.bootstrap[1])}]"
        rows.append(row)
    return pd.DataFrame(rows).set_index("claim")


def _count(finding: Finding) -> str:
    n = len(finding.paired.seeds) if finding.paired else 0
    return str(n) if n == finding.expected else f"{n} of {finding.expected}"


def short_table(families: list[Family], findings: list[Finding]) -> pd.DataFrame:
    """One row a claim of each family's first study: claim, measurement, verdict, and the verdicts of other seeds and other studies.

    Args:
        families: The claims.
        findings: From `judge_all`.

    Returns:
        Text, the claims as the index.
    """
    first = {claim: next(iter(family.studies)) for family in families for claim in family.claims}
    rows = []
    for finding in findings:
        if finding.study != first[finding.claim] or finding.round != "first":
            continue
        same = [other for other in findings if other.claim is finding.claim and other is not finding]
        others = [other for other in same if other.paired and other.study != "smoke"]
        row = {
            "finding": finding.claim.id,
            "claimed": finding.claim.claim,
            "study": finding.study,
            "metric": finding.claim.metric,
            "difference": _interval(finding.paired) if finding.paired else "",
            "n": _count(finding),
            "verdict": finding.verdict,
            "elsewhere": "; ".join(
                f"{other.round if other.study == finding.study else other.study}: {other.verdict} (n = {_count(other)})"
                for other in others
            ),
        }
        rows.append(row)
    columns = ["finding", "claimed", "study", "metric", "difference", "n", "verdict", "elsewhere"]
    table = pd.DataFrame(rows, columns=columns).set_index("finding").sort_index(kind="stable")
    return table if (table["elsewhere"] != "").any() else table.drop(columns="elsewhere")


def write_findings(folder: Path, out: Path, claims: str = "findings") -> tuple[pd.DataFrame, dict[str, str], list[Path]]:
    """Write summaries, ``table.md``, ``short.md``, ``table.csv``, ``studies.md``, ``figures/`` and ``findings.html``.

    Args:
        folder: Runs, or a folder that holds the summaries of runs.
        out: Where to.
        claims: The set of claims: ``findings`` or ``classic``.

    Returns:
        The table, the studies' regimes, and the figures' files.

    Raises:
        FileNotFoundError: There are neither runs nor summaries.
    """
    families = load_claims(claims_folder(claims))
    if not (folder / RUNS).is_file():
        names = {study for family in families for study in family.studies} | ({MAP_STUDY} if claims == "findings" else set())
        collect(folder, names).write(out)
        folder = out
    summaries = read_summaries(folder)
    findings = judge_all(families, summaries)
    if not findings:
        raise FileNotFoundError(f"{folder} holds no runs with the seeds that {claims_folder(claims)} declares")
    studies = study_tables(families, summaries)
    table, words = findings_table(findings, summaries), labels(families, summaries)
    figures = draw_findings(families, summaries, out / "figures")
    text = to_markdown(table) + "\n"
    text += "\nRegimes, from seeds that enter no verdict:\n\n" if words else ""
    text += "".join(f"- {study}: {label}\n" for study, label in words.items())
    text += "".join(
        f"- width {width}, {images:,} images: {name}, standard minus none {_interval(found)}, n = {len(found.seeds)}\n"
        for (width, images), (name, found) in regime_cells(summaries).items()
        if found is not None
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    (out / "studies.md").write_text("\n".join(f"## {name}\n\n{to_markdown(each)}\n" for name, each in studies.items()))
    (out / "short.md").write_text(to_markdown(short_table(families, findings)) + "\n")
    table.to_csv(out / "table.csv", lineterminator="\n")
    (out / "fingerprints.csv").write_text(_fingerprints(findings, figures))
    sections = [
        f"<p>{_HOW}</p>",
        html_table(table),
        "<h2>Regimes</h2>" + html_list([f"{study}: {label}" for study, label in words.items()]) if words else "",
        "<h2>Figures</h2>" + pictures(list(figures)),
    ]
    (out / "findings.html").write_text(html_page("Findings", sections))
    return table, words, list(figures)


_HOW = (
    "Paired differences by seed with 95% intervals (Student's t); p after Holm over the claims of a study. A claim is not resolved "
    "<em>from</em> the effect that would have been seen with a power of 80%; an equivalence that is not resolved would have been shown "
    "<em>within</em> that margin. Claims, windows and seeds were written down before the runs."
)


def study_tables(families: list[Family], summaries: Summaries) -> dict[str, pd.DataFrame]:
    """For each study its table of arms, and its table of paired differences; without the seeds that label its regime.

    Args:
        families: The claims, which name those seeds.
        summaries: The runs.

    Returns:
        Tables by heading.
    """
    tables = {}
    for study in sorted(set(summaries.runs["study"]) - {"smoke"}):
        runs = summaries.of(study)
        runs = runs[~runs["seed"].isin(label_seeds(families, study))]
        if runs.empty:
            continue
        tables[study] = summary_table(runs)
        differences_to_none = paired_table(runs)
        if not differences_to_none.empty:
            tables[f"{study}, paired"] = differences_to_none
    return tables


def _fingerprints(findings: list[Finding], figures: Mapping[Path, list[str]]) -> str:
    """What runs each verdict and each figure comes from."""
    lines = [f"{f.study} {f.round} {f.claim.id},{' '.join(f.fingerprints)}" for f in findings]
    lines += [f"figures/{path.name},{' '.join(prints)}" for path, prints in figures.items()]
    return "\n".join(["what,fingerprints", *lines]) + "\n"


def main() -> None:
    """Test every claim against a folder of runs, or against committed summaries."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-findings", description="Verdicts on the claims of conf/claims/, with table, figures and one HTML page."
    )
    parser.add_argument("folder", type=Path, help="runs, or a folder that holds runs.csv and history.csv.xz")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: the folder, if it holds summaries; else FOLDER/<claims>)"
    )
    parser.add_argument("--claims", choices=SETS, default="findings", help="which set of claims (default: findings)")
    arguments = parser.parse_args()
    out = arguments.out or (arguments.folder if (arguments.folder / RUNS).is_file() else arguments.folder / arguments.claims)
    try:
        table, words, _ = write_findings(arguments.folder, out, arguments.claims)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_colwidth", None):
        print(table.drop(columns=["compared", "metric"]).to_string())
    for study, label in words.items():
        print(f"{study}: {label}")
    print(f"\n{out / 'findings.html'}")


if __name__ == "__main__":
    main()
