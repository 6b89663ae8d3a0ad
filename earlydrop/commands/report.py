"""``earlydrop-report FOLDER``: table, figures and one HTML page from a folder of runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from earlydrop.analysis.compare import differences, paired_table, problems, summary_table
from earlydrop.analysis.curves import FIGURES
from earlydrop.analysis.facts import arms_table, facts, run_rows
from earlydrop.analysis.page import report_page, to_markdown
from earlydrop.analysis.plots import Drawing, drawings, what_was_run
from earlydrop.analysis.points import (
    differences_by_metric,
    draw_differences,
    points_figure,
    words_of_heading,
)
from earlydrop.analysis.runs import load_history, load_runs
from earlydrop.analysis.sentences import answer, in_numbers
from earlydrop.analysis.stats import Paired
from earlydrop.analysis.svg import curves_as_html, points_as_html
from earlydrop.claims.shown import shown
from earlydrop.commands import command
from earlydrop.training.record.failures import failure_lines, failures

_MOST_POINTS = 16_000
"""Points of all lines of a page together."""


class Report(NamedTuple):
    """The content of a report.

    Attributes:
        table: One row per arm.
        trouble: A line for each run that is not finished or cannot be read.
        figures: The files of the figures.
        runs: The runs.
        lines: The verdicts on the claims about the studies of these runs.
    """

    table: pd.DataFrame
    trouble: list[str]
    figures: list[Path]
    runs: pd.DataFrame
    lines: list[str]


def write_report(folder: Path) -> Report:
    """Write ``table.md``, ``table.csv``, ``figures/*.png`` and ``report.html``.

    Args:
        folder: A folder with runs below it. The files are written into this folder.

    Returns:
        The content of the report.

    Raises:
        FileNotFoundError: The folder holds no runs.
    """
    runs = load_runs(folder)
    lines = what_it_shows(runs)
    if runs["study"].nunique() > 1:  # an arm's name means something within its study only
        runs["arm"] = runs["study"] + ": " + runs["arm"]
    table, trouble = summary_table(runs), problems(runs, folder)
    drawn, found = drawings(runs, _points_a_line(runs)), differences(runs)
    figures = _save(folder / "figures", runs, drawn, found)
    paired = paired_table(runs)
    tables = [table] if paired.empty else [table, paired]
    text = "\n\n".join(map(to_markdown, tables))
    text += "".join(f"\n- {line}" for line in [*trouble, *lines])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    table.to_csv(folder / "table.csv", encoding="utf-8")
    page = report_page(
        title=folder.resolve().name,
        answer=answer(runs, found),
        facts=facts(runs, folder),
        trouble=trouble,
        lines=lines,
        points=_points(runs, found),
        figures=[Markup(curves_as_html(drawing)) for drawing in drawn],
        arms=arms_table(runs),
        paired=None if paired.empty else paired,
        rows=run_rows(runs, folder),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return Report(table, trouble, figures, runs, lines)


def what_it_shows(runs: pd.DataFrame) -> list[str]:
    """The verdicts on the claims that are declared for the studies of these runs, as lines.

    Empty if no claim is declared. If the claims cannot be judged, the one line gives the error.
    """
    try:
        histories = [load_history(folder) for folder in runs["folder"]]
        return shown(runs.assign(history=histories))
    except ValueError as error:
        return [f"claims: {error}"]


def _points_a_line(runs: pd.DataFrame) -> int:
    """Points of a line, so that a page with many arms stays below 2 MB."""
    lines = len(set(runs["arm"])) * 2 * len(FIGURES)
    return min(max(_MOST_POINTS // lines, 40), 400)


def _save(
    folder: Path,
    runs: pd.DataFrame,
    drawn: list[Drawing],
    found: Mapping[str, Mapping[str, Paired]],
) -> list[Path]:
    """Write the figures as PNG files, the differences first."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [drawing.save(folder) for drawing in drawn]
    if found:
        files.insert(0, folder / "differences.png")
        draw_differences(found, files[0], what_was_run(runs))
    return files


def _points(runs: pd.DataFrame, found: Mapping[str, Mapping[str, Paired]]) -> list[Markup]:
    """The paired differences as parts of the page, one figure per metric."""
    figures = []
    for number, (heading, points) in enumerate(differences_by_metric(found).items()):
        figure = points_figure(
            {heading: points},
            list(found),
            title=words_of_heading(heading),
            subtitle=what_was_run(runs),
        )
        numbers = in_numbers(found, heading)
        words = {f"point-{row}": numbers[arm] for row, arm in enumerate(points)}
        figures.append(Markup(points_as_html(figure, f"points{number}", words)))
    return figures


def report_sweep(folder: Path) -> None:
    """Write the report of a sweep's study, print it and track it.

    If no run began, the failures are printed instead.

    Args:
        folder: The study's folder.
    """
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
    """Track the figures and the page as a run of their own, as the study's runs were tracked."""
    from earlydrop.training.compose import config_from_dict
    from earlydrop.training.record.trackers import Opened
    from earlydrop.training.record.tracking import run_id, tracking

    last = report.runs.iloc[-1]
    if last["config/tracking.backend"] != "wandb":  # the other backends take no files
        return
    config = config_from_dict({key: last[f"config/{key}"] for key in ("project", "study")})
    config.tracking.mode = last["config/tracking.mode"]
    identity = run_id(config.study, "report")
    opened = Opened(
        config=config,
        folder=folder,
        name=f"{config.study} report",
        identity=identity,
        job_type="report",
        tags=["report"],
        extra={},
    )
    with tracking(opened) as (tracker, run):
        if run is None:
            return
        import wandb

        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in report.figures})
        run.log({"report": wandb.Html(str(folder / "report.html"), inject=False)})
        tracker.summarise({"table": json.loads(report.table.to_json(orient="index"))})


@command
def main() -> None:
    """Write a folder's report."""
    parser = argparse.ArgumentParser(
        prog="earlydrop-report",
        allow_abbrev=False,
        description="Table, figures and one HTML page from a folder of runs.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        help="a study's folder, or any folder with runs below it, finished or not",
    )
    arguments = parser.parse_args()
    report = write_report(arguments.folder)
    print(report.table.to_string())
    for line in report.trouble:
        print(line)
    print("\n" + "\n".join(map(str, [arguments.folder / "report.html", *report.figures])))


if __name__ == "__main__":
    main()
