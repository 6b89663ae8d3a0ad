"""A run's folder: its lock, status, exact metrics, timing and configuration. Every write is atomic or cut back on resume."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from earlydrop.training.config import Config, ConfigError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or the next start, sees either the old content or all of the new.

    Args:
        path: The file.
        content: Its new content.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        path: The folder; made if it is not there.
        wait: Whether to wait for another process that works in it, as two jobs of one sweep with the same configuration must.

    Raises:
        ConfigError: The folder cannot be written, or another process works in it.
    """

    def __init__(self, path: Path, wait: bool = False) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(path / ".lock", timeout=-1 if wait else 0)
            self._lock.acquire()
        except filelock.Timeout:
            raise ConfigError(
                f"another process is working in {path}: wait for it, or give this run another seed, study or out="
            ) from None
        except OSError as error:
            raise ConfigError(
                f"out: {path} cannot be written ({error.strerror or error}): give another folder with out="
            ) from error
        self._metrics: BinaryIO | None = None

    def close(self) -> None:
        """Let go of the folder."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self._lock.release()

    def write_status(self, state: str, step: int, total: int, reason: str | None = None) -> None:
        """Write ``status.json``.

        Args:
            state: ``running``, ``finished``, ``interrupted`` or ``failed``.
            step: Optimizer steps done.
            total: Optimizer steps of the run.
            reason: Why it failed.
        """
        status = {
            "state": state,
            "step": step,
            "total_steps": total,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "pid": os.getpid(),
        }
        if reason is not None:
            status["reason"] = reason
        write_atomically(self.path / "status.json", (json.dumps(status, indent=1) + "\n").encode())

    def write_config(self, config: Config) -> None:
        """Write ``config.yaml``, resolved and complete.

        Args:
            config: The run's configuration.
        """
        from omegaconf import OmegaConf

        text = OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
        write_atomically(self.path / "config.yaml", text.encode())

    def open_metrics(self, keep: int) -> None:
        """Open ``metrics.jsonl`` to go on behind its first ``keep`` bytes; the rest is cut off.

        Args:
            keep: Bytes that belong to the steps done, 0 for a new run.

        Raises:
            ConfigError: The file is shorter than that.
        """
        path = self.path / "metrics.jsonl"
        path.touch()
        size = path.stat().st_size
        if size < keep:
            raise ConfigError(f"{path} has {size} bytes, its checkpoint says {keep}: it was changed; start over with resume=never")
        os.truncate(path, keep)
        self._metrics = path.open("ab")

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to ``metrics.jsonl``.

        Args:
            step: Optimizer steps done.
            metrics: What was measured there.

        Raises:
            RuntimeError: `open_metrics` was not called.
        """
        if self._metrics is None:
            raise RuntimeError("open_metrics first")
        self._metrics.write((json.dumps({"step": step} | metrics) + "\n").encode())
        self._metrics.flush()

    def metrics_size(self) -> int:
        """Bytes of ``metrics.jsonl``, all of them on the disk.

        Returns:
            The size, 0 if nothing is open.
        """
        if self._metrics is None:
            return 0
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def write_timing(self, record: dict[str, float]) -> None:
        """Append one line to ``timing.jsonl``.

        Args:
            record: Step, throughput and times.
        """
        with (self.path / "timing.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that may not be there.

    Args:
        path: The file.

    Returns:
        Its content, or an empty dictionary.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read ``metrics.jsonl``; a last line that is not complete yet is left out.

    Args:
        path: The file.

    Returns:
        One dictionary a line.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]
