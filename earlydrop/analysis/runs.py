"""Reading runs: one row a run, or one row a measured step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.arms import Arm, flat, label_arms
from earlydrop.schedules import MAKERS
from earlydrop.training.config import Config
from earlydrop.training.keys import key_of
from earlydrop.training.record.folder import (
    STATES,
    STATUS,
    DamagedFileError,
    changed_files,
    read_config,
    read_json,
    read_metrics,
    read_timing,
)

DAMAGED = "damaged"
"""Key in ``attrs`` of `load_runs`' frame: a line for each run that was left out since one of its files is damaged."""

_OF_A_RUN = ("provenance.json", "metrics.jsonl")  # one of them makes a folder a run's

EARLY = 0.2
"""The early window of a run: the first fifth of its steps, without step 0."""


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders at or below a folder, by name: whatever holds a ``provenance.json`` or a ``metrics.jsonl``."""
    yield from sorted({path.parent for name in _OF_A_RUN for path in folder.rglob(name)})


def load_history(run: str | Path) -> pd.DataFrame:
    """The metrics of one run.

    Args:
        run: The run's folder.

    Returns:
        One row a measured step: the column ``step`` and a column a metric, NaN where it was not measured.

    Raises:
        FileNotFoundError: It is no folder of a run, but perhaps one that holds runs.
    """
    folder = Path(run)
    if not any((folder / name).is_file() for name in _OF_A_RUN):
        below = list(find_runs(folder)) if folder.is_dir() else []
        if below:
            raise FileNotFoundError(
                f"{run} holds {len(below)} runs: load_history takes one of them, such as {below[0]}; load_runs takes them all"
            )
        raise FileNotFoundError(f"{run} is no folder of a run: expected one with a {' or a '.join(_OF_A_RUN)}")
    return pd.DataFrame(read_metrics(folder / "metrics.jsonl"))


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The runs at or below a folder, finished or not.

    Args:
        folder: A run, a study, or a folder of studies. Runs with a damaged file are left out, and named in ``attrs["damaged"]``.

    Returns:
        One row a run. Columns: ``folder``, ``study``, ``arm`` (what to call what the run stands for, see `earlydrop.analysis.arms`),
        ``settings`` (the arm itself), ``seed``, ``fingerprint``, ``state`` (``finished``, ``running``, ``interrupted``, ``failed``,
        ``unknown``), ``reason``, ``changed`` (files of a finished run that are not what it wrote), ``step``, ``total_steps``,
        ``seconds`` (training time of the process that came last), ``images_per_second`` (median), every configuration value as
        ``config/<key>``, the last value of every metric as ``final/<metric>``, and the mean over the early window (steps above 0 and
        up to a fifth of the run) as ``early/<metric>``.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder of a run, of a study, or runs/ itself")
    return runs_in(find_runs(root), str(folder))


def runs_in(folders: Iterable[Path], said: str) -> pd.DataFrame:
    """`load_runs` of these folders of runs; ``said`` is what they are called where there are none."""
    rows, damaged = [], []
    for path in folders:
        try:
            rows.append(_row(path))
        except (DamagedFileError, ValueError) as error:
            damaged.append(str(error) if isinstance(error, DamagedFileError) else f"{path} is damaged: {error}")
    if not rows:
        for line in damaged:
            raise DamagedFileError(line)
        raise FileNotFoundError(f"{said} holds no runs: a run's folder has a config.yaml and a provenance.json")
    runs = named(pd.DataFrame(rows))
    runs.attrs[DAMAGED] = damaged
    return runs


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """A copy with the column ``arm``: what to call each run among those of its study."""
    names: dict[Any, str] = {}
    for _, group in runs.groupby("study"):
        labels = group["config/label"] if "config/label" in group else pd.Series(None, group.index)
        names |= label_arms({i: (group.loc[i, "settings"], None if pd.isna(labels[i]) else labels[i]) for i in group.index})
    return runs.assign(arm=pd.Series(names))


def runs_of(runs: pd.DataFrame, fits: Callable[[Arm], bool]) -> pd.DataFrame:
    """The runs whose arm fits."""
    return runs[pd.Series([fits(arm) for arm in runs["settings"]], index=runs.index, dtype=bool)]


def _row(path: Path) -> dict[str, Any]:
    provenance, status = read_json(path / "provenance.json"), read_json(path / STATUS)
    if "fingerprint" not in provenance:
        raise DamagedFileError(f"{path / 'provenance.json'} is missing or damaged: it has no fingerprint")
    try:
        config = _complete(read_config(path))
        settings = Arm.of({key: value for key, value in config.items() if key_of(key) is not None})
    except ValueError as error:  # a value that cannot be, or a key of another version
        raise DamagedFileError(f"{path / 'config.yaml'} is damaged: {error}") from error
    _check_schedule(path / "config.yaml", config, provenance)
    _check_status(path / STATUS, status, config["trainer.stop_metric"] is not None)
    row: dict[str, Any] = {
        "folder": str(path),
        "study": config["study"],
        "arm": "",
        "settings": settings,
        "seed": config["seed"],
        "fingerprint": provenance["fingerprint"],
        "state": status.get("state", "unknown"),
        "reason": status.get("reason"),
        "changed": ", ".join(changed_files(path)),
        "step": status.get("step", 0),
        "total_steps": status.get("total_steps"),
    }
    timing = read_timing(path / "timing.jsonl")
    row["seconds"] = timing[-1]["seconds"] if timing else None
    row["images_per_second"] = float(pd.Series([line["images_per_second"] for line in timing]).median()) if timing else None
    row |= {f"config/{key}": value for key, value in config.items()}
    history = load_history(path)
    if not history.empty:
        metrics = history.columns.drop("step")
        early = history[(history["step"] > 0) & (history["step"] <= EARLY * (row["total_steps"] or 0))]
        row |= {f"final/{name}": _last(history[name]) for name in metrics}
        row |= {f"early/{name}": early[name].mean() for name in metrics}
    return row


def _check_schedule(path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Refuse a schedule that is neither ours nor among the code of the user's own that the run recorded."""
    name = config["schedule.name"]
    recorded = provenance.get("code")
    if name in MAKERS or (isinstance(recorded, Mapping) and any(key.startswith("schedule.name") for key in recorded)):
        return
    raise DamagedFileError(
        f"{path} is damaged: schedule.name is {name!r}, which is no schedule of earlydrop, and the run recorded no code for it"
    )


def _check_status(path: Path, status: Mapping[str, Any], may_stop_early: bool) -> None:
    """Refuse a status that no run writes."""
    if status and status.get("state") not in STATES:
        raise DamagedFileError(f"{path} is damaged: its state is {status.get('state')!r}, not one of {', '.join(STATES)}")
    step, total = status.get("step"), status.get("total_steps")
    if status.get("state") == "finished" and step != total and not may_stop_early:
        raise DamagedFileError(f"{path} is damaged: it says finished at step {step} of {total}")


def _last(values: pd.Series) -> float:
    measured = values.dropna()
    return float(measured.iloc[-1]) if len(measured) else math.nan


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by dotted key, with the defaults of keys that its version did not have, and null where a key is not used."""
    values = flat(config)
    foreign = [key for key, value in values.items() if key_of(key) is None and value is not None]
    if foreign:
        raise ValueError(f"its config.yaml has keys that this version does not know: {', '.join(foreign)}")
    whole = flat(dataclasses.asdict(Config())) | {key: value for key, value in values.items() if key_of(key) is not None}
    if whole["trainer.stop_metric"] is None:
        whole["trainer.stop_patience"] = None
    return whole
