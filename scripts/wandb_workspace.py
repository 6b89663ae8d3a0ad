"""The dashboard as code: a W&B workspace and a report for a study, built with wandb-workspaces.

    pip install wandb-workspaces
    python scripts/wandb_workspace.py --entity NAME          print both as JSON, without a network
    python scripts/wandb_workspace.py --entity NAME --save   save them on the server

Panels: losses and accuracy, drop rates and learning rate, gradient measures, speed and memory,
against the training step. Runs are grouped by arm. A line is the mean over seeds, a band their
standard deviation.
"""

from __future__ import annotations

import argparse
import json

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ModuleNotFoundError as error:  # the trainer does without it, and --help too
    MISSING: str | None = str(error.name).partition(".")[0]
else:
    MISSING = None

STEP = "trainer/step"
SECTIONS = {
    "Loss and accuracy": {
        "Training loss (evaluation mode)": ["train_eval/loss"],
        "Training loss (running)": ["train/loss"],
        "Test accuracy": ["test/accuracy"],
    },
    "Schedule": {
        "Drop rates": ["dropout/unit_rate", "dropout/path_rate"],
        "Learning rate": ["train/lr"],
    },
    "Gradients": {
        "Gradient norm": ["probe/gradient_norm"],
        "Model distance": ["model/distance"],
        "Gradient direction variance": ["probe/gdv"],
        "Gradient direction error": ["probe/gde"],
        "Gradient noise scale (images)": ["probe/noise_scale"],
    },
    "Speed": {
        "Images per second": ["timing/images_per_second"],
        "Share of time waiting for data": ["timing/data_wait"],
        "Model FLOP utilisation": ["timing/mfu"],
        "Peak memory (bytes)": ["timing/peak_memory"],
    },
}


def panels(section: str) -> list[wr.LinePlot]:
    """The line plots of one section: means over the seeds of an arm, with their spread."""
    return [
        wr.LinePlot(
            title=title,
            x=STEP,
            y=metrics,
            groupby=wr.Config("arm"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for title, metrics in SECTIONS[section].items()
    ]


def workspace(entity: str, project: str, study: str) -> ws.Workspace:
    """The workspace of a study."""
    sections = [ws.Section(name=name, panels=panels(name), is_open=True) for name in SECTIONS]
    runs = ws.RunsetSettings(
        groupby=[ws.Config("arm")],
        filters=[ws.Metric("Group") == study, ws.Metric("JobType") == "train"],
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"earlydrop: {study}",
        sections=sections,
        runset_settings=runs,
    )


def report(entity: str, project: str, study: str) -> wr.Report:
    """A report of a study: what to look for, and the panels."""
    # without entity and project a run set is of the report's own project, and needs no look-up
    runset = wr.Runset(name=study, groupby=["config.arm"], filters=f"Metric('Group') == '{study}'")
    text = (
        "Runs differ in their dropout schedule alone: initial weights, batches and augmentation "
        "are the same for a seed. "
        "One seed decides nothing; compare arms over several."
    )
    blocks: list[object] = [wr.TableOfContents(), wr.P(text)]
    for name in SECTIONS:
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runset], panels=panels(name))]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"earlydrop: {study}",
        description="Dropout schedules compared.",
        blocks=blocks,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", required=True, help="your W&B user or team")
    parser.add_argument("--project", default="earlydrop")
    parser.add_argument("--study", default="quickstart")
    parser.add_argument(
        "--save", action="store_true", help="save them on the server instead of printing them"
    )
    arguments = parser.parse_args()
    if MISSING is not None:
        parser.exit(1, f"error: {MISSING} is missing: pip install wandb-workspaces\n")
    made = [
        make(arguments.entity, arguments.project, arguments.study) for make in (workspace, report)
    ]
    if arguments.save:
        for page in made:
            page.save()
            print(page.url)
        return
    print(
        json.dumps(
            [
                json.loads(page._to_model().model_dump_json(by_alias=True, exclude_none=True))
                for page in made
            ],
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
