"""Summaries of runs, small enough to commit: one row per run, and the measured steps.

All tables and figures are made from them.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from earlydrop.analysis.arms import Arm, label_arms
from earlydrop.analysis.runs import (
    CONFIG,
    DAMAGED,
    is_own_column,
    load_history,
    load_runs,
    named,
    table_of,
)
from earlydrop.claims.declare import Declaration
from earlydrop.training.fields import CADENCE, NUMBERS
from earlydrop.training.keys import key_of, keys
from earlydrop.training.record.folder import STATUS, read_json

log = logging.getLogger(__name__)

RUNS, HISTORY = "runs.csv", "history.csv.xz"
_FACTS = ("study", "arm", "seed", "fingerprint", "state", "step", "total_steps", "seconds")
_RUN_ORDER = ["study", "arm", "seed", "fingerprint"]
"""The columns by which runs are sorted, so that equal runs give equal files."""


@dataclass(frozen=True)
class Summaries:
    """Runs and their measured steps.

    Attributes:
        runs: One row per run: ``study``, ``arm`` (its name), ``settings`` (the arm itself, which is
            not written to the file), ``seed``, ``fingerprint``, ``state``, ``step``,
            ``total_steps``, ``seconds``, ``torch``, ``hardware``, ``commit``, ``modified`` (whether
            the code had uncommitted changes) and ``began``; ``config/<key>`` for every key with the
            role ``numbers`` or ``cadence``; the last value of every metric (``final/<metric>``) and
            its mean over the early window (``early/<metric>``). A column that is empty for every
            run is left out.
        history: One row per run and measured step: ``study``, ``fingerprint``, ``arm``, ``seed``,
            ``step`` and one column per metric.
        left_out: A line for each run that was left out, with the file that is damaged or was
            changed after the run finished.
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    left_out: tuple[str, ...] = ()

    def of(self, study: str) -> pd.DataFrame:
        """The runs of one study, with their measured steps in a column ``history``."""
        runs = self.runs[self.runs["study"] == study].copy()
        no_steps = self.history.iloc[:0]
        key = ["study", "fingerprint", "arm", "seed"]
        runs["history"] = [self._steps.get(run, no_steps) for run in _rows(runs[key])]
        return runs

    @functools.cached_property
    def _steps(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        """The measured steps of each run, by study, fingerprint, arm and seed."""
        key = ["study", "fingerprint", "arm", "seed"]
        return dict(list(self.history.groupby(key)))  # type: ignore[arg-type]

    def write(self, folder: Path) -> None:
        """Write ``runs.csv`` and ``history.csv.xz``: settings exactly, other floats to 7 digits."""
        folder.mkdir(parents=True, exist_ok=True)
        runs = self.runs.drop(columns="settings")
        for column in runs:
            if is_own_column(column):
                runs[column] = [_as_text(value) for value in runs[column]]
            elif column.startswith(CONFIG) and pd.api.types.is_float_dtype(runs[column]):
                runs[column] = [_exact(value) for value in runs[column]]
        for table, name in ((runs, RUNS), (self.history, HISTORY)):
            table.to_csv(folder / name, index=False, float_format="%.7g", lineterminator="\n")


def _rows(table: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """The rows of a table as plain tuples."""
    yield from table.itertuples(index=False, name=None)


def read_summaries(folder: Path) -> Summaries:
    """Read the files that `Summaries.write` wrote."""
    text = {"arm": str, "study": str, "fingerprint": str}
    runs = pd.read_csv(folder / RUNS, dtype=text)
    open_columns = [str(column) for column in runs if is_own_column(str(column))]
    if open_columns:
        cells = pd.read_csv(folder / RUNS, usecols=open_columns, dtype=str, na_filter=False)
        for column in open_columns:
            parsed = [_from_text(cell) for cell in cells[column]]
            runs[column] = pd.Series(parsed, index=runs.index, dtype=object)
    columns = {}
    for column in runs:
        key = column.removeprefix(CONFIG)
        if key_of(key) is not None:
            columns[key] = column
    known: dict[str, Arm] = {}
    arms = []
    for row in runs.to_dict("records"):
        cells = {key: row[column] for key, column in columns.items() if key != "seed"}
        values = {key: value for key, value in cells.items() if has_value(key, value)}
        arm = repr(values)  # many seeds share an arm
        if arm not in known:
            known[arm] = Arm.of(values)
        arms.append(known[arm])
    runs = runs.copy()  # pandas warns when a column is added to a fragmented frame
    return Summaries(runs.assign(settings=arms), pd.read_csv(folder / HISTORY, dtype=text))


def has_value(key: str, value: object) -> bool:
    """Whether a cell holds a value of its key.

    An empty cell means null. If the key cannot be null, the run is older than the key, and the cell
    holds no value. In a column of a user's own key, such as ``model.args.width``, an empty cell
    means that the run does not give the key.
    """
    if not isinstance(value, float) or not math.isnan(value):
        return True
    is_users_own = key not in keys()
    return not is_users_own and type(None) in keys()[key].kinds


def _as_text(value: Any) -> str | None:
    """A value of a user's own key as JSON, which keeps its type; None for an empty cell."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return json.dumps(value, default=_plain_number)


def _plain_number(value: Any) -> Any:
    """Convert a NumPy number to a Python number."""
    return value.item()


def _from_text(cell: str) -> Any:
    """Read a cell that `_as_text` wrote. A cell that is not valid JSON is kept as text."""
    if not cell:
        return math.nan
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def collect(folder: Path, studies: set[str]) -> Summaries:
    """Summarise the runs of some studies, anywhere below a folder.

    Runs that are damaged, or were changed after they finished, are left out with a warning.

    Raises:
        FileNotFoundError: There is no such folder, or no run of these studies in it.
        DamagedFileError: Every run below the folder is damaged.
    """
    runs = load_runs(folder)
    left_out = [*runs.attrs[DAMAGED]]
    for row in runs[runs["changed"] != ""].itertuples():
        reason = f"{row.changed} changed after the run finished, as its {STATUS} shows"
        left_out.append(f"{row.folder}: {reason}")
    for line in left_out:
        log.warning("left out: %s", line)
    runs = runs[runs["study"].isin(studies) & (runs["changed"] == "")]
    if runs.empty:
        names = ", ".join(sorted(studies))
        raise FileNotFoundError(f"{folder} holds no runs of the studies {names}")
    rows = named(runs).to_dict("records")
    table = table_of([_facts(row) for row in rows])
    empty = [column for column in table if table[column].isna().all()]
    table = table.drop(columns=[column for column in empty if not is_own_column(column)])
    return Summaries(table.sort_values(_RUN_ORDER), _history(rows), tuple(left_out))


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run in the summaries."""
    provenance = read_json(Path(row["folder"]) / "provenance.json")
    diff = provenance.get("diff")
    facts = {key: row[key] for key in (*_FACTS, "settings")}
    facts["torch"] = provenance.get("environment", {}).get("torch")
    facts["hardware"] = provenance.get("processor")
    facts["commit"] = provenance.get("commit")
    facts["modified"] = None if diff is None else bool(diff)
    facts["began"] = provenance.get("began")
    return facts | {key: value for key, value in row.items() if _kept(key)}


def _history(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The measured steps of some runs."""
    first = ["study", "fingerprint", "arm", "seed"]
    histories = []
    for row in rows:
        history = load_history(row["folder"])
        if not history.empty:
            histories.append(history.assign(**{key: row[key] for key in first}))
    columns = [*first, "step"]
    if not histories:
        return pd.DataFrame(columns=columns)
    history = pd.concat(histories, ignore_index=True).sort_values([*_RUN_ORDER, "step"])
    return history[[*columns, *sorted(history.columns.difference(columns))]]


def merged(before: Summaries, more: Summaries) -> Summaries:
    """Summaries with further runs.

    A run that is in both, with equal study and fingerprint, is taken from ``more``. An arm that is
    in both keeps its name from ``before``.
    """
    more = _with_names_of(before, more)
    key = ["study", "fingerprint"]
    again = set(_rows(more.runs[key]))

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        return table[[run not in again for run in _rows(table[key])]]

    runs = pd.concat([kept(before.runs), more.runs], ignore_index=True)
    history = pd.concat([kept(before.history), more.history], ignore_index=True)
    return Summaries(
        runs.sort_values(_RUN_ORDER),
        history.sort_values([*_RUN_ORDER, "step"]),
    )


def _with_names_of(before: Summaries, more: Summaries) -> Summaries:
    """``more``, with its arms renamed to match ``before``.

    An arm that is also in ``before`` takes its name from there. If a new arm has the same name as
    another arm of ``before``, the settings in which the two differ are added to its name.
    """
    columns = ["study", "settings", "arm"]
    names = {(study, settings): name for study, settings, name in _rows(before.runs[columns])}
    known = {(study, name): settings for (study, settings), name in names.items()}
    arms = []
    for study, settings, name in _rows(more.runs[columns]):
        if (study, settings) in names:
            arms.append(names[study, settings])
        elif (study, name) in known:
            other = known[study, name]
            both = label_arms({"other": (other, name), "new": (settings, name)})
            arms.append(both["new"])
        else:
            arms.append(name)
    runs = more.runs.assign(arm=arms)
    of_run = dict(zip(_rows(runs[["study", "fingerprint"]]), arms, strict=True))
    history = more.history.copy()
    history["arm"] = [of_run[run] for run in _rows(history[["study", "fingerprint"]])]
    return Summaries(runs, history, more.left_out)


def summaries_in(
    folder: Path,
    declarations: Iterable[Declaration],
    fallback: Path | None = None,
) -> Summaries:
    """The summaries of a folder, or of the runs in it.

    Args:
        folder: A folder of summaries, or of runs.
        declarations: The files of claims whose studies are summarised.
        fallback: A folder of summaries to read if ``folder`` holds no runs of these studies.

    Raises:
        FileNotFoundError: The folder holds no runs of these studies, and there is no fallback.
    """
    if (folder / RUNS).is_file():
        return read_summaries(folder)
    try:
        return collect(folder, set().union(*(file.studies for file in declarations)))
    except FileNotFoundError:
        if fallback is None:
            raise
        return read_summaries(fallback)


def _exact(value: float) -> str | None:
    """A setting as text that reads back as the same number."""
    if value != value:
        return None
    short = f"{value:.7g}"
    return short if float(short) == value else repr(float(value))


def _kept(column: str) -> bool:
    """Whether a column of the runs is part of the summaries."""
    if column.startswith(CONFIG):
        known = key_of(column.removeprefix(CONFIG))
        return known is not None and known.role in (NUMBERS, CADENCE)
    return column.startswith(("final/", "early/"))
