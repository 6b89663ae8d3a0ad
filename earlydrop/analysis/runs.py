"""Reading runs: one row per run, or one row per measured step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.arms import Arm, flat, label_arms
from earlydrop.schedules import MAKERS
from earlydrop.training.config import Config
from earlydrop.training.keys import key_of, keys
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
"""The key in the ``attrs`` of the table of `load_runs` that lists the runs with a damaged file.

Such runs are left out of the table.
"""

_OF_A_RUN = ("provenance.json", "metrics.jsonl")
"""A folder that holds one of these files is the folder of a run."""

CONFIG = "config/"
"""The prefix of the columns that hold configuration values."""

EARLY = 0.2
"""The early window of a run, as a share of its steps; step 0 is not in it."""


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs at or below a folder, sorted.

    Args:
        folder: Where to look.

    Yields:
        Folders that hold a ``provenance.json`` or a ``metrics.jsonl``.
    """
    found: set[Path] = set()
    for name in _OF_A_RUN:
        found.update(path.parent for path in folder.rglob(name))
    yield from sorted(found)


def load_history(run: str | Path) -> pd.DataFrame:
    """The metrics of one run.

    Args:
        run: The run's folder.

    Returns:
        One row per measured step, with the column ``step`` and one column per metric. A value is
        NaN where the metric was not measured.

    Raises:
        FileNotFoundError: It is not the folder of a run.
        DamagedFileError: A line of its ``metrics.jsonl`` is damaged.
    """
    folder = Path(run)
    if not any((folder / name).is_file() for name in _OF_A_RUN):
        below = list(find_runs(folder)) if folder.is_dir() else []
        if below:
            takes = f"load_history takes one of them, such as {below[0]}; load_runs takes them all"
            raise FileNotFoundError(f"{run} holds {len(below)} runs: {takes}")
        expected = " or a ".join(_OF_A_RUN)
        raise FileNotFoundError(f"{run} is not a run's folder: expected one with a {expected}")
    lines = read_metrics(folder / "metrics.jsonl")
    return pd.DataFrame(lines) if lines else pd.DataFrame(columns=["step"])


def load_runs(folder: str | Path) -> pd.DataFrame:
    """The runs at or below a folder, finished or not.

    Args:
        folder: A run, a study, or a folder of studies. Runs with a damaged file are left out, and
            named in ``attrs["damaged"]``.

    Returns:
        One row per run, with the columns

        - ``folder``, ``study``, ``seed``, ``fingerprint``;
        - ``arm``: the name of its arm, and ``settings``: the arm (`earlydrop.analysis.arms`);
        - ``state``: ``finished``, ``running``, ``interrupted``, ``failed`` or ``unknown``, and
          ``reason``: why it failed;
        - ``changed``: files of a finished run that differ from what it wrote;
        - ``step`` and ``total_steps``, which is None for a run without a status;
        - ``classes`` and ``steps_per_epoch``: of its data. If the run did not record them,
          ``classes`` follows from the name of a known dataset; otherwise they are null;
        - ``seconds``: training time, of all processes of a resumed run together;
        - ``images_per_second``, ``data_wait`` (share of the time) and ``mfu`` (share of the peak
          FLOP/s): medians over the lines of ``timing.jsonl``; null where not recorded;
        - ``peak_memory``: the largest value of ``timing.jsonl``, in bytes; null where not recorded;
        - ``config/<key>``: every configuration value;
        - ``final/<metric>``: the last value of every metric;
        - ``early/<metric>``: its mean over the early window: all steps above 0, up to a fifth of
          the run.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
        DamagedFileError: Every run has a damaged file.
    """
    root = Path(folder)
    if not root.is_dir():
        expected = "the folder of a run, of a study, or runs/ itself"
        raise FileNotFoundError(f"{folder} is not a folder: give {expected}")
    return runs_in(find_runs(root), str(folder))


def runs_in(folders: Iterable[Path], name: str) -> pd.DataFrame:
    """Load the runs in the given folders, as `load_runs` does.

    Args:
        folders: The folder of each run.
        name: What an error message calls the folders as a whole, such as ``runs/study``.

    Returns:
        One row per run.

    Raises:
        FileNotFoundError: There is no run.
        DamagedFileError: Every run has a damaged file.
    """
    rows, damaged = [], []
    for path in folders:
        try:
            rows.append(_row(path))
        except DamagedFileError as error:
            damaged.append(str(error))
        except ValueError as error:
            damaged.append(f"{path} is damaged: {error}")
    if damaged and not rows:
        raise DamagedFileError(damaged[0])
    if not rows:
        expected = "a run's folder has a config.yaml and a provenance.json"
        raise FileNotFoundError(f"{name} holds no runs: {expected}")
    runs = named(table_of(rows))
    # pandas makes all numbers of steps floats if one run has none.
    totals = [row["total_steps"] for row in rows]
    kind = object if None in totals else int
    runs["total_steps"] = pd.Series(totals, index=runs.index, dtype=kind)
    runs.attrs[DAMAGED] = damaged
    return runs


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of runs. The values of a user's own keys keep their types.

    Otherwise pandas would make 32 of one run and no value of another floats, and null no value.
    """
    table = pd.DataFrame(rows)
    for column in table:
        if is_own_column(column):
            values = [row.get(column, math.nan) for row in rows]
            table[column] = pd.Series(values, index=table.index, dtype=object)
    return table


def is_own_column(column: str) -> bool:
    """Whether a column holds a user's own key, such as ``config/model.args.width``."""
    key = column.removeprefix(CONFIG)
    return column.startswith(CONFIG) and key not in keys() and key_of(key) is not None


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """A copy with the column ``arm``: the name of each run's arm within its study."""
    names: dict[Any, str] = {}
    for _, group in runs.groupby("study"):
        arms = {}
        for row in group.index:
            label = group.loc[row, "config/label"] if "config/label" in group else None
            arms[row] = (group.loc[row, "settings"], None if pd.isna(label) else label)
        names |= label_arms(arms)
    return runs.assign(arm=pd.Series(names))


