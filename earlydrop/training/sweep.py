"""Sweeps: what a multirun leaves beside its runs, and its progress. Light: Hydra loads this before any job starts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

_PROGRESS = "EARLYDROP_SWEEP_PROGRESS"  # in the environment of a sweep's processes: "<jobs> <start> <folder of done jobs>"

_running: Path | None = None


def running_sweep() -> Path | None:
    """The study folder of the multirun that this process launched.

    Returns:
        The folder, or None.
    """
    return _running


class SweepCallback(Callback):
    """Notes the study folder of a multirun and how many jobs it has, and forgets the failures of the sweep before."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        global _running
        if config.mode == "train":
            _running = Path(config.hydra.sweep.dir)
            shutil.rmtree(_running / "failures", ignore_errors=True)
            jobs = count_jobs(dict(config.hydra.sweeper.params or {}), list(config.hydra.overrides.task))
            os.environ[_PROGRESS] = f"{jobs} {time.time()} {tempfile.mkdtemp(prefix='earlydrop-sweep-')}"

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        words = os.environ.pop(_PROGRESS, "").split(" ", 2)
        if len(words) == 3:
            shutil.rmtree(words[2], ignore_errors=True)


def count_jobs(params: dict[str, Any], overrides: list[str]) -> int:
    """How many jobs Hydra's basic sweeper makes.

    Args:
        params: The sweeper's own parameters.
        overrides: The command line's, which win.

    Returns:
        The number of combinations.

    >>> count_jobs({"seed": "0,1,2"}, ["schedule=none,early", "seed=5", "trainer.epochs=1"])
    2
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()] + overrides)
    sizes = {o.key_or_group: sum(1 for _ in o.sweep_iterator()) if o.is_sweep_override() else 1 for o in parsed}
    return math.prod(sizes.values())


def note_done(job: int) -> str | None:
    """Note that a job of the running sweep has ended.

    Args:
        job: Its number.

    Returns:
        The sweep's progress in words; None outside a sweep.
    """
    words = os.environ.get(_PROGRESS, "").split(" ", 2)
    if len(words) != 3:
        return None
    folder = Path(words[2])
    if not folder.is_dir():
        return None
    (folder / str(job)).touch()
    total, done, elapsed = int(words[0]), len(list(folder.iterdir())), time.time() - float(words[1])
    left = elapsed / done * (total - done)
    return f"sweep: {done} of {total} jobs done in {_duration(elapsed)}" + (
        f", about {_duration(left)} left" if done < total else ""
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def note_failure(out: str, study: str, overrides: list[str], reason: str) -> None:
    """Note a job of a sweep that failed, for the sweep's table and exit code.

    Args:
        out: The output folder.
        study: The study.
        overrides: The job's command-line overrides.
        reason: The error.
    """
    digest = hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:12]
    path = Path(out) / study / "failures" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"overrides": overrides, "reason": reason}) + "\n")


def failures(folder: Path) -> list[dict[str, Any]]:
    """The jobs that failed in a study's last sweep.

    Args:
        folder: The study's folder.

    Returns:
        ``overrides`` and ``reason`` of each.
    """
    return [json.loads(path.read_text()) for path in sorted((folder / "failures").glob("*.json"))]
