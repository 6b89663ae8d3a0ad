"""Summaries of runs, small enough to be committed: one row a run, and the measured steps. Tables and figures are made from them alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.analysis.runs import DAMAGED, load_history, load_runs, named
from earlydrop.claims.declare import Declaration
from earlydrop.training.fields import CADENCE, NUMBERS
from earlydrop.training.keys import key_of
from earlydrop.training.record.folder import STATUS, read_json

log = logging.getLogger(__name__)

RUNS, HISTORY = "runs.csv", "history.csv.xz"
_CONFIG = "config/"
_FACTS = ("study", "arm", "seed", "fingerprint", "state", "step", "total_steps", "seconds")


@dataclass(frozen=True)
class Summaries:
    """Runs and their measured steps.

    Attributes:
        runs: One row a run: ``study``, ``arm`` (its name), ``settings`` (the arm itself; made anew when read), ``seed``, ``fingerprint``,
            ``state``, ``step``, ``total_steps``, ``seconds``, what it ran on (``torch``, ``hardware``, ``commit``), every configuration
            value (``config/<key>``) that is not of one machine, the last value of every metric (``final/<metric>``) and its mean over
            the early window (``early/<metric>``).
        history: One row a run and measured step: ``study``, ``fingerprint``, ``arm``, ``seed``, ``step`` and a column a metric.
        left_out: A line for each run that was left out, with the file that is damaged or was changed after the run finished.
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    left_out: tuple[str, ...] = ()

    def of(self, study: str) -> pd.DataFrame:
        """The runs of one study, one row a run, with their measured steps in a column ``history``."""
        runs = self.runs[self.runs["study"] == study].copy()
        key = ["fingerprint", "arm", "seed"]
        steps = dict(list(self.history[self.history["study"] == study].groupby(key)))
        runs["history"] = [steps.get(each, self.history.iloc[:0]) for each in runs[key].itertuples(index=False, name=None)]
        return runs

    def write(self, folder: Path) -> None:
        """Write ``runs.csv`` and ``history.csv.xz``, numbers to seven digits, sorted, so that equal runs give equal files."""
        folder.mkdir(parents=True, exist_ok=True)
        runs = self.runs.drop(columns="settings")
        for column in (c for c in runs if c.startswith(_CONFIG) and pd.api.types.is_float_dtype(runs[c])):
            runs[column] = [_exact(value) for value in runs[column]]
        runs.to_csv(folder / RUNS, index=False, float_format="%.7g", lineterminator="\n")
        self.history.to_csv(folder / HISTORY, index=False, float_format="%.7g", lineterminator="\n")


def read_summaries(folder: Path) -> Summaries:
    """Read what `Summaries.write` wrote."""
    text = {"arm": str, "study": str, "fingerprint": str}
    runs = pd.read_csv(folder / RUNS, dtype=text)
    columns = {column.removeprefix(_CONFIG): column for column in runs if key_of(column.removeprefix(_CONFIG)) is not None}
    settings = [
        Arm.of({key: row[column] for key, column in columns.items() if said(key, row[column])}) for row in runs.to_dict("records")
    ]
    return Summaries(runs.assign(settings=settings), pd.read_csv(folder / HISTORY, dtype=text))


def said(key: str, value: object) -> bool:
    """Whether a cell says something: empty is null, or, of a key that cannot be null, a run from before there was the key."""
    known = key_of(key)
    return value == value or (known is not None and type(None) in known.kinds)


def collect(folder: Path, studies: set[str]) -> Summaries:
    """Summarise the runs of some studies, anywhere below a folder. What is damaged, or was changed since, is left out, with a warning.

    Raises:
        FileNotFoundError: There is no such folder, or no run of these studies in it.
    """
    runs = load_runs(folder)
    changed = runs[runs["changed"] != ""]
    left_out = [
        *runs.attrs[DAMAGED],
        *(
            f"{row.folder}: {row.changed} changed after the run finished, by the digest in its {STATUS}"
            for row in changed.itertuples()
        ),
    ]
    for line in left_out:
        log.warning("left out: %s", line)
    runs = runs[runs["study"].isin(studies) & (runs["changed"] == "")]
    if runs.empty:
        raise FileNotFoundError(f"{folder} holds no runs of the studies {', '.join(sorted(studies))}")
    runs = named(runs)
    facts, histories = [], []
    for row in runs.to_dict("records"):
        provenance = read_json(Path(row["folder"]) / "provenance.json")
        fact = {key: row[key] for key in _FACTS} | {"settings": row["settings"]}
        fact |= {
            "torch": provenance.get("environment", {}).get("torch"),
            "hardware": provenance.get("processor"),
            "commit": provenance.get("commit"),
            "modified": bool(provenance["diff"]) if provenance.get("diff") is not None else None,
            "began": provenance.get("began"),
        }
        fact |= {key: value for key, value in row.items() if _kept(key)}
        facts.append(fact)
        history = load_history(row["folder"])
        if not history.empty:
            histories.append(history.assign(**{key: row[key] for key in ("study", "fingerprint", "arm", "seed")}))
    order = ["study", "fingerprint", "arm", "seed", "step"]
    table = pd.DataFrame(facts).dropna(axis="columns", how="all").sort_values(["study", "arm", "seed", "fingerprint"])
    if not histories:
        return Summaries(table, pd.DataFrame(columns=order), tuple(left_out))
    history = pd.concat(histories, ignore_index=True).sort_values(["study", "arm", "seed", "fingerprint", "step"])
    return Summaries(table, history[[*order, *sorted(history.columns.difference(order))]], tuple(left_out))


def merged(before: Summaries, more: Summaries) -> Summaries:
    """Summaries with further runs; a run that both have, by study and fingerprint, is taken from ``more``."""
    key = ["study", "fingerprint"]
    again = set(more.runs[key].itertuples(index=False, name=None))

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        return table[[each not in again for each in table[key].itertuples(index=False, name=None)]]

    runs = pd.concat([kept(before.runs), more.runs], ignore_index=True)
    history = pd.concat([kept(before.history), more.history], ignore_index=True)
    return Summaries(
        runs.sort_values(["study", "arm", "seed", "fingerprint"]),
        history.sort_values(["study", "arm", "seed", "fingerprint", "step"]),
    )


def summaries_in(folder: Path, declarations: Iterable[Declaration], fallback: Path | None = None) -> Summaries:
    """The summaries that a folder holds, or those of the runs in it of the studies that are declared; else those of another folder."""
    if (folder / RUNS).is_file():
        return read_summaries(folder)
    try:
        return collect(folder, {study for each in declarations for study in each.studies})
    except FileNotFoundError:
        if fallback is None:
            raise
        return read_summaries(fallback)


def _exact(value: float) -> str | None:
    """A setting as text that reads back as the same number."""
    short = f"{value:.7g}"
    return None if value != value else short if float(short) == value else repr(float(value))


def _kept(column: str) -> bool:
    if column.startswith(_CONFIG):
        known = key_of(column.removeprefix(_CONFIG))
        return known is not None and known.role in (NUMBERS, CADENCE)
    return column.startswith(("final/", "early/"))
