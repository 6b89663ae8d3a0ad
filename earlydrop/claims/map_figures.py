"""Maps: how a difference changes over two settings. They explore; no claim is tested on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from earlydrop.analysis.plots import Cells, MapWords, draw_map
from earlydrop.analysis.stats import Paired, paired
from earlydrop.claims.declare import Study
from earlydrop.claims.regime import regime
from earlydrop.claims.summaries import Summaries

REGIMES = "regimes"
"""The study that varies the model's width and the number of training images."""
RATES = ("map-text", "map-fashion", "map-glyphs")
"""The studies that vary the learning rate and the warm-up."""
MAPS = (REGIMES, "glyphs-map", *RATES)
"""The studies that explore. No file of claims declares them."""

_LOSS = "final/train_eval/loss"


def draw_maps(
    summaries: Summaries,
    folder: Path,
    title: Callable[[str, pd.DataFrame], str],
) -> dict[Path, list[str]]:
    """Draw the map of each study of `MAPS` that has two settings and has run.

    Args:
        summaries: The runs.
        folder: Where the pictures are written.
        title: Makes the title of a map from the study's name and its runs.

    Returns:
        The files, with the fingerprints of the runs in each.
    """
    files = {}
    regimes = MapWords("model width", "training images", "test accuracy, standard minus none")
    maps = [(REGIMES, _regime_map(summaries), regimes)]
    for study in RATES:
        words = MapWords("learning rate", "warm-up", "% of the final loss, early minus none")
        maps.append((study, rate_cells(summaries.of(study)), words))
    for study, cells, words in maps:
        if cells:
            runs, path = summaries.of(study), folder / f"{study}.png"
            runs = runs[runs["state"] == "finished"]
            draw_map(cells, words, path, title(study, runs))
            files[path] = sorted(runs["fingerprint"])
    return files


def regime_cells(summaries: Summaries) -> dict[tuple[int, int], tuple[str, Paired]]:
    """The label and the paired difference of each cell of the regime map.

    Returns:
        By model width and number of training images; empty without runs of the map's study.
    """
    runs = summaries.of(REGIMES)
    if runs.empty:
        return {}
    cells: dict[tuple[int, int], tuple[str, Paired]] = {}
    for (width, images), rows in runs.groupby(["config/model.width", "config/data.train_images"]):
        constant = [arm for arm in rows["settings"] if arm.get("schedule.name") == "constant"]
        if not constant:
            continue
        study = Study(REGIMES, dict(constant[0].values), {})  # the configuration of the cell
        seeds = sorted(rows["seed"].unique())
        name, difference = regime(rows, study, {"schedule.name": "constant"}, seeds)
        if difference is not None and math.isfinite(difference.effect):
            cells[int(width), int(images)] = (name, difference)
    return cells


def _regime_map(summaries: Summaries) -> Cells:
    cells: Cells = {}
    for (width, images), (name, difference) in regime_cells(summaries).items():
        interval = f"[{difference.low:+.3f}, {difference.high:+.3f}]"
        words = f"{name}\n{difference.effect:+.3f}\n{interval}"
        cells[str(width), f"{images:,}"] = (words, difference.effect)
    return cells


def rate_cells(runs: pd.DataFrame) -> Cells:
    """The effect of early dropout on the final training loss, by learning rate and warm-up.

    Args:
        runs: The runs of one study of `RATES`; may be empty. Only finished runs count.

    Returns:
        By learning rate and warm-up: the difference in percent of the loss without dropout, with
        that loss and the number of seeds in which early dropout ends lower.
    """
    cells: Cells = {}
    if runs.empty:
        return cells
    runs = runs[runs["state"] == "finished"]
    for (rate, warmup), rows in runs.groupby(["config/optim.lr", "config/optim.warmup"]):
        by_seed = rows.pivot_table(index="seed", columns="config/schedule.name", values=_LOSS)
        if not {"none", "early"} <= set(by_seed.columns):
            continue
        by_seed = by_seed.dropna(subset=["none", "early"])
        gains = by_seed["early"] - by_seed["none"]
        difference = paired({int(str(seed)): float(gain) for seed, gain in gains.items()})
        if difference is None:
            continue
        none = by_seed["none"].mean()
        percent = 100 * difference.effect / none
        lower = f"lower in {(gains < 0).sum()} of {len(gains)}"
        words = f"{percent:+.1f}%\nof {none:.2f}\n{lower}"
        cells[f"{float(rate):g}", str(warmup)] = (words, percent)
    return cells
