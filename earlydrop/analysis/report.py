"""The report of a study: a table, figures, and one self-contained HTML page. ``earlydrop-report FOLDER`` draws it again at any time."""

from __future__ import annotations

import argparse
import base64
import html
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.figures import draw_all, interval
from earlydrop.analysis.runs import load_runs
from earlydrop.training.sweep import failures

COLUMNS = {  # column of load_runs: (heading, digits)
    "final/train_eval/loss": ("train_eval loss", 4),
    "final/test/accuracy": ("test accuracy", 4),
    "early/probe/gradient_norm": ("early gradient norm", 3),
    "early/probe/gdv": ("early GDV", 4),
    "early/probe/gde": ("early GDE", 4),
    "early/model/distance": ("early distance", 3),
    "seconds": ("seconds", 0),
}


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: mean over its finished runs, with the 95% interval where there are several.

    Args:
        runs: From `earlydrop.analysis.load_runs`.

    Returns:
        Text, the arms as the index.
    """
    rows = {}
    for arm, group in runs.groupby("arm", sort=True):
        done = group[group["state"] == "finished"]
        row = {"runs": f"{len(done)}" if len(done) == len(group) else f"{len(done)} of {len(group)}"}
        for column, (heading, digits) in COLUMNS.items():
            if column in runs:
                row[heading] = _number(done[column].dropna().to_numpy(float), digits)
        rows[str(arm)] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def _number(values: Any, digits: int) -> str:
    mean, half = interval(values)
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def problems(runs: pd.DataFrame, folder: Path) -> list[str]:
    """Runs that are not finished, and jobs that failed before they had a folder.

    Args:
        runs: From `earlydrop.analysis.load_runs`.
        folder: The study's folder.

    Returns:
        One line each.
    """
    lines = []
    for row in runs.itertuples():
        if row.state == "failed":
            lines.append(f"failed: {Path(str(row.folder)).name}: {row.reason}")
        elif row.state != "finished":
            lines.append(f"{row.state} at step {row.step} of {row.total_steps}: {Path(str(row.folder)).name}")
    known = "\n".join(lines)
    lines += [f"failed: {' '.join(f['overrides'])}: {f['reason']}" for f in failures(folder) if str(f["reason"]) not in known
              and not any(str(reason) in str(f["reason"]) for reason in runs["reason"].dropna())]  # fmt: skip
    return lines


def write_report(folder: Path) -> tuple[pd.DataFrame, list[str], list[Path]]:
    """Write ``table.md``, ``table.csv``, ``figures/*.png`` and ``report.html`` for a folder of runs.

    Args:
        folder: A study, or any folder with runs below it.

    Returns:
        The table, the problems, and the figures' files.
    """
    runs = load_runs(folder)
    table, trouble = summary_table(runs), problems(runs, folder)
    figures = draw_all(runs, folder / "figures")
    (folder / "table.md").write_text(to_markdown(table) + "".join(f"\n- {line}" for line in trouble) + "\n")
    table.to_csv(folder / "table.csv")
    (folder / "report.html").write_text(_page(folder, runs, table, trouble, figures))
    return table, trouble, figures


def to_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown.

    Args:
        table: Text cells.

    Returns:
        The lines.
    """
    rows = [
        [str(table.index.name or ""), *table.columns],
        *([str(i), *map(str, row)] for i, row in zip(table.index, table.to_numpy(), strict=True)),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:14px;display:block;overflow-x:auto}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}img{width:100%}
.trouble{background:#fff3e0;border-left:4px solid #d55e00;padding:.5rem 1rem}small{color:#666}code{background:#f3f3f3}
"""


def _page(folder: Path, runs: pd.DataFrame, table: pd.DataFrame, trouble: list[str], figures: list[Path]) -> str:
    def rows(cells: list[list[str]], tag: str) -> str:
        return "".join("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>" for row in cells)

    body = [list(map(str, (index, *row))) for index, row in zip(table.index, table.to_numpy(), strict=True)]
    pictures = "".join(
        f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">' for path in figures
    )
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in trouble)
    listed = [
        [str(r.arm), str(r.seed), str(r.state), f"{r.step} of {r.total_steps}", str(r.fingerprint)] for r in runs.itertuples()
    ]
    models, data = (", ".join(sorted(map(str, runs[f"config/{key}.name"].unique()))) for key in ("model", "data"))
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(folder.name)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(folder.name)}</h1><p>{len(runs)} runs of {html.escape(models)} on {html.escape(data)}. "
        "Mean over seeds, ± the half-width of its 95% interval (Student's t). <em>Early</em>: mean over the measurements in the first "
        "fifth of the run, without step 0.</p>"
        + (f"<div class='trouble'><ul>{notes}</ul></div>" if trouble else "")
        + f"<table>{rows([[str(table.index.name), *map(str, table.columns)]], 'th')}{rows(body, 'td')}</table>"
        f"<h2>Figures</h2><div class='figures'>{pictures}</div>"
        f"<h2>Runs</h2><table>{rows([['arm', 'seed', 'state', 'step', 'fingerprint']], 'th')}{rows(listed, 'td')}</table>"
        "<p><small>Made by <code>earlydrop-report</code>; every run's folder holds its configuration and provenance.</small></p></html>\n"
    )


def report_sweep(folder: Path) -> None:
    """What a sweep ends with: the report, printed and tracked. A sweep without any run prints its failures.

    Args:
        folder: The study's folder.
    """
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
    from earlydrop.training.run import config_from_dict
    from earlydrop.training.tracking import run_id, tracking

    runs = load_runs(folder)
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


def main() -> None:
    """Draw a folder's report again."""
    parser = argparse.ArgumentParser(prog="earlydrop-report", description="Table, figures and one HTML page from a folder of runs.")
    parser.add_argument("folder", type=Path, help="a study's folder, or any folder with runs below it, finished or not")
    arguments = parser.parse_args()
    try:
        table, trouble, figures = write_report(arguments.folder)
    except (FileNotFoundError, PermissionError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table.to_string())
    for line in trouble:
        print(line)
    print("\n" + "\n".join(map(str, [arguments.folder / "report.html", *figures])))
