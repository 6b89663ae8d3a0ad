"""What was run: model, data, command, commit, machine and time, from what the runs recorded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.arms import differing, text
from earlydrop.analysis.compare import summary_table
from earlydrop.training.record.folder import read_json
from earlydrop.training.record.tracking import URL

_MOST = 3
"""More commands or commits than these are counted, not listed."""


def facts(runs: pd.DataFrame, folder: Path) -> list[tuple[str, list[str]]]:
    """What a reader has to know of some runs, as terms and their values.

    Args:
        runs: The runs, from `earlydrop.analysis.load_runs`.
        folder: The folder that they are in.

    Returns:
        Terms and their values; the values of ``command`` are command lines.
    """
    records = [read_json(Path(path) / "provenance.json") for path in runs["folder"]]
    seeds = runs["seed"].nunique()
    return [
        ("runs", [f"{len(runs)}: {_count(runs['arm'].nunique(), 'arm')}, {_count(seeds, 'seed')}"]),
        ("model", sorted(set(map(str, runs["config/model.name"])))),
        ("data", _data(runs, records)),
        ("length", _lengths(runs)),
        ("machine", _several(_machine(record) for record in records)),
        ("time", _time(runs, records)),
        ("speed", _speed(runs)),
        ("commit", _several(_commit(record) for record in records)),
        ("command", commands(records, folder)),
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _lengths(runs: pd.DataFrame) -> list[str]:
    lengths = sorted(runs["total_steps"].dropna().unique())
    return _several(f"{steps:,.0f} steps" for steps in lengths)


def _several(values: Any) -> list[str]:
    distinct = list(dict.fromkeys(value for value in values if value))
    if len(distinct) > _MOST:
        return [*distinct[:_MOST], f"and {len(distinct) - _MOST} more"]
    return distinct or ["not recorded"]


def _data(runs: pd.DataFrame, records: list[dict[str, Any]]) -> list[str]:
    described = []
    for name, record in zip(runs["config/data.name"], records, strict=True):
        data = _mapping(record, "data")
        if "classes" in data:
            sizes = " and ".join(f"{count:,}" for count in data["images"].values())
            described.append(f"{name} ({sizes} examples, {data['classes']:,} classes)")
        else:
            described.append(str(name))
    return _several(described)


def _mapping(record: dict[str, Any], key: str) -> dict[str, Any]:
    """A group of a run's record; empty if the run did not record it."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _machine(record: dict[str, Any]) -> str:
    environment = _mapping(record, "environment")
    parts = [
        record.get("processor"),
        f"{record['cpu_count']} cores" if record.get("cpu_count") else None,
        environment.get("device"),
        f"torch {environment['torch']}" if environment.get("torch") else None,
    ]
    return ", ".join(part for part in parts if part)


def _time(runs: pd.DataFrame, records: list[dict[str, Any]]) -> list[str]:
    seconds = runs["seconds"].dropna()
    began = sorted(record["began"] for record in records if record.get("began"))
    words = [f"begun {began[0][:16].replace('T', ' ')} UTC"] if began else []
    if len(seconds):
        total, typical = in_time(seconds.sum()), in_time(seconds.median())
        words.insert(0, f"{total} of training in all, {typical} a run")
    return ["; ".join(words)] if words else ["not recorded"]


def _speed(runs: pd.DataFrame) -> list[str]:
    """Throughput, waiting for data, utilisation and memory, as far as the runs recorded them."""
    words = []
    rates, waits = runs["images_per_second"].dropna(), runs["data_wait"].dropna()
    if len(rates):
        words.append(f"{rates.median():,.0f} images/s in a typical run")
    if len(waits):
        words.append(f"{waits.median():.1%} of the time spent waiting for data")
    if runs["mfu"].notna().any():
        words.append(f"{runs['mfu'].median():.1%} model FLOP utilisation")
    if runs["peak_memory"].notna().any():
        words.append(f"at most {runs['peak_memory'].max() / 1e9:.1f} GB of tensors on a GPU")
    return ["; ".join(words)] if words else ["not recorded"]


def in_time(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _commit(record: dict[str, Any]) -> str:
    version = f"earlydrop {record['earlydrop']}" if record.get("earlydrop") else ""
    if not record.get("commit"):
        return version
    changed = ", with uncommitted changes" if record.get("diff") else ""
    return f"{record['commit'][:12]} ({version}{changed})"


def commands(records: list[dict[str, Any]], folder: Path) -> list[str]:
    """The command lines that started some runs; the one that prints them, if they are many."""
    lines = list(dict.fromkeys(_command(record) for record in records))
    if None in lines or len(lines) > _MOST:
        return [shlex.join(["earlydrop-cite", str(folder)])]
    return [line for line in lines if line is not None]


def _command(record: dict[str, Any]) -> str | None:
    """The command line of a run, if it was started from one."""
    words = record.get("command") or []
    program = Path(words[0]).name if words else ""
    if program in ("earlydrop", "earlydrop.exe"):
        return shlex.join(["earlydrop", *words[1:]])
    if Path(program).suffix == ".py" and Path(words[0]).parent.name == "earlydrop":
        return shlex.join(["python", "-m", "earlydrop", *words[1:]])
    return None


def arms_table(runs: pd.DataFrame) -> pd.DataFrame:
    """`earlydrop.analysis.compare.summary_table` with the settings in which the arms differ."""
    table = summary_table(runs)
    first = runs.drop_duplicates("arm").set_index("arm")["settings"]
    keys = differing(list(first))
    for key in reversed(keys):
        values = [first[arm].get(key) for arm in table.index]
        if any(value is not None for value in values):
            table.insert(1, key, ["-" if value is None else text(value) for value in values])
    return table.fillna("-")


def _address(file: Path) -> str | None:
    """The address in a file; None without one."""
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return text if text.startswith(("https://", "http://")) else None


def run_rows(runs: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Each run with the addresses of its files, relative to a folder, and of its page at W&B."""
    rows = []
    for row in runs.to_dict("records"):
        path = Path(row["folder"])
        inside = path.relative_to(folder) if path.is_relative_to(folder) else path.resolve()
        rows.append(
            {
                "arm": row["arm"],
                "seed": row["seed"],
                "state": row["state"],
                "step": f"{row['step']} of {row['total_steps']}",
                "fingerprint": row["fingerprint"],
                "folder": inside.as_posix() if inside.parts else ".",
                "tracked": _address(path / URL),
                "offline": any(path.glob("wandb/offline-run-*")),
            }
        )
    return rows