def runs_of(runs: pd.DataFrame, fits: Callable[[Arm], bool]) -> pd.DataFrame:
    """The runs whose arm fits."""
    fitting = [fits(arm) for arm in runs["settings"]]
    return runs[pd.Series(fitting, index=runs.index, dtype=bool)]


def _row(path: Path) -> dict[str, Any]:
    """A run as a row of `load_runs`."""
    # imported here, because it imports torch, which takes seconds
    from earlydrop.training.data.published import known_classes

    provenance, status = read_json(path / "provenance.json"), read_json(path / STATUS)
    if "fingerprint" not in provenance:
        file = path / "provenance.json"
        raise DamagedFileError(f"{file} is missing or damaged: it has no fingerprint")
    try:
        config = _complete(read_config(path))
        settings = Arm.of({key: value for key, value in config.items() if key_of(key) is not None})
    except ValueError as error:  # an impossible value, or a key of another version
        raise DamagedFileError(f"{path / 'config.yaml'} is damaged: {error}") from error
    if not isinstance(config["study"], str):
        raise DamagedFileError(f"{path / 'config.yaml'} is damaged: study is {config['study']!r}")
    _check_schedule(path / "config.yaml", config, provenance)
    _check_status(path / STATUS, status, config["trainer.stop_metric"] is not None)
    recorded = provenance.get("data")
    data = recorded if isinstance(recorded, Mapping) else {}
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
        "classes": data.get("classes") or known_classes(config["data.name"]),
        "steps_per_epoch": data.get("steps_per_epoch"),
    }
    timing = read_timing(path / "timing.jsonl")
    row["seconds"] = _training_seconds(timing)
    row |= _pace(timing)
    row |= {f"config/{key}": value for key, value in config.items()}
    history = load_history(path)
    if not history.empty:
        metrics = history.columns.drop("step")
        end = EARLY * (row["total_steps"] or 0)
        early = history[(history["step"] > 0) & (history["step"] <= end)]
        row |= {f"final/{name}": _last(history[name]) for name in metrics}
        row |= {f"early/{name}": early[name].mean() for name in metrics}
    return row


def _training_seconds(timing: list[dict[str, float]]) -> float | None:
    """The training time of a run. Each process of a resumed run counts its own seconds from 0."""
    if not timing:
        return None
    total, last = 0.0, 0.0
    for record in timing:
        if record["seconds"] < last:  # another process
            total += last
        last = record["seconds"]
    return total + last


def _pace(timing: list[dict[str, float]]) -> dict[str, float | None]:
    """Medians over the lines of ``timing.jsonl``, and the largest memory; None if not recorded."""
    pace: dict[str, float | None] = {}
    for name in ("images_per_second", "data_wait", "mfu", "peak_memory"):
        values = pd.Series([line[name] for line in timing if name in line], dtype=float)
        typical = values.max() if name == "peak_memory" else values.median()
        pace[name] = float(typical) if len(values) else None
    return pace


def _check_schedule(path: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Refuse a schedule that is not earlydrop's, unless the run recorded the user's code for it."""
    name = config["schedule.name"]
    code = provenance.get("code")
    keys = code if isinstance(code, Mapping) else ()
    if name in MAKERS or any(key.startswith("schedule.name") for key in keys):
        return
    why = "which is no schedule of earlydrop, and the run recorded no code for it"
    raise DamagedFileError(f"{path} is damaged: schedule.name is {name!r}, {why}")


def _check_status(path: Path, status: Mapping[str, Any], may_stop_early: bool) -> None:
    """Refuse a status that no run writes."""
    state, step, total = status.get("state"), status.get("step"), status.get("total_steps")
    if status and state not in STATES:
        states = ", ".join(STATES)
        raise DamagedFileError(f"{path} is damaged: its state is {state!r}, not one of {states}")
    for name, value in (("step", step), ("total_steps", total)):
        if value is not None and not isinstance(value, int):
            raise DamagedFileError(f"{path} is damaged: its {name} is {value!r}, not a number")
    if state == "finished" and step != total and not may_stop_early:
        raise DamagedFileError(f"{path} is damaged: it says finished at step {step} of {total}")


def _last(values: pd.Series) -> float:
    """The last value that was measured; NaN without one."""
    measured = values.dropna()
    return float(measured.iloc[-1]) if len(measured) else math.nan


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration by dotted key.

    Keys that the run's version of earlydrop did not have get their defaults. Without
    ``trainer.stop_metric``, ``trainer.stop_patience`` is null.
    """
    values = flat(config)
    known = {key: value for key, value in values.items() if key_of(key) is not None}
    foreign = [key for key, value in values.items() if key not in known and value is not None]
    if foreign:
        names = ", ".join(foreign)
        raise ValueError(f"it has keys that this version does not know: {names}")
    whole = flat(dataclasses.asdict(Config())) | known
    if whole["trainer.stop_metric"] is None:
        whole["trainer.stop_patience"] = None
    return whole
