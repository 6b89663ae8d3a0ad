"""Facts about runs, as the runs recorded them: model, data, command, commit, machine and time."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.arms import differing, text
from earlydrop.analysis.compare import progress, summary_table
from earlydrop.training.names import format_duration
from earlydrop.training.record.folder import read_json
from earlydrop.training.record.tracking import URL_FILE

_MAX_LISTED = 3
"""The number of values that a term lists. `_distinct_values` counts the rest."""


def facts(runs: pd.DataFrame, folder: Path) -> list[tuple[str, list[str]]]:
    """The facts that a report states about its runs, as pairs (term, values).

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
        ("model", _distinct_values(sorted(map(str, runs["config/model.name"])))),
        ("data", _data(runs, records)),
        ("length", _lengths(runs)),
        ("machine", _distinct_values(_machine(record) for record in records)),
        ("time", _time(runs, records)),
        ("speed", _speed(runs)),
        ("commit", _distinct_values(_commit(record) for record in records)),
        ("command", commands(records, folder)),
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _lengths(runs: pd.DataFrame) -> list[str]:
    lengths = sorted(runs["total_steps"].dropna().unique())
    return _distinct_values(f"{steps:,.0f} steps" for steps in lengths)


def _distinct_values(values: Any) -> list[str]:
    """The distinct values: at most `_MAX_LISTED`, and a count of the rest."""
    distinct = list(dict.fromkeys(value for value in values if value))
    if len(distinct) > _MAX_LISTED:
        return [*distinct[:_MAX_LISTED], f"and {len(distinct) - _MAX_LISTED} more"]
    return distinct or ["not recorded"]


def _data(runs: pd.DataFrame, records: list[dict[str, Any]]) -> list[str]:
    described = []
    for name, record in zip(runs["config/data.name"], records, strict=True):
        data = _record_group(record, "data")
        if data.keys() >= {"classes", "images"}:
            sizes = " and ".join(f"{count:,}" for count in data["images"].values())
            described.append(f"{name} ({sizes} examples, {data['classes']:,} classes)")
        else:
            described.append(str(name))
    return _distinct_values(described)


def _record_group(record: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key of a run's record; empty if the run did not record one."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _machine(record: dict[str, Any]) -> str:
    environment = _record_group(record, "environment")
    processor = str(record.get("processor") or "")
    on_gpu = bool(processor) and str(environment.get("device")).endswith(processor)
    parts = [
        None if on_gpu else processor,
        f"{record['cpu_count']} CPU threads" if record.get("cpu_count") else None,
        environment.get("device"),
        f"torch {environment['torch']}" if environment.get("torch") else None,
    ]
    return ", ".join(part for part in parts if part)


def _time(runs: pd.DataFrame, records: list[dict[str, Any]]) -> list[str]:
    seconds = runs["seconds"].dropna()
    began = sorted(record["began"] for record in records if record.get("began"))
    phrases = []
    if len(seconds):
        total = format_duration(seconds.sum())
        median_run = format_duration(seconds.median())
        phrases.append(f"{total} of training in all, {median_run} per run (median)")
    if began:
        phrases.append(f"begun {began[0][:16].replace('T', ' ')} UTC")
    return ["; ".join(phrases)] if phrases else ["not recorded"]


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


def _commit(record: dict[str, Any]) -> str:
    version = f"earlydrop {record['earlydrop']}" if record.get("earlydrop") else ""
    if not record.get("commit"):
        return version
    notes = [version] if version else []
    if record.get("diff"):
        notes.append("with uncommitted changes")
    commit: str = record["commit"][:12]
    return f"{commit} ({', '.join(notes)})" if notes else commit


def commands(records: list[dict[str, Any]], folder: Path) -> list[str]:
    """The distinct command lines that started the runs.

    If there are more than `_MAX_LISTED`, or a run was not started by the command ``earlydrop`` (for
    example from Python), the only line is the ``earlydrop-cite`` command, which prints how to
    repeat each run.
    """
    lines = list(dict.fromkeys(_command(record) for record in records))
    if None in lines or len(lines) > _MAX_LISTED:
        return [shlex.join(["earlydrop-cite", str(folder)])]
    return [line for line in lines if line is not None]


def _command(record: dict[str, Any]) -> str | None:
    """The command line of a run, if it was started from one."""
    words = record.get("command") or [""]
    program = Path(words[0])
    if program.name in ("earlydrop", "earlydrop.exe"):
        return shlex.join(["earlydrop", *words[1:]])
    # python -m earlydrop records the path of earlydrop/__main__.py
    if program.parts[-2:] == ("earlydrop", "__main__.py"):
        return shlex.join(["python", "-m", "earlydrop", *words[1:]])
    return None


def arms_table(runs: pd.DataFrame) -> pd.DataFrame:
    """`earlydrop.analysis.compare.summary_table` with the settings in which the arms differ."""
    table = summary_table(runs)
    settings_of = runs.drop_duplicates("arm").set_index("arm")["settings"]
    keys = differing(list(settings_of))
    for key in reversed(keys):  # each is inserted at column 1, so the last key goes first
        values = [settings_of[arm].get(key) for arm in table.index]
        if any(value is not None for value in values):
            table.insert(1, key, ["-" if value is None else text(value) for value in values])
    return table.fillna("-")


def _url_in(file: Path) -> str | None:
    """The URL in a file; None if the file is missing or does not hold one."""
    url = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return url if url.startswith(("https://", "http://")) else None


def run_rows(runs: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """The rows of the table of runs.

    Each has ``arm``, ``seed``, ``state``, ``step``, ``fingerprint``, ``folder`` (of the run;
    relative to the argument ``folder`` if it is inside it, else absolute), ``tracked`` (the URL of
    its page at W&B, or None) and ``offline`` (whether it has offline files of W&B).
    """
    rows = []
    for row in runs.to_dict("records"):
        path = Path(row["folder"])
        shown_path = path.relative_to(folder) if path.is_relative_to(folder) else path.resolve()
        rows.append(
            {key: row[key] for key in ("arm", "seed", "state", "fingerprint")}
            | {
                "step": progress(row["step"], row["total_steps"]),
                "folder": shown_path.as_posix() if shown_path.parts else ".",
                "tracked": _url_in(path / URL_FILE),
                "offline": any(path.glob("wandb/offline-run-*")),
            }
        )
    return rows
