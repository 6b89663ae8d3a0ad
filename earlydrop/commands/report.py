"""``earlydrop-report FOLDER``: a table, figures, and one self-contained HTML page from a folder of runs, at any time."""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from earlydrop.analysis.compare import differences, paired_table, problems, summary_table
from earlydrop.analysis.page import html_list, html_page, html_table, pictures, to_markdown
from earlydrop.analysis.plots import draw_all, draw_differences
from earlydrop.analysis.runs import load_history, load_runs
from earlydrop.claims.shown import shown
from earlydrop.commands import command
from earlydrop.training.record.failures import failure_lines, failures


class Report(NamedTuple):
    """What was written of a folder: its table, the problems, the figures' files; and the runs and what they show of the claims."""

    table: pd.DataFrame
    trouble: list[str]
    figures: list[Path]
    runs: pd.DataFrame
    lines: list[str]


def write_report(folder: Path) -> Report:
    """Write ``table.md``, ``table.csv``, ``figures/*.png`` and ``report.html``."""
    runs = load_runs(folder)
    lines = what_it_shows(runs)
    if runs["study"].nunique() > 1:  # an arm's name means something within its study only
        runs["arm"] = runs["study"] + ": " + runs["arm"]
    table, trouble = summary_table(runs), problems(runs, folder)
    figures = draw_all(runs, folder / "figures")
    points = differences(runs)
    if points:
        figures.insert(0, folder / "figures" / "differences.png")
        draw_differences(points, figures[0])
    paired = paired_table(runs)
    tables = [table] if paired.empty else [table, paired]
    text = "\n\n".join(to_markdown(each) for each in tables)
    text += "".join(f"\n- {line}" for line in [*trouble, *lines])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    table.to_csv(folder / "table.csv", encoding="utf-8")
    (folder / "report.html").write_text(_page(folder, runs, tables, trouble, figures, lines), encoding="utf-8")
    return Report(table, trouble, figures, runs, lines)


def what_it_shows(runs: pd.DataFrame) -> list[str]:
    """What the runs say of the claims that are declared for their studies; nothing where none are, or where they cannot be told apart."""
    try:
        return shown(runs.assign(history=[load_history(folder) for folder in runs["folder"]]))
    except ValueError as error:
        return [f"claims: {error}"]


def _page(
    folder: Path, runs: pd.DataFrame, tables: list[pd.DataFrame], trouble: list[str], figures: list[Path], lines: list[str]
) -> str:
    """Differences first, as points; then curves, tables, and the single runs, folded."""
    listed = pd.DataFrame(
        [(r.arm, r.seed, r.state, f"{r.step} of {r.total_steps}", r.fingerprint) for r in runs.itertuples()],
        columns=["arm", "seed", "state", "step", "fingerprint"],
    ).set_index("arm")
    models, data = (", ".join(sorted(map(str, runs[f"config/{key}.name"].unique()))) for key in ("model", "data"))
    points = [path for path in figures if path.stem == "differences"]
    sections = [
        f"<p>{len(runs)} runs of {html.escape(models)} on {html.escape(data)}: {runs['arm'].nunique()} arms, "
        f"{runs['seed'].nunique()} seeds.</p>",
        f"<div class='trouble'>{html_list(trouble)}</div>" if trouble else "",
        "<h2>Each arm minus the arm without dropout, seed by seed</h2><p>Points are means over seeds, bars their 95% intervals "
        f"(Student's t). <em>Early</em>: the mean over the first fifth of the run.</p>{pictures(points)}"
        if points
        else "",
        f"<h2>What this shows</h2>{html_list(lines)}" if lines else "",
        f"<h2>Figures</h2>{pictures([path for path in figures if path not in points])}",
        f"<h2>Arms</h2><p>Means over seeds, ± the half-width of their 95% intervals.</p>{html_table(tables[0])}",
        *(f"<h2>Paired differences in numbers</h2>{html_table(table)}" for table in tables[1:]),
        f"<details><summary>{len(runs)} runs</summary>{html_table(listed)}</details>",
        "<p><small>Made by <code>earlydrop-report</code>; every run's folder holds its configuration and provenance.</small></p>",
    ]
    return html_page(folder.name, sections)


def report_sweep(folder: Path) -> None:
    """What a sweep ends with: the study's report, printed and tracked. A sweep without any run prints its failures."""
    try:
        report = write_report(folder)
    except FileNotFoundError:
        for line in failure_lines(failures(folder)):
            print(line)
        return
    print("\n" + report.table.to_string())
    for line in report.trouble:
        print(line)
    if report.lines:
        print("\nWhat this shows:\n" + "\n".join(report.lines))
    print(f"\n{folder / 'report.html'}\n" + "\n".join(map(str, report.figures)))
    print(f"\nnext:  open {folder / 'report.html'}   and   earlydrop-cite {folder}")
    _track(folder, report)


def _track(folder: Path, report: Report) -> None:
    """A summary run on the dashboard, with the figures and the page as media; as the study's runs were tracked."""
    from earlydrop.training.compose import config_from_dict
    from earlydrop.training.record.tracking import run_id, tracking

    last = report.runs.iloc[-1]
    if last["config/tracking.backend"] != "wandb":  # the page is a file, which the others have no place for
        return
    config = config_from_dict({key: last[f"config/{key}"] for key in ("project", "study")})
    config.tracking.mode = last["config/tracking.mode"]
    identity = run_id(config.study, "report")
    with tracking(
        config, folder=folder, name=f"{config.study} report", identity=identity, job_type="report", tags=["report"], extra={}
    ) as (tracker, run):  # fmt: skip
        if run is None:
            return
        import wandb

        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in report.figures})
        run.log({"report": wandb.Html(str(folder / "report.html"), inject=False)})
        tracker.summarise({"table": json.loads(report.table.to_json(orient="index"))})


@command
def main() -> None:
    """Draw a folder's report again."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-report", allow_abbrev=False, description="Table, figures and one HTML page from a folder of runs."
    )
    parser.add_argument("folder", type=Path, help="a study's folder, or any folder with runs below it, finished or not")
    arguments = parser.parse_args()
    report = write_report(arguments.folder)
    print(report.table.to_string())
    for line in report.trouble:
        print(line)
    print("\n" + "\n".join(map(str, [arguments.folder / "report.html", *report.figures])))


if __name__ == "__main__":
    main()
