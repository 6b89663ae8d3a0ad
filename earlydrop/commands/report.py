"""``earlydrop-report FOLDER``: a table, figures, and one self-contained HTML page from a folder of runs, at any time."""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.compare import paired_table, problems, summary_table
from earlydrop.analysis.page import html_list, html_page, html_table, pictures, to_markdown
from earlydrop.analysis.plots import draw_all
from earlydrop.analysis.runs import load_runs
from earlydrop.commands import command
from earlydrop.training.record.failures import failures


def write_report(folder: Path) -> tuple[pd.DataFrame, list[str], list[Path]]:
    """Write ``table.md``, ``table.csv``, ``figures/*.png`` and ``report.html``; return the table, the problems and the figures' files."""
    runs = load_runs(folder)
    if runs["study"].nunique() > 1:  # an arm's name means something within its study only
        runs["arm"] = runs["study"] + ": " + runs["arm"]
    table, trouble = summary_table(runs), problems(runs, folder)
    figures = draw_all(runs, folder / "figures")
    differences = paired_table(runs)
    tables = [table] if differences.empty else [table, differences]
    text = "\n\n".join(to_markdown(each) for each in tables)
    (folder / "table.md").write_text(text + "".join(f"\n- {line}" for line in trouble) + "\n", encoding="utf-8")
    table.to_csv(folder / "table.csv", encoding="utf-8")
    (folder / "report.html").write_text(_page(folder, runs, tables, trouble, figures), encoding="utf-8")
    return table, trouble, figures


def _page(folder: Path, runs: pd.DataFrame, tables: list[pd.DataFrame], trouble: list[str], figures: list[Path]) -> str:
    listed = pd.DataFrame(
        [(r.arm, r.seed, r.state, f"{r.step} of {r.total_steps}", r.fingerprint) for r in runs.itertuples()],
        columns=["arm", "seed", "state", "step", "fingerprint"],
    ).set_index("arm")
    models, data = (", ".join(sorted(map(str, runs[f"config/{key}.name"].unique()))) for key in ("model", "data"))
    sections = [
        f"<p>{len(runs)} runs of {html.escape(models)} on {html.escape(data)}. Mean over seeds, ± the half-width of its 95% interval "
        "(Student's t). <em>Early</em>: mean over the measurements in the first fifth of the run, without step 0.</p>",
        f"<div class='trouble'>{html_list(trouble)}</div>" if trouble else "",
        html_table(tables[0]),
        *(f"<h2>Paired differences, seed by seed</h2>{html_table(table)}" for table in tables[1:]),
        f"<h2>Figures</h2>{pictures(figures)}<h2>Runs</h2>{html_table(listed)}",
        "<p><small>Made by <code>earlydrop-report</code>; every run's folder holds its configuration and provenance.</small></p>",
    ]
    return html_page(folder.name, sections)


def report_sweep(folder: Path) -> None:
    """What a sweep ends with: the study's report, printed and tracked. A sweep without any run prints its failures."""
    try:
        table, trouble, figures = write_report(folder)
    except FileNotFoundError:
        for failure in failures(folder):
            print(f"failed: {' '.join(failure['overrides'])}: {failure['reason']}")
        return
    print("\n" + table.to_string())
    for line in trouble:
        print(line)
    print(f"\n{folder / 'report.html'}\n" + "\n".join(map(str, figures)))
    _track(folder, table, figures)


def _track(folder: Path, table: pd.DataFrame, figures: list[Path]) -> None:
    """A summary run on the dashboard, with the figures and the page as media; as the study's runs were tracked."""
    from earlydrop.training.compose import config_from_dict
    from earlydrop.training.record.tracking import run_id, tracking

    runs = load_runs(folder)
    if runs["study"].nunique() > 1:  # an arm's name means something within its study only
        runs["arm"] = runs["study"] + ": " + runs["arm"]
    values: dict[str, Any] = {}
    for key, value in runs.iloc[-1].items():
        if str(key) in ("config/tracking", "config/project", "config/study"):
            values[str(key).removeprefix("config/")] = value
    config = config_from_dict(values)
    identity = run_id(config.study, "report")
    with tracking(
        config, folder=folder, name=f"{config.study} report", identity=identity, job_type="report", tags=["report"], extra={}
    ) as (tracker, run):  # fmt: skip
        if run is None:
            return
        import wandb

        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        run.log({"report": wandb.Html(str(folder / "report.html"), inject=False)})
        tracker.summarise({"table": json.loads(table.to_json(orient="index"))})


@command
def main() -> None:
    """Draw a folder's report again."""
    parser = argparse.ArgumentParser(prog="earlydrop-report", description="Table, figures and one HTML page from a folder of runs.")
    parser.add_argument("folder", type=Path, help="a study's folder, or any folder with runs below it, finished or not")
    arguments = parser.parse_args()
    table, trouble, figures = write_report(arguments.folder)
    print(table.to_string())
    for line in trouble:
        print(line)
    print("\n" + "\n".join(map(str, [arguments.folder / "report.html", *figures])))


if __name__ == "__main__":
    main()
