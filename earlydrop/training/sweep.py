"""Sweeps: what a multirun leaves beside its runs. Light: Hydra loads this before any job starts."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

_running: Path | None = None


def running_sweep() -> Path | None:
    """The study folder of the multirun that this process launched.

    Returns:
        The folder, or None.
    """
    return _running


class SweepCallback(Callback):
    """Notes the study folder of a multirun, and forgets the failures of the sweep before."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        global _running
        if config.mode == "train":
            _running = Path(config.hydra.sweep.dir)
            shutil.rmtree(_running / "failures", ignore_errors=True)


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
