"""Trackers beside Weights & Biases: CSV files, TensorBoard and MLflow.

Each class has what `earlydrop.training.record.tracking.Tracker` calls on a run: ``log``,
``summary.update`` and ``finish``. A resumed run is written again from its first step, because
`Tracker.replay` logs the earlier steps again.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from earlydrop.training.config import Config
from earlydrop.training.keys import keys
from earlydrop.training.record.files import remove


class Opened(NamedTuple):
    """The arguments of a tracker.

    Attributes:
        config: The run's configuration.
        folder: The run's folder.
        name: The run's name on the dashboard.
        identity: The run's id, from `earlydrop.training.record.tracking.run_id`.
        job_type: The sort of run, such as ``"train"``.
        tags: Labels of the run.
        extra: Values that are recorded with the configuration.
    """

    config: Config
    folder: Path
    name: str
    identity: str
    job_type: str
    tags: list[str]
    extra: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """The configuration, by dotted key, and the extra values."""
        return {name: key.of(self.config) for name, key in keys().items()} | self.extra


def missing(backend: str) -> bool:
    """Whether the package of a backend, which has its name, is not installed."""
    spec = importlib.util.find_spec(backend)
    return spec is None or spec.origin is None  # a plain folder of this name is no package


class Summary:
    """Passes the final values of a run on to a function."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        self.update = write


class CsvRun:
    """``metrics.csv``, with a row for each measured step; ``summary.csv``, with final values."""

    def __init__(self, opened: Opened) -> None:
        self._path = opened.folder / "metrics.csv"
        self._summary = opened.folder / "summary.csv"
        self._columns = ["step"]
        self._rows: list[dict[str, Any]] = []
        remove(self._summary)
        self._write_all()
        self.summary = Summary(self._summarise)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        row = {"step": step, **values}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._write_all()
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _write_all(self) -> None:
        with self._path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)

    def _summarise(self, values: Mapping[str, Any]) -> None:
        with self._summary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("name", "value"), *values.items()])

    def finish(self, exit_code: int) -> None:
        """Every row is in its file already."""


class TensorBoardRun:
    """Event files in ``tensorboard/``, for ``tensorboard --logdir runs``."""

    def __init__(self, opened: Opened) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = opened.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer: Any = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]
        self._writer.add_text(
            "settings", "\n".join(f"    {key}: {value}" for key, value in opened.settings().items())
        )
        self._step = 0
        self.summary = Summary(self._summarise)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _summarise(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, self._step)
            else:
                self._writer.add_text(name, str(value))

    def finish(self, exit_code: int) -> None:
        self._writer.close()


class MlflowRun:
    """A run of MLflow, in ``mlruns/`` beside the study's runs.

    With ``tracking=online`` it is on the server of MLFLOW_TRACKING_URI.

    MLflow's client is used, not its module ``mlflow``, so that a user's active run is left alone.
    """

    def __init__(self, opened: Opened) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        project, online = opened.config.project, opened.config.tracking.mode == "online"
        here = (opened.folder.parent / "mlruns").resolve()
        self._metric = Metric
        self._client: Any = MlflowClient(
            tracking_uri=os.environ["MLFLOW_TRACKING_URI"] if online else here.as_uri()
        )
        lock = opened.folder.parent / ".mlflow.lock"  # jobs of a sweep begin at once
        with filelock.FileLock(lock):
            existing = self._client.get_experiment_by_name(project)
            if existing is not None:
                experiment = existing.experiment_id
            else:
                experiment = self._client.create_experiment(project)
        before = self._client.search_runs(
            [experiment], f"tags.`earlydrop.id` = '{opened.identity}'"
        )
        for run in before:  # its past is logged again
            self._client.delete_run(run.info.run_id)
        tags = {
            "earlydrop.id": opened.identity,
            "earlydrop.folder": str(opened.folder),
            "tags": ", ".join(opened.tags),
        }
        self._id = self._client.create_run(experiment, run_name=opened.name, tags=tags).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in opened.settings().items()]
        self._client.log_batch(self._id, params=params)
        self._step = 0
        self.summary = Summary(self._summarise)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._step = step
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[self._metric(name, float(value), now, step) for name, value in values.items()],
        )

    def _summarise(self, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.log(numbers, self._step)
        for name, value in values.items():
            if name not in numbers:
                self._client.set_tag(self._id, name, str(value))

    def finish(self, exit_code: int) -> None:
        self._client.set_terminated(self._id, "FINISHED" if exit_code == 0 else "FAILED")


BACKENDS: dict[str, type[CsvRun] | type[TensorBoardRun] | type[MlflowRun]] = {
    "csv": CsvRun,
    "tensorboard": TensorBoardRun,
    "mlflow": MlflowRun,
}
"""The class of each backend except W&B."""
