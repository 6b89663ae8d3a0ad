"""The figures of the findings: curves over seeds, differences along an axis, and the regime map."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.analysis.curves import common_value
from earlydrop.analysis.plots import draw_axis, draw_metric
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

# The figures of a study are not part of a claim. So the studies below are named here and not in
# conf/claims/.
_AXIS_STUDY = "underfitting"
"""The study in which early dropout varies along the keys of `_AXES`, one at a time."""
_AXES = {"cutoff": "schedule.cutoff", "rate": "schedule.rate"}
_EARLY = {
    "schedule.rate": 0.1,
    "schedule.cutoff": "20%",
    "schedule.shape": None,
    "schedule.kind": "unit",
}
"""The settings of early dropout in that study, other than the key that varies."""

_COMPARED_ALONG = {
    "classic-images": ("config/data.train_images", "training images"),
    "classic-rates": ("config/schedule.rate", "rate"),
}
"""By study, the column along which constant dropout is compared with none, and its name."""

_MOST_ARMS = 12
"""More curves in one figure cannot be told apart."""


def _title(study: str, runs: pd.DataFrame, mark: str = "line") -> str:
    """The title of a figure, such as "text: gpt_micro on text, 20 seeds per line".

    ``mark`` is the last word: the part of the figure that has n seeds, a line or a cell.
    """
    models = ", ".join(sorted(set(map(str, runs["config/model.name"]))))
    data = ", ".join(sorted(set(map(str, runs["config/data.name"]))))
    seeds = runs.groupby("arm")["seed"].nunique().max()
    return f"{study}: {models} on {data}, {seeds} seeds per {mark}"


def _shared(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the seeds that every arm has, so that lines can be compared; else all runs."""
    seeds = set.intersection(*(set(rows) for _, rows in runs.groupby("arm")["seed"]))
    return runs[runs["seed"].isin(seeds)] if seeds else runs


def _of_the_study(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs to draw: all, or, if there are too many arms, those that differ only by schedule."""
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

    The figures of a study use the seeds that all its arms have, or all seeds if they share none,
    without those that label its regime. Maps use all finished runs.

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
            runs = _shared(_of_the_study(runs, study))
            drawn = _draw_study(study.name, runs, folder)
            files |= dict.fromkeys(drawn, sorted(runs["fingerprint"]))
    for declaration in declarations:
        path = folder / f"{declaration.name.replace('_', '-')}-sensitivity.png"
        fingerprints = draw_sensitivity(declaration, summaries, path)
        if fingerprints:
            files[path] = fingerprints
    return files | draw_maps(summaries, folder, lambda study, runs: _title(study, runs, "cell"))


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

    The answer shows the difference that decides each claim, in units of its smallest effect that
    matters.

    Returns:
        The files, with the fingerprints of the runs in each. Empty if no claim that an arm is lower
        or higher has a difference.
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


def _draw_study(study: str, runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the curves of a study, and its differences along the axes that it has."""
    title = _title(study, runs)
    files = _draw_curves(study, runs, folder, title)
    if study == _AXIS_STUDY:
        for axis, key in _AXES.items():
            differences = _effect_by_key(runs, key)
            if len(differences) > 1:
                path = folder / f"{study}-loss-by-{axis}.png"
                horizontal = "cutoff (% of training)" if axis == "cutoff" else axis
                vertical = "final training loss, early minus none"
                draw_axis(differences, horizontal, vertical, path, title)
                files.append(path)
    if study in _COMPARED_ALONG:
        column, name = _COMPARED_ALONG[study]
        differences = _along_column(runs, column)
        if differences:
            path = folder / f"{study}-accuracy-by-{name.replace(' ', '-')}.png"
            draw_axis(differences, name, "test accuracy, dropout minus none", path, title)
            files.append(path)
    return files


def _draw_curves(study: str, runs: pd.DataFrame, folder: Path, title: str) -> list[Path]:
    """Draw each metric that was measured at two steps or more."""
    files = []
    history = pd.concat(list(runs["history"]), ignore_index=True)
    schedules = runs["config/schedule.name"].nunique()
    classes = common_value(runs["config/data.name"].map(known_classes))
    for metric, known in METRICS.items():
        if not known.claimed or metric not in history:
            continue
        steps = history["step"][history[metric].notna()].nunique()
        # With two schedules or fewer the names of the arms say the rates.
        needless = metric == "dropout/unit_rate" and schedules <= 2
        if steps >= 2 and not needless:
            path = folder / f"{study}-{metric.replace('/', '-')}.png"
            draw_metric(history, metric, path=path, title=title, classes=classes)
            files.append(path)
    return files


def _effect_by_key(runs: pd.DataFrame, key: str) -> dict[float, Paired]:
    """Early dropout minus none in the final training loss, by the value of one key."""
    differences = {}
    none = _final_losses(runs[runs["config/schedule.name"] == "none"])
    early = runs_of(
        runs, lambda arm: arm.get("schedule.name") == "early" and _has_early_settings(arm, key)
    )
    for value, rows in early.groupby(f"config/{key}"):
        losses = _final_losses(rows)
        shared = [seed for seed in sorted(losses) if seed in none]
        difference = paired({seed: losses[seed] - none[seed] for seed in shared})
        if difference is not None:
            differences[float(str(value).removesuffix("%"))] = difference
    return dict(sorted(differences.items()))


def _has_early_settings(arm: Arm, varied: str) -> bool:
    """Whether an arm has the settings of `_EARLY`, other than the key that varies."""
    return all(arm.get(key) == value for key, value in _EARLY.items() if key != varied)


def _final_losses(runs: pd.DataFrame) -> dict[int, float]:
    """The final training loss by seed."""
    losses = runs["final/train_eval/loss"].astype(float)
    return dict(zip(runs["seed"].astype(int), losses, strict=True))


def _along_column(runs: pd.DataFrame, column: str) -> dict[float, Paired]:
    """Constant dropout minus none in the final test accuracy, by a configuration value.

    If the value acts only on dropout, the runs without dropout all have one value. Then all of them
    are compared with each value.
    """
    differences = {}
    accuracy = "final/test/accuracy"
    none = runs[runs["config/schedule.name"] == "none"]
    constant = runs[runs["config/schedule.name"] == "constant"]
    for value, rows in constant.groupby(column):
        without = none if none[column].nunique() < 2 else none[none[column] == value]
        both = rows.merge(without, on="seed", suffixes=("", "|none"))
        gains = both[accuracy] - both[f"{accuracy}|none"]
        difference = paired(dict(zip(both["seed"], gains, strict=True)))
        if difference is not None:
            differences[float(value)] = difference
    return differences
