"""The figures of the findings: curves over seeds, differences along an axis, and the regime map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.analysis.compare import differences_by_seed
from earlydrop.analysis.curves import common_value
from earlydrop.analysis.plots import draw_axis, draw_metric, model_and_data, what_was_run
from earlydrop.analysis.runs import runs_of
from earlydrop.analysis.stats import Paired, paired
from earlydrop.claims.answer import points
from earlydrop.claims.answer_figure import draw_points
from earlydrop.claims.declare import SMOKE, Declaration, Study, label_seeds
from earlydrop.claims.gain_figure import draw_gain
from earlydrop.claims.map_figures import draw_maps
from earlydrop.claims.sensitivity_figure import draw_sensitivity
from earlydrop.claims.summaries import Summaries
from earlydrop.claims.verdict import Verdict
from earlydrop.metrics import METRICS
from earlydrop.training.data.published import known_classes


class _Axis(NamedTuple):
    """A key along which arms of a study are compared with their arms without dropout.

    Attributes:
        key: The key.
        label: Its name in the figure, with its unit.
        schedule: The schedule of the arms.
        metric: The metric whose final value is compared.
        title: The title of the figure.
    """

    key: str
    label: str
    schedule: str
    metric: str
    title: str


_LOSS = ("train_eval/loss", "final training loss, early minus none")
_ACCURACY = ("test/accuracy", "test accuracy, dropout minus none")
# The figures of a study are not part of a claim. So the studies below are named here and not in
# conf/claims/.
_AXES = {
    "underfitting": (
        _Axis("schedule.cutoff", "cutoff (% of training)", "early", *_LOSS),
        _Axis("schedule.rate", "rate", "early", *_LOSS),
    ),
    "classic-images": (_Axis("data.train_images", "training images", "constant", *_ACCURACY),),
    "classic-rates": (_Axis("schedule.rate", "rate", "constant", *_ACCURACY),),
}
_EARLY = {
    "schedule.rate": 0.1,
    "schedule.cutoff": "20%",
    "schedule.shape": None,
    "schedule.kind": "unit",
}
"""The settings of the early arms of an axis, except for the key of the axis."""

_MOST_ARMS = 12
"""More curves in one figure cannot be told apart."""


def _subtitle(study: str, runs: pd.DataFrame) -> str:
    """What was run, such as "text: gpt_micro on text, n = 20 seeds"."""
    return f"{study}: {what_was_run(runs)}"


def _shared(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the seeds that every arm has, so that lines can be compared; else all runs."""
    seeds = set.intersection(*(set(rows) for _, rows in runs.groupby("arm")["seed"]))
    return runs[runs["seed"].isin(seeds)] if seeds else runs


def _drawn_runs(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs to draw.

    With more than `_MOST_ARMS` arms, they are those that differ from the study by their schedule
    alone, if there are two such arms; otherwise all.
    """
    if runs["arm"].nunique() <= _MOST_ARMS:
        return runs
    base = study.arm({"schedule.name": "none"}).base
    alike = runs_of(runs, lambda arm: arm.base == base)
    return alike if alike["arm"].nunique() > 1 else runs


def draw_findings(
    declarations: list[Declaration],
    summaries: Summaries,
    folder: Path,
) -> dict[Path, list[str]]:
    """Draw every figure that the runs have values for.

    The figures of a study leave out the seeds that label its regime. Its curves use the seeds that
    all drawn arms have; if the arms share none, they use all. Maps use all finished runs.

    Returns:
        The files, with the fingerprints of the runs in each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, list[str]] = {}
    for study in _studies(declarations):
        runs = summaries.of(study.name)
        labels = label_seeds(declarations, study.name)
        runs = runs[(runs["state"] == "finished") & ~runs["seed"].isin(labels)]
        if not runs.empty:
            runs = _drawn_runs(runs, study)
            files |= _draw_curves(study.name, _shared(runs), folder)
            files |= _draw_axes(study, runs, folder)
    for declaration in declarations:
        path = folder / f"{declaration.name.replace('_', '-')}-sensitivity.png"
        fingerprints = draw_sensitivity(declaration, summaries, path)
        if fingerprints:
            files[path] = fingerprints
    return files | draw_maps(summaries, folder, _subtitle)


def _studies(declarations: list[Declaration]) -> list[Study]:
    """The studies that are drawn, each as the first file declares it."""
    studies: dict[str, Study] = {}
    for declaration in declarations:
        for name, study in declaration.studies.items():
            if name != SMOKE:
                studies.setdefault(name, study)
    return list(studies.values())


