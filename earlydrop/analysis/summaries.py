"""Summaries of runs, small enough to be committed: one row a run, and the measured steps. Tables and figures are made from them alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from earlydrop.analysis.runs import load_history, load_runs, tell_apart
from earlydrop.training.files import read_json

RUNS, HISTORY = "runs.csv", "history.csv.xz"
_LOCAL = ("out", "data.root", "device", "threads", "tracking", "project", "tags", "mode", "resume", "data.workers")
_FACTS = ("study", "arm", "settings", "seed", "fingerprint", "state", "step", "total_steps", "seconds")


@dataclass(frozen=True)
class Summaries:
    """Runs and their measured steps.

    Attributes:
        runs: One row a run: ``study``, ``arm``, ``seed``, ``fingerprint``, ``state``, ``step``, ``total_steps``, ``seconds``, what it ran
            on (``torch``, ``hardware``, ``commit``), every configuration value (``config/<key>``) that is not of one machine, the last
            value of every metric (``final/<metric>``) and its mean over the early window (``early/<metric>``).
        history: One row a run and measured step: ``study``, ``fingerprint``, ``arm``, ``seed``, ``step`` and a column a metric.
    """

    runs: pd.DataFrame
    history: pd.DataFrame

    def of(self, study: str) -> pd.DataFrame:
        """The runs of one study, with their measured steps in a column ``history``.

        Args:
            study: The study.

        Returns:
            One row a run.
        """
        runs = self.runs[self.runs["study"] == study].copy()
        key = ["fingerprint", "arm", "seed"]
        steps = dict(list(self.history[self.history["study"] == study].groupby(key)))
        runs["history"] = [steps.get(each, self.history.iloc[:0]) for each in runs[key].itertuples(index=False, name=None)]
        return runs

    def write(self, folder: Path) -> None:
        """Write ``runs.csv`` and ``history.csv.xz``, numbers to seven digits, sorted, so that equal runs give equal files.

        Args:
            folder: Made if it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.runs.to_csv(folder / RUNS, index=False, float_format="%.7g", lineterminator="\n")
        self.history.to_csv(folder / HISTORY, index=False, float_format="%.7g", lineterminator="\n")


def read_summaries(folder: Path) -> Summaries:
    """Read what `Summaries.write` wrote.

    Args:
        folder: Where.

    Returns:
        The summaries.
    """
    text = {"arm": str, "settings": str, "study": str, "fingerprint": str}
    runs = pd.read_csv(folder / RUNS, dtype=text)
    if "settings" in runs:
        runs["settings"] = runs["settings"].fillna("")
    return Summaries(runs, pd.read_csv(folder / HISTORY, dtype=text))


def collect(folder: Path, studies: set[str]) -> Summaries:
    """Summarise the runs of some studies.

    Args:
        folder: Any folder with runs below it.
        studies: Which studies.

    Returns:
        The summaries.

    Raises:
        FileNotFoundError: There is no such folder, or no run of these studies in it.
    """
    runs = load_runs(folder)
    runs = tell_apart(runs[runs["study"].isin(studies)])
    if runs.empty:
        raise FileNotFoundError(f"{folder} holds no runs of the studies {', '.join(sorted(studies))}")
    facts, histories = [], []
    for row in runs.to_dict("records"):
        provenance = read_json(Path(row["folder"]) / "provenance.json")
        fact = {key: row[key] for key in _FACTS}
        fact |= {
            "torch": provenance.get("environment", {}).get("torch"),
            "hardware": provenance.get("processor"),
            "commit": provenance.get("commit"),
        }
        fact |= {key: value for key, value in row.items() if _kept(key)}
        facts.append(fact)
        history = load_history(row["folder"])
        if not history.empty:
            histories.append(history.assign(**{key: row[key] for key in ("study", "fingerprint", "arm", "seed")}))
    order = ["study", "fingerprint", "arm", "seed", "step"]
    table = pd.DataFrame(facts).dropna(axis="columns", how="all").sort_values(["study", "arm", "seed", "fingerprint"])
    if not histories:
        return Summaries(table, pd.DataFrame(columns=order))
    history = pd.concat(histories, ignore_index=True).sort_values(["study", "arm", "seed", "fingerprint", "step"])
    return Summaries(table, history[[*order, *sorted(history.columns.difference(order))]])


def _kept(key: str) -> bool:
    if key.startswith("config/"):
        return key.removeprefix("config/") not in (*_LOCAL, "study", "seed", "label")
    return key.startswith(("final/", "early/"))
