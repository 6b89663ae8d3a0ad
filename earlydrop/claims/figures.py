"""The figures of the findings: curves with bands over seeds, differences along an axis, and the map of regimes."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.analysis.plots import draw_axis, draw_map, draw_metric
from earlydrop.analysis.runs import runs_of
from earlydrop.analysis.stats import Paired, paired
from earlydrop.claims.answer import answer_rows, current, decisive, points
from earlydrop.claims.answer_figure import draw_points
from earlydrop.claims.declare import Declaration, Study, label_seeds
from earlydrop.claims.gain_figure import draw_gain
from earlydrop.claims.judge import Verdict, regime
from earlydrop.claims.sensitivity_figure import draw_sensitivity
from earlydrop.claims.summaries import Summaries
from earlydrop.metrics import METRICS

MAP_STUDY = "regimes"
MAPS = (MAP_STUDY, "glyphs-map")
"""Studies that explore: no claim is tested on them."""
_EARLY = {"schedule.rate": 0.1, "schedule.cutoff": "20%", "schedule.shape": None, "schedule.kind": "unit"}
_AXES = {"cutoff": "schedule.cutoff", "rate": "schedule.rate"}  # of the study underfitting: along one key, the others as in _EARLY
_COLUMNS = {  # study: the column along which constant dropout is compared with none, and what it is called
    "classic-images": ("config/data.train_images", "training images"),
    "classic-rates": ("config/schedule.rate", "rate"),
}


_MOST_ARMS = 12
"""More curves in one figure cannot be told apart."""


def _title(study: str, runs: pd.DataFrame, each: str = "line") -> str:
    models, data = (", ".join(sorted(set(map(str, runs[f"config/{key}.name"])))) for key in ("model", "data"))
    return f"{study}: {models} on {data}, n = {runs.groupby('arm')['seed'].nunique().max()} a {each}"


def _shared(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the seeds that every arm has, so that the lines of a figure can be compared; all runs if there are none."""
    seeds = set.intersection(*(set(rows) for _, rows in runs.groupby("arm")["seed"]))
    return runs[runs["seed"].isin(seeds)] if seeds else runs


def _of_the_study(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs to draw: all, or, of more than `_MOST_ARMS`, those that differ from the study in their schedule alone."""
    if runs["arm"].nunique() <= _MOST_ARMS:
        return runs
    base = study.arm({"schedule.name": "none"}).base
    alike = runs_of(runs, lambda arm: arm.base == base)
    return alike if alike["arm"].nunique() > 1 else runs


def draw_findings(declarations: list[Declaration], summaries: Summaries, folder: Path) -> dict[Path, list[str]]:
    """Draw every figure that the runs have values for, from the seeds that all arms of a study have, without those of labels.

    Returns:
        The files, with the fingerprints of the runs that each shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, list[str]] = {}
    for study in dict.fromkeys(study for each in declarations for study in each.studies):
        if study == "smoke":
            continue
        runs = summaries.of(study)
        runs = runs[(runs["state"] == "finished") & ~runs["seed"].isin(label_seeds(declarations, study))]
        if runs.empty:
            continue
        runs = _shared(_of_the_study(runs, next(each.studies[study] for each in declarations if study in each.studies)))
        files |= dict.fromkeys(_draw_study(study, runs, folder), sorted(runs["fingerprint"]))
    for declaration in declarations:
        path = folder / f"{declaration.name.replace('_', '-')}-sensitivity.png"
        prints = draw_sensitivity(declaration, summaries, path)
        if prints:
            files[path] = prints
    cells = regime_cells(summaries)
    if cells:
        runs, path = summaries.of(MAP_STUDY), folder / "regimes.png"
        draw_map(cells, path, "test accuracy, standard minus no dropout; " + _title(MAP_STUDY, runs, "cell"))
        files[path] = sorted(runs["fingerprint"])
    return files


def draw_answer(declarations: list[Declaration], verdicts: list[Verdict], folder: Path) -> dict[Path, list[str]]:
    """Draw what decides each finding, in units of the smallest effect that matters; the file, with the runs behind it."""
    found = points(declarations, verdicts)
    if not found:
        return {}
    path = folder / "answer.png"
    draw_points(found, path)
    named = {claim for row in answer_rows() for claim in row.claims}
    used = [v for each in current(declarations, verdicts) for v in decisive(each, verdicts).values() if v.claim.id in named]
    files = {path: sorted({fingerprint for verdict in used for fingerprint in verdict.fingerprints})}
    gain = folder / "early-gain.png"
    prints = draw_gain(declarations, verdicts, gain)
    return files | ({gain: prints} if prints else {})


