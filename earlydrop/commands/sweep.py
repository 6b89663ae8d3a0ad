"""Sweeps: what a multirun notes of its jobs, its progress, and the end of its workers. Light: Hydra loads this before any job starts."""

from __future__ import annotations

import json
import math
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

from earlydrop.commands import duration
from earlydrop.training.record.failures import process_runs
from earlydrop.training.record.files import replace, why

_SWEEP = "EARLYDROP_SWEEP"
"""In the environment of a sweep's processes, as JSON: its process, number of jobs, start, and the folder where done jobs are noted."""
_HEARTBEAT, _GRACE = 1.0, 8.0  # seconds


class Done(NamedTuple):
    """A job of a sweep that has ended: the folder of its study, if its configuration got so far, and whether it failed."""

    study: str | None
    failed: bool


class SweepCallback(Callback):
    """Notes a multirun's process and its number of jobs, and refuses a folder that cannot be written before any job starts."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SystemExit("error: a sweep starts its own jobs: give each run to torchrun, or use hydra/launcher=slurm")
        if config.mode == "plan":
            from earlydrop.commands.grid import plan_grid

            raise SystemExit(plan_grid(config))  # no job starts, and no folder is made
        chooses = not str(config.hydra.sweeper.get("_target_", "")).endswith("BasicSweeper")
        if chooses and config.get("objective") is None:
            raise SystemExit(
                "error: this sweeper chooses its runs by what earlier ones gave: say which metric with objective=, such as "
                "objective=test/accuracy hydra.sweeper.direction=maximize"
            )
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise SystemExit(f"error: out: {folder} cannot be written ({why(error)}): give another folder with out=") from None
        try:
            params = dict(config.hydra.sweeper.params or {})
            jobs: int | None = (
                config.hydra.sweeper.get("n_trials") if chooses else count_jobs(params, list(config.hydra.overrides.task))
            )
        except HydraException:  # model=glob(*): the options are not known yet
            jobs = None
        notes = tempfile.mkdtemp(prefix=".sweep-", dir=folder.resolve())  # where the jobs see it, on whatever node they run
        os.environ[_SWEEP] = json.dumps({"pid": os.getpid(), "jobs": jobs, "start": time.time(), "notes": notes})


def _sweep() -> dict[str, Any] | None:
    text = os.environ.get(_SWEEP)
    sweep: dict[str, Any] | None = json.loads(text) if text else None
    return sweep if sweep is not None and Path(sweep["notes"]).is_dir() else None


def identity() -> str:
    """What the running sweep is called among others: its process and its start."""
    sweep = _sweep()
    return f"{sweep['pid']}-{sweep['start']:.0f}" if sweep is not None else f"{os.getpid()}-0"


def become_worker() -> None:
    """Where SLURM gives a job several tasks, be one of the workers of its run, as torchrun would have said it."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if "WORLD_SIZE" not in os.environ and JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def is_first_worker() -> bool:
    """Whether this process notes what becomes of its job."""
    return os.environ.get("RANK", "0") == "0"


def count_jobs(params: dict[str, Any], overrides: list[str]) -> int:
    """How many jobs Hydra's basic sweeper makes of its own parameters and the command line's, which win.

    >>> count_jobs({"seed": "0,1,2"}, ["schedule=none,early", "seed=5", "trainer.epochs=1"])
    2
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()] + overrides)
    sizes = {o.key_or_group: sum(1 for _ in o.sweep_iterator()) if o.is_sweep_override() else 1 for o in parsed}
    return math.prod(sizes.values())


def note_done(job: int, done: Done) -> str | None:
    """Note that a job of the running sweep has ended; say the sweep's progress in words, if there is a sweep."""
    sweep = _sweep()
    if sweep is None:
        return None
    notes = Path(sweep["notes"])
    (notes / f"{job}.tmp").write_text(json.dumps(done), encoding="utf-8")
    replace(notes / f"{job}.tmp", notes / f"{job}.json")
    total, ended, elapsed = sweep["jobs"], len(list(notes.glob("*.json"))), time.time() - sweep["start"]
    if total is None:
        return f"sweep: {ended} jobs done in {duration(elapsed)}"
    left = elapsed / ended * (total - ended)
    return f"sweep: {ended} of {total} jobs done in {duration(elapsed)}" + (
        f", about {duration(left)} left" if ended < total else ""
    )


def finish() -> list[Done] | None:
    """End the sweep that this process launched: what was noted of its jobs; None if it launched none."""
    sweep = _sweep()
    if sweep is None or sweep["pid"] != os.getpid():
        return None
    notes = Path(sweep["notes"])
    done = [Done(*json.loads(path.read_text(encoding="utf-8"))) for path in sorted(notes.glob("*.json"))]
    shutil.rmtree(notes, ignore_errors=True)
    del os.environ[_SWEEP]
    return done


def end_workers(kill: bool) -> None:
    """End joblib's workers: at once, or each when it has nothing left to do, while this process goes on.

    Else Python's exit waits for them: after a Ctrl-C that joblib does not see, for as long as they have runs to do.
    """
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    executor = getattr(loky, "_executor", None)
    if executor is not None:
        executor.shutdown(wait=False, kill_workers=kill)


def end_with_parent() -> None:
    """In a worker of a sweep: when the process that launched the sweep is gone, save, stop, and begin nothing more."""
    sweep = _sweep()
    name = "earlydrop-heartbeat"
    if sweep is None or sweep["pid"] == os.getpid() or any(thread.name == name for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == sweep["pid"] and process_runs(sweep["pid"]):  # on Windows the number of the parent stays
            time.sleep(_HEARTBEAT)
        if sys.platform == "win32":  # where os.kill would end this process at once
            signal.raise_signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # a run in training saves and stops
        time.sleep(_GRACE)
        os._exit(143)

    if os.getppid() == sweep["pid"]:  # not with launchers whose jobs are no children
        threading.Thread(target=watch, name=name, daemon=True).start()
