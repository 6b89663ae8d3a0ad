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
from earlydrop.analysis.runs import load_runs, tell_apart
from earlydrop.training.sweep import failures

COLUMNS = {  # column of load_runs: (heading, digits)
    "final/train_eval/loss": ("train_eval loss", 4),
    "final/test/accuracy": ("test accuracy", 4),
    "early/probe/gradient_norm": ("early gradient norm", 3),
    "early/probe/gdv": ("early GDV", 4),
    "early/probe/gde": ("early GDE", 4),
    "early/model/distance": ("early distance", 3),
    "final/test_mc/loss": ("Monte Carlo NLL", 4),
    "final/test_mc/accuracy": ("Monte Carlo accuracy", 4),
    "final/test_mc/ece": ("Monte Carlo ECE", 4),
    "final/test/ece": ("test ECE", 4),
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
            if column in runs and runs[column].notna().any():
                row[heading] = _number(done.groupby("seed")[column].mean().dropna().to_numpy(float), digits)  # a seed counts once
        rows[str(arm)] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def paired_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Every arm minus the arm without dropout that shares its other settings, seed by seed.

    Args:
        runs: From `earlydrop.analysis.runs.tell_apart`.

    Returns:
        One row an arm with two or more common seeds: mean difference ± the half-width of its 95% interval. Empty if there is none.
    """
    rows = {}
    done = runs[runs["state"] == "finished"]
    for arm, group in done.groupby("arm", sort=True):
        settings = group["settings"].iloc[0] if "settings" in group else ""
        base = done[done["arm"] == (f"none · {settings}" if settings else "none")]
        if str(arm).partition(" · ")[0] == "none" or group["seed"].duplicated().any() or base["seed"].duplicated().any():
            continue
        joined = group.merge(base, on="seed", suffixes=("", "|none"))
        if len(joined) > 1:
            rows[f"{arm} minus none"] = {"seeds": str(len(joined))} | {
                heading: _number((joined[column] - joined[f"{column}|none"]).to_numpy(float), digits, sign="+")
                for column, (heading, digits) in COLUMNS.items()
                if column in runs and runs[column].notna().any() and column != "seconds"
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arms")


def _number(values: Any, digits: int, sign: str = "") -> str:
    mean, half = interval(values)
    if math.isnan(mean):
        return "-"
    text = f"{mean:{sign}.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


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
    runs = tell_apart(load_runs(folder))
    table, trouble = summary_table(runs), problems(runs, folder)
    figures = draw_all(runs, folder / "figures")
    differences = paired_table(runs)
    tables = [table] if differences.empty else [table, differences]
    text = "\n\n".join(to_markdown(each) for each in tables)
    (folder / "table.md").write_text(text + "".join(f"\n- {line}" for line in trouble) + "\n")
    table.to_csv(folder / "table.csv")
    (folder / "report.html").write_text(_page(folder, runs, tables, trouble, figures))
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


def html_table(table: pd.DataFrame) -> str:
    """A table in HTML.

    Args:
        table: Text cells.

    Returns:
        The element.
    """

    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [list(map(str, (index, *cells))) for index, cells in zip(table.index, table.to_numpy(), strict=True)]
    head = row([str(table.index.name or ""), *map(str, table.columns)], "th")
    return f"<table>{head}{''.join(row(cells, 'td') for cells in body)}</table>"


def html_list(lines: list[str]) -> str:
    """A list in HTML.

    Args:
        lines: Text.

    Returns:
        The element.
    """
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def pictures(figures: list[Path]) -> str:
    """Figures as elements that hold their own data.

    Args:
        figures: PNG files.

    Returns:
        The elements.
    """
    elements = (
        f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">' for path in figures
    )
    return f"<div class='figures'>{''.join(elements)}</div>"


def html_page(title: str, sections: list[str]) -> str:
    """One self-contained page.

    Args:
        title: Its heading.
        sections: HTML.

    Returns:
        The page.
    """
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}</html>\n"
    )


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