def _draw_study(study: str, runs: pd.DataFrame, folder: Path) -> list[Path]:
    """The curves of a study, and its differences along the axes that it has."""
    files = []
    history, title = pd.concat(list(runs["history"]), ignore_index=True), _title(study, runs)
    for metric, known in METRICS.items():
        if not known.claimed or metric not in history or history["step"][history[metric].notna()].nunique() < 2:
            continue
        if metric != "dropout/unit_rate" or runs["config/schedule.name"].nunique() > 2:  # else the arms' names say the rates
            files.append(folder / f"{study}-{metric.replace('/', '-')}.png")
            draw_metric(history, metric, known.label, files[-1], title=title)
    for axis in _AXES if study == "underfitting" else ():
        points = _along(runs, _AXES[axis])
        if len(points) > 1:
            files.append(folder / f"{study}-loss-by-{axis}.png")
            unit = " (% of training)" if axis == "cutoff" else ""
            draw_axis(points, f"{axis}{unit}", "final training loss, early minus none", files[-1], title)
    if study in _COLUMNS:
        column, name = _COLUMNS[study]
        points = _along_column(runs, column)
        if points:
            files.append(folder / f"{study}-accuracy-by-{name.replace(' ', '-')}.png")
            draw_axis(points, name, "test accuracy, dropout minus none", files[-1], title)
    return files


def _along(runs: pd.DataFrame, key: str) -> dict[float, Paired]:
    """Early dropout minus none in the final training loss, by the value of one key."""
    points = {}
    none = _final_losses(runs[runs["config/schedule.name"] == "none"])
    early = runs_of(runs, lambda arm: arm.get("schedule.name") == "early" and _as_usual(arm, key))
    for value, rows in early.groupby(f"config/{key}"):
        losses = _final_losses(rows)
        found = paired({seed: losses[seed] - none[seed] for seed in sorted(losses) if seed in none})
        if found is not None:
            points[float(str(value).removesuffix("%"))] = found
    return dict(sorted(points.items()))


def _as_usual(arm: Arm, but: str) -> bool:
    return all(arm.get(key) == value for key, value in _EARLY.items() if key != but)


def _final_losses(runs: pd.DataFrame) -> dict[int, float]:
    """Final training loss by seed."""
    return {int(row["seed"]): float(row["final/train_eval/loss"]) for row in runs.to_dict("records")}


def _along_column(runs: pd.DataFrame, column: str) -> dict[float, Paired]:
    """Constant dropout minus none in the final test accuracy, by a configuration value; none's may not depend on it."""
    points = {}
    base = runs[runs["config/schedule.name"] == "none"]
    for value, rows in runs[runs["config/schedule.name"] == "constant"].groupby(column):
        same = base if base[column].nunique() < 2 else base[base[column] == value]
        both = rows.merge(same, on="seed", suffixes=("", "|none"))
        name = "final/test/accuracy"
        found = paired(dict(zip(both["seed"], both[name] - both[f"{name}|none"], strict=True)))
        if found is not None:
            points[float(value)] = found
    return points


def regime_cells(summaries: Summaries) -> dict[tuple[int, int], tuple[str, Paired | None]]:
    """The regime map: label and paired difference by (model width, number of training images); empty without runs of its study."""
    runs = summaries.of(MAP_STUDY)
    if runs.empty:
        return {}
    cells: dict[tuple[int, int], tuple[str, Paired | None]] = {}
    for (width, images), rows in runs.groupby(["config/model.width", "config/data.train_images"]):
        standard = next((arm for arm in rows["settings"] if arm.get("schedule.name") == "constant"), None)
        if standard is None:
            continue
        study = Study(MAP_STUDY, dict(standard.values), {})  # the cell says which configuration
        name, found = regime(rows, study, {"schedule.name": "constant"}, sorted(rows["seed"].unique()))
        if found is not None and math.isfinite(found.effect):
            cells[int(width), int(images)] = (name, found)
    return cells