def draw_answer(
    declarations: list[Declaration],
    verdicts: list[Verdict],
    folder: Path,
) -> dict[Path, list[str]]:
    """Draw the figure of the answer and the figure of the gain of early dropout.

    The answer shows the difference of each claim, in multiples of its smallest effect that matters.

    Returns:
        The files, with the fingerprints of the runs in each. Empty if no claim with the direction
        lower or higher has a measured difference.
    """
    drawn = points(declarations, verdicts)
    if not drawn:
        return {}
    path = folder / "answer.png"
    draw_points(drawn, path)
    fingerprints: set[str] = set()
    for point in drawn:
        fingerprints.update(point.fingerprints)
    files = {path: sorted(fingerprints)}
    gain = folder / "early-gain.png"
    behind_gain = draw_gain(declarations, verdicts, gain)
    if behind_gain:
        files[gain] = behind_gain
    return files


def _draw_axes(study: Study, runs: pd.DataFrame, folder: Path) -> dict[Path, list[str]]:
    """Draw the differences of a study along its axes, where there are two points or more.

    Returns:
        The files, with the fingerprints of the runs in each.
    """
    files = {}
    base = study.arm({"schedule.name": "none"}).base
    for axis in _AXES.get(study.name, ()):
        differences, fingerprints = _along(axis, runs, base)
        if len(differences) > 1:
            quantity = axis.metric.rpartition("/")[2]
            name = axis.label.partition(" (")[0].replace(" ", "-")
            path = folder / f"{study.name}-{quantity}-by-{name}.png"
            subtitle = _seeds(study.name, runs, differences)
            draw_axis(differences, axis.label, axis.title, path, subtitle)
            files[path] = fingerprints
    return files


def _draw_curves(study: str, runs: pd.DataFrame, folder: Path) -> dict[Path, list[str]]:
    """Draw each metric that was measured at two steps or more.

    Returns:
        The files, with the fingerprints of the runs in each.
    """
    files = {}
    subtitle, fingerprints = _subtitle(study, runs), sorted(runs["fingerprint"])
    history = pd.concat(list(runs["history"]), ignore_index=True)
    schedules = runs["config/schedule.name"].nunique()
    classes = common_value(runs["config/data.name"].map(known_classes))
    for metric, known in METRICS.items():
        if not known.claimed or metric not in history:
            continue
        count = history["step"][history[metric].notna()].nunique()
        # With two schedules or fewer the names of the arms are enough to know the rates.
        needless = metric == "dropout/unit_rate" and schedules <= 2
        if count >= 2 and not needless:
            path = folder / f"{study}-{metric.replace('/', '-')}.png"
            draw_metric(history, metric, path=path, title=subtitle, classes=classes)
            files[path] = fingerprints
    return files


def _along(axis: _Axis, runs: pd.DataFrame, base: object) -> tuple[dict[float, Paired], list[str]]:
    """The differences along an axis, by its values.

    Each arm is compared with the arm without dropout that shares its other settings.

    Args:
        axis: The axis.
        runs: The runs of a study.
        base: The study's own settings without dropout.

    Returns:
        The differences, and the fingerprints of the runs behind them.
    """
    differences: dict[float, Paired] = {}
    used: set[str] = set()
    column = f"final/{axis.metric}"
    for name, rows in runs.groupby("arm"):
        arm: Arm = rows["settings"].iloc[0]
        if column not in runs or not _is_on(axis, arm, base):
            continue
        by_seed = differences_by_seed(runs, str(name), column)
        difference = paired(by_seed)
        if difference is not None:
            differences[float(str(arm.get(axis.key)).removesuffix("%"))] = difference
            sides = runs[
                [settings.values in (arm.values, arm.base) for settings in runs["settings"]]
            ]
            used.update(sides["fingerprint"][sides["seed"].isin(by_seed)])
    return dict(sorted(differences.items())), sorted(used)


def _is_on(axis: _Axis, arm: Arm, base: object) -> bool:
    """Whether an arm is a point of an axis.

    Early arms must have the settings of their study and of `_EARLY`, and a cutoff in percent.
    """
    if arm.get("schedule.name") != axis.schedule:
        return False
    if axis.schedule != "early":
        return True
    others = {key: value for key, value in _EARLY.items() if key != axis.key}
    is_alike = all(arm.get(key) == value for key, value in others.items())
    return arm.base == base and is_alike and str(arm.get("schedule.cutoff")).endswith("%")


def _seeds(study: str, runs: pd.DataFrame, differences: Mapping[float, Paired]) -> str:
    """The line below the title of a figure along an axis, with the seeds of its points."""
    counts = sorted({len(difference.seeds) for difference in differences.values()})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{study}: {model_and_data(runs)}, n = {seeds} seeds"
