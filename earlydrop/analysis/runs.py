"""Reading runs: one row a run, or one row a measured step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from earlydrop.training.config import Config
from earlydrop.training.files import read_json, read_metrics

EARLY = 0.2
"""The early window of a run: the first fifth of its steps, without step 0."""


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders at or below a folder.

    Args:
        folder: A run, a study, or a folder of studies.

    Yields:
        Folders that hold a ``config.yaml`` and a ``provenance.json``, by name.
    """
    for path in sorted(folder.rglob("provenance.json")):
        if (path.parent / "config.yaml").is_file():
            yield path.parent


def load_history(run: str | Path) -> pd.DataFrame:
    """The metrics of one run.

    Args:
        run: The run's folder.

    Returns:
        One row a measured step, the column ``step`` and a column a metric; NaN where a metric was not measured.
    """
    return pd.DataFrame(read_metrics(Path(run) / "metrics.jsonl"))


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The runs at or below a folder, finished or not.

    Args:
        folder: A run, a study, or a folder of studies.

    Returns:
        One row a run. Columns: ``folder``, ``study``, ``arm`` (what the run stands for: its label, or its schedule in words), ``seed``,
        ``fingerprint``, ``state`` (``finished``, ``running``, ``interrupted``, ``failed``, ``unknown``), ``reason``, ``step``,
        ``total_steps``, ``seconds`` (training time of the process that came last), ``images_per_second`` (median), every configuration
        value as ``config/<key>``, the last value of every metric as ``final/<metric>``, and the mean over the early window (steps above 0
        and up to a fifth of the run) as ``early/<metric>``.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder of a run, of a study, or runs/ itself")
    rows = [_row(path) for path in find_runs(root)]
    if not rows:
        raise FileNotFoundError(f"{folder} holds no runs: a run's folder has a config.yaml and a provenance.json")
    return pd.DataFrame(rows)


def _row(path: Path) -> dict[str, Any]:
    provenance, status = read_json(path / "provenance.json"), read_json(path / "status.json")
    config = _complete(dataclasses.asdict(Config()), yaml.safe_load((path / "config.yaml").read_text()))
    row: dict[str, Any] = {
        "folder": str(path),
        "study": config["study"],
        "arm": provenance.get("arm", path.name),
        "seed": config["seed"],
        "fingerprint": provenance.get("fingerprint"),
        "state": status.get("state", "unknown"),
        "reason": status.get("reason"),
        "step": status.get("step", 0),
        "total_steps": status.get("total_steps"),
    }
    timing = read_metrics(path / "timing.jsonl")
    row["seconds"] = timing[-1]["seconds"] if timing else None
    row["images_per_second"] = float(pd.Series([line["images_per_second"] for line in timing]).median()) if timing else None
    row |= {f"config/{key}": value for key, value in _flat(config)}
    history = load_history(path)
    if not history.empty:
        metrics = history.columns.drop("step")
        early = history[(history["step"] > 0) & (history["step"] <= EARLY * (row["total_steps"] or 0))]
        row |= {f"final/{name}": history[name].dropna().iloc[-1] for name in metrics}
        row |= {f"early/{name}": early[name].mean() for name in metrics}
    return row


_NO_PART = (  # settings that change no trained weight
    "out", "study", "seed", "label", "device", "threads", "tracking", "project", "tags", "mode", "resume", "data.root", "data.workers",
    "probe.at", "probe.batches", "probe.dataset_limit", "probe.clean", "trainer.log_every", "trainer.eval_every",
    "trainer.checkpoint_seconds", "trainer.mc_passes",
)  # fmt: skip


def tell_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """Name arms by every setting that differs between a study's runs, not by their schedules alone.

    A sweep over ``optim.lr`` so has one arm for each learning rate. Runs of a study whose arms were labelled by hand keep their labels.

    Args:
        runs: From `load_runs`.

    Returns:
        A copy, with arms such as ``"early-0.1-20% · optim.lr=0.001"``, and the column ``settings``: those parts of the name that mean
        something without dropout too.
    """
    runs = runs.copy()
    runs["settings"] = ""
    keys = sorted(
        str(name).removeprefix("config/")
        for name in runs.columns
        if str(name).startswith("config/") and not str(name).startswith("config/schedule.")
    )
    for _, group in runs.groupby("study"):
        named = {key: [acts(key, str(arm)) for arm in group["arm"]] for key in keys if key not in _NO_PART}
        varying = [key for key, rows in named.items() if group[rows][f"config/{key}"].map(_text).nunique() > 1]
        for index, row in group.iterrows():
            values = {key: _text(row[f"config/{key}"]) for key in varying if acts(key, str(row["arm"]))}
            names = [f"{key}={value}" for key, value in values.items() if value != "null"]  # null: not used
            runs.loc[index, "settings"] = ", ".join(name for name in names if acts(name.partition("=")[0], "none"))
            if names and pd.isna(row.get("config/label")):
                runs.loc[index, "arm"] = f"{row['arm']} · {', '.join(names)}"
    return runs


def acts(key: str, arm: str) -> bool:
    """Whether a setting means anything to an arm: without dropout there are no masks to choose.

    Args:
        key: A configuration key.
        arm: An arm.

    Returns:
        False for the sort and masks of dropout where there is none.
    """
    return not (arm == "none" and key in ("model.dropout", "model.profile", "trainer.masks"))


def _text(value: Any) -> str:
    return "null" if value is None or value != value else f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _complete(defaults: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of keys that its version did not have, and null where a key is not used."""
    whole = {
        key: _complete(default, config.get(key) or {}) if isinstance(default, dict) else config.get(key, default)
        for key, default in defaults.items()
    }
    if "stop_patience" in whole and whole["stop_metric"] is None:
        whole["stop_patience"] = None
    return whole


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
