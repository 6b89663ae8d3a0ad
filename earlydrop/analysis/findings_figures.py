"""The figures of the findings: curves with bands over seeds, differences along an axis, and the map of regimes."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from earlydrop.analysis.claims import Claim, Family, Paired, differences, label_seeds, paired, regime
from earlydrop.analysis.figures import draw_axis, draw_map, draw_metric
from earlydrop.analysis.summaries import Summaries

CURVES = {  # metric: axis label; drawn for each study that measured it at two steps or more
    "dropout/unit_rate": "drop rate",
    "probe/gradient_norm": "gradient norm",
    "model/distance": "model distance",
    "probe/gdv": "gradient direction variance",
    "probe/gde": "gradient direction error",
    "train/loss": "training loss (running, with dropout)",
    "train_eval/loss": "training loss (evaluation mode)",
    "test/accuracy": "test accuracy",
}
MAP_STUDY = "regimes"
_AXES = {"cutoff": ("early-0.1-", "%"), "rate": ("early-", "-20%")}  # of the study underfitting: arm = before + value + after
_COLUMNS = {  # study: the column along which constant dropout is compared with none, and what it is called
    "classic-images": ("config/data.train_images", "training images"),
    "classic-rates": ("config/schedule.rate", "rate"),
}


def _title(study: str, runs: pd.DataFrame, each: str = "line") -> str:
    models, data = (", ".join(sorted(set(map(str, runs[f"config/{key}.name"])))) for key in ("model", "data"))
    return f"{study}: {models} on {data}, n = {runs.groupby('arm')['seed'].nunique().max()} a {each}"


def _shared(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the seeds that every arm has, so that the lines of a figure can be compared; all runs if there are none."""
    seeds = set.intersection(*(set(rows) for _, rows in runs.groupby("arm")["seed"]))
    return runs[runs["seed"].isin(seeds)] if seeds else runs


def draw_findings(families: list[Family], summaries: Summaries, folder: Path) -> dict[Path, list[str]]:
    """Every figure that the runs have values for, from the seeds that all arms of a study have.

    Args:
        families: The claims, which name the studies and the seeds that are not drawn.
        summaries: The runs.
        folder: Where the PNG files go.

    Returns:
        The files, with the fingerprints of the runs that each shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, list[str]] = {}
    for study in dict.fromkeys(study for family in families for study in family.studies):
        if study == "smoke":
            continue
        runs = summaries.of(study)
        runs = runs[(runs["state"] == "finished") & ~runs["seed"].isin(label_seeds(families, study))]
        if runs.empty:
            continue
        runs = _shared(runs)
        files |= dict.fromkeys(_draw_study(study, runs, folder), sorted(runs["fingerprint"]))
    cells = regime_cells(summaries)
    if cells:
        runs, path = summaries.of(MAP_STUDY), folder / "regimes.png"
        draw_map(cells, path, "test accuracy, standard minus no dropout; " + _title(MAP_STUDY, runs, "cell"))
        files[path] = sorted(runs["fingerprint"])
    return files


def _draw_study(study: str, runs: pd.DataFrame, folder: Path) -> list[Path]:
    """The curves of a study, and its differences along the axes that it has."""
    files = []
    history, title = pd.concat(list(runs["history"]), ignore_index=True), _title(study, runs)
    for metric, name in CURVES.items():
        if metric not in history or history["step"][history[metric].notna()].nunique() < 2:
            continue
        if metric != "dropout/unit_rate" or runs["config/schedule.name"].nunique() > 2:  # else the arms' names say the rates
            files.append(folder / f"{study}-{metric.replace('/', '-')}.png")
            draw_metric(history, metric, name, files[-1], title=title)
    for axis, (before, after) in _AXES.items() if study == "underfitting" else ():
        points = _along(runs, before, after)
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


def _along(runs: pd.DataFrame, before: str, after: str) -> dict[float, Paired]:
    """Early minus none in the final training loss, by the value in the arm's name."""
    points = {}
    for arm in runs["arm"].unique():
        text = arm.removeprefix(before).removesuffix(after)
        if arm == before + text + after and text.replace(".", "", 1).isdigit():
            claim = Claim("axis", "", "", arm, "none", "train_eval/loss", None, "lower")
            found = paired(differences(runs, claim, sorted(runs["seed"].unique()))[0])
            if found is not None:
                points[float(text)] = found
    return dict(sorted(points.items()))


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
    """The regime map: label and paired difference by model width and number of training images.

    Args:
        summaries: The runs; those of the study ``regimes`` count.

    Returns:
        By (width, images); empty without such runs.
    """
    runs = summaries.of(MAP_STUDY)
    if runs.empty:
        return {}
    runs = runs.assign(arm=runs["arm"].str.partition(" · ")[0])  # the cell says the rest
    cells: dict[tuple[int, int], tuple[str, Paired | None]] = {}
    for (width, images), rows in runs.groupby(["config/model.width", "config/data.train_images"]):
        name, found = regime(rows, "constant-0.1", sorted(rows["seed"].unique()))
        if found is not None and math.isfinite(found.effect):
            cells[int(width), int(images)] = (name, found)
    return cells
