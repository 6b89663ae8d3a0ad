"""Sweeps: notes of a multirun's jobs, its progress, and the end of its workers.

Hydra imports this before any job starts, so it imports little.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from hydra.experimental.callback import Callback

from earlydrop.commands.grid import jobs_of, plan_grid
from earlydrop.training.names import format_duration
from earlydrop.training.record.failures import process_runs
from earlydrop.training.record.files import replace, why

_SWEEP = "EARLYDROP_SWEEP"
"""The environment variable that describes a sweep to its processes, in JSON.

It holds the id of the process that launched the sweep, the number of jobs, the start time in
seconds, and the folder where ended jobs are noted.
"""
_HEARTBEAT, _GRACE = 1.0, 8.0  # seconds


class EndedJob(NamedTuple):
    """A job of a sweep that has ended.

    Attributes:
        study: The folder of its study, whose report is written at the end. None if the job neither
            trained nor failed, or if its configuration could not be read.
        failed: Whether it failed.
    """

    study: str | None
    failed: bool


class SweepCallback(Callback):
    """Notes a multirun's process and jobs, and refuses a folder that cannot be written."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Check and note a sweep before any job starts.

        Args:
            config: The sweep's configuration, with Hydra's own.
            **kwargs: Hydra's, not used.

        Raises:
            SystemExit: The sweep cannot run, or is only planned.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            given = f"WORLD_SIZE is {os.environ['WORLD_SIZE']}"
            instead = "run each job with torchrun, or use hydra/launcher=slurm"
            raise SystemExit(f"error: {given}: a sweep starts its own jobs; {instead}")
        if config.mode == "plan":
            raise SystemExit(plan_grid(config))  # no job starts, and no folder is made
        chooses = not str(config.hydra.sweeper.get("_target_", "")).endswith("BasicSweeper")
        if chooses and config.get("objective") is None:
            raise SystemExit(
                "error: this sweeper chooses its runs from the results of earlier ones: say which "
                "metric with objective=, such as objective=test/accuracy "
                "hydra.sweeper.direction=maximize"
            )
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            reason = f"{folder} cannot be written ({why(error)})"
            raise SystemExit(f"error: out: {reason}: give another folder with out=") from None
        try:
            jobs = config.hydra.sweeper.get("n_trials") if chooses else len(jobs_of(config))
        except HydraException:  # the sweeper shows the error
            jobs = None
        notes = tempfile.mkdtemp(prefix=".sweep-", dir=folder.resolve())  # jobs on all nodes see it
        sweep = {"pid": os.getpid(), "jobs": jobs, "start": time.time(), "notes": notes}
        os.environ[_SWEEP] = json.dumps(sweep)


def _sweep() -> dict[str, Any] | None:
    """The running sweep that this process belongs to; None if there is none."""
    text = os.environ.get(_SWEEP)
    sweep: dict[str, Any] | None = json.loads(text) if text else None
    return sweep if sweep is not None and Path(sweep["notes"]).is_dir() else None


def identity() -> str:
    """A name of the running sweep that no other has: its process and its start."""
    sweep = _sweep()
    return f"{os.getpid()}-0" if sweep is None else f"{sweep['pid']}-{sweep['start']:.0f}"


def become_worker() -> None:
    """If SLURM gave a job several tasks, become one worker of its run, as under torchrun."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if "WORLD_SIZE" not in os.environ and JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def is_first_worker() -> bool:
    """Whether this process is the first worker of its job, which notes the job's end."""
    return os.environ.get("RANK", "0") == "0"


def note_done(job: int, done: EndedJob) -> str | None:
    """Note that a job of the running sweep has ended.

    Args:
        job: Its number.
        done: Its end.

    Returns:
        The sweep's progress in words; None if there is no sweep.
    """
    sweep = _sweep()
    if sweep is None:
        return None
    notes = Path(sweep["notes"])
    try:
        (notes / f"{job}.tmp").write_text(json.dumps(done), encoding="utf-8")
        replace(notes / f"{job}.tmp", notes / f"{job}.json")
    except OSError as error:
        print(f"error: the end of job {job} cannot be noted: {why(error)}", file=sys.stderr)
        return None
    total, elapsed = sweep["jobs"], time.time() - sweep["start"]
    ended = len(list(notes.glob("*.json")))
    if total is None:
        jobs = "job" if ended == 1 else "jobs"
        return f"sweep: {ended} {jobs} done in {format_duration(elapsed)}"
    seconds = elapsed / ended * (total - ended)
    left = f", about {format_duration(seconds)} left" if ended < total else ""
    return f"sweep: {ended} of {total} jobs done in {format_duration(elapsed)}{left}"


def finish() -> list[EndedJob] | None:
    """End the sweep that this process launched.

    Returns:
        The notes of its jobs; None if it launched no sweep.
    """
    sweep = _sweep()
    if sweep is None or sweep["pid"] != os.getpid():
        return None
    notes = Path(sweep["notes"])
    files = sorted(notes.glob("*.json"))
    done = [EndedJob(*json.loads(path.read_text(encoding="utf-8"))) for path in files]
    shutil.rmtree(notes, ignore_errors=True)
    del os.environ[_SWEEP]
    return done


def end_workers(kill: bool) -> None:
    """End joblib's workers, without waiting for them.

    Python would wait for the workers when it exits. After a Ctrl-C that joblib does not see, this
    wait would last until all runs are done.

    Args:
        kill: End them at once. Otherwise each ends when it has nothing left to do.
    """
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    executor = getattr(loky, "_executor", None)
    if executor is not None:
        executor.shutdown(wait=False, kill_workers=kill)


def end_with_parent() -> None:
    """In a worker of a sweep: save and stop when the process that launched the sweep is gone."""
    sweep = _sweep()
    name = "earlydrop-heartbeat"
    watched = any(thread.name == name for thread in threading.enumerate())
    if watched or sweep is None or os.getppid() != sweep["pid"]:
        return  # only child processes of the launcher are watched

    def watch() -> None:
        # on Windows the parent's number stays after its end
        while os.getppid() == sweep["pid"] and process_runs(sweep["pid"]):
            time.sleep(_HEARTBEAT)
        if sys.platform == "win32":  # where os.kill would end this process at once
            signal.raise_signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # a run in training saves and stops
        time.sleep(_GRACE)
        os._exit(143)

    threading.Thread(target=watch, name=name, daemon=True).start()
