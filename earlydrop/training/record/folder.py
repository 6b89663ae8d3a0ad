"""A run's folder: its lock, status, exact metrics, timing and configuration.

Every write is atomic, or is cut back on resume.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from earlydrop.training.config import Config
from earlydrop.training.fields import ConfigError
from earlydrop.training.keys import keys, upgraded
from earlydrop.training.names import first_line
from earlydrop.training.record.files import remove, why, write_atomically

log = logging.getLogger(__name__)

STATUS = "status.json"
STATES = ("running", "finished", "interrupted", "failed")
"""The states in a run's status."""
TIMING = "timing.jsonl"
RECORDS = ("config.yaml", "provenance.json", "metrics.jsonl", TIMING)
"""The files whose digests a finished run's status holds."""
_LONGEST_NAME = "checkpoints/step-000000000.sha256.tmp"  # a run's longest record


class RunFolder:
    """The folder of one run, held by one process at a time.

    Args:
        path: The folder; made if it is not there.
        wait: Whether to wait for another process that works in it, as two jobs of one sweep with
            the same configuration must.

    Raises:
        ConfigError: The folder cannot be written, or another process works in it.
    """

    def __init__(self, path: Path, wait: bool = False) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(path / ".lock", timeout=-1 if wait else 0)
            self._lock.acquire()
            # A path that is too long is refused now, not at the first checkpoint.
            trial = path / ("-" * len(_LONGEST_NAME))
            trial.touch()
            remove(trial)
        except filelock.Timeout:
            raise ConfigError(
                f"another process is working in {path}: wait for it, or give this run another "
                "seed, study or out="
            ) from None
        except OSError as error:
            raise ConfigError(
                f"out: {path} cannot be written ({why(error)}): give another folder with out="
            ) from error
        self._metrics: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def close(self) -> None:
        """Close ``metrics.jsonl`` and release the lock."""
        if self._metrics is not None:
            try:
                self._metrics.close()
            except OSError as error:
                # A full disk: the line that did not fit is cut off at the next start.
                log.warning("metrics.jsonl could not be closed: %s", error)
            self._metrics = None
        self._lock.release()

    def write_status(self, state: str, step: int, total: int, reason: str | None = None) -> None:
        """Write ``status.json``.

        Args:
            state: One of `STATES`.
            step: Optimizer steps done.
            total: Optimizer steps of the run.
            reason: Why it failed.
        """
        status: dict[str, Any] = {
            "state": state,
            "step": step,
            "total_steps": total,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "pid": os.getpid(),
        }
        if reason is not None:
            status["reason"] = reason
        if state == "finished":
            status["files"] = {name: _digest(self.path / name) for name in RECORDS}
        write_atomically(self.path / STATUS, (json.dumps(status, indent=1) + "\n").encode())

    def write_config(self, config: Config) -> None:
        """Write ``config.yaml``, resolved and complete."""
        from omegaconf import OmegaConf

        text = OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
        write_atomically(self.path / "config.yaml", text.encode())

    def start_over(self) -> None:
        """Remove an earlier run's records.

        The status goes first, so that a partly removed run does not count as finished.
        """
        (self.path / STATUS).unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        for name in RECORDS:
            (self.path / name).unlink(missing_ok=True)

    def open_metrics(self, keep: int, digest: str | None = None) -> None:
        """Open ``metrics.jsonl`` after its first ``keep`` bytes, and cut off the rest.

        Raises:
            ConfigError: The file is shorter, or the SHA-256 of these bytes is not ``digest``, which
                the checkpoint holds.
        """
        path = self.path / "metrics.jsonl"
        path.touch()
        start = path.read_bytes()[:keep]
        self._hash = hashlib.sha256(start)
        if len(start) < keep or digest not in (None, self._hash.hexdigest()):
            raise ConfigError(
                f"{path} was changed after its checkpoint was written: restore it, or start over "
                "with resume=never"
            )
        os.truncate(path, keep)
        self._metrics = path.open("ab")
        timing = self.path / TIMING
        if timing.is_file():  # a line that a full disk cut short
            os.truncate(timing, timing.read_bytes().rfind(b"\n") + 1)

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics measured after ``step`` optimizer steps to ``metrics.jsonl``."""
        if self._metrics is None:
            raise RuntimeError("open_metrics first")
        line = (json.dumps({"step": step} | metrics) + "\n").encode()
        self._metrics.write(line)
        self._metrics.flush()
        self._hash.update(line)

    def metrics_state(self) -> dict[str, Any]:
        """Flush ``metrics.jsonl`` to the disk, and return its size and SHA-256 for a checkpoint."""
        if self._metrics is None:
            return {"metrics_bytes": 0, "metrics_sha256": hashlib.sha256().hexdigest()}
        os.fsync(self._metrics.fileno())
        return {"metrics_bytes": self._metrics.tell(), "metrics_sha256": self._hash.hexdigest()}

    def write_timing(self, record: dict[str, float]) -> None:
        """Append one line to ``timing.jsonl``."""
        with (self.path / TIMING).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class DamagedFileError(ConfigError):
    """A file of a run is damaged or changed; the message names it."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty if there is no such file.

    Raises:
        DamagedFileError: The file is not JSON, or holds something else than a mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: it is no JSON") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged: it holds {str(content)[:40]!r}, not a mapping")
    return content


def read_provenance(folder: Path) -> dict[str, Any]:
    """A run's ``provenance.json``, with everything that is needed to cite and to repeat the run.

    Raises:
        DamagedFileError: It is missing or damaged.
    """
    path = folder / "provenance.json"
    content = read_json(path)
    needed = ("earlydrop", "commit", "fingerprint", "arm", "environment")
    missing = [key for key in needed if key not in content]
    if missing:
        raise DamagedFileError(f"{path} is missing or damaged: it has no {', '.join(missing)}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """A run's ``config.yaml`` as nested plain values; nothing in it is interpolated.

    Raises:
        DamagedFileError: It is missing or damaged.
    """
    import yaml

    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DamagedFileError(f"{path} is missing or damaged: {first_line(error)}") from error
    content = upgraded(content) if isinstance(content, dict) else content
    groups = {key.split(".")[0] for key in keys() if "." in key}
    whole = isinstance(content, dict)
    if not whole or not all(isinstance(content.get(group, {}), dict) for group in groups):
        raise DamagedFileError(f"{path} is damaged: it is no configuration of a run")
    return content


def read_status(folder: Path) -> dict[str, Any]:
    """A run's ``status.json``; empty if missing or damaged: its checkpoints say how far it is."""
    try:
        status = read_json(folder / STATUS)
    except DamagedFileError as error:
        log.warning("%s: going by the checkpoints", error)
        return {}
    return status


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The complete lines of a ``metrics.jsonl``; empty if there is no such file.

    Raises:
        DamagedFileError: A line is damaged.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        record = _record(line)
        if record is None:
            raise DamagedFileError(f"{path} is damaged: line {number} is {line[:40]!r}")
        records.append(record)
    return records


def read_timing(path: Path) -> list[dict[str, float]]:
    """The readable lines of a ``timing.jsonl``; a damaged one is left out."""
    if not path.is_file():
        return []
    needed = {"step", "seconds", "images_per_second"}
    records = []
    for line in path.read_bytes().split(b"\n"):
        record = _record(line)
        if record is not None and needed <= record.keys():
            records.append(record)
    return records


def _record(line: bytes) -> dict[str, float] | None:
    """A line's names and numbers, with its step; None if it is anything else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or "step" not in record:
        return None
    return record if all(type(value) in (int, float) for value in record.values()) else None


def changed_files(folder: Path) -> list[str]:
    """Files of a finished run that differ from the digests in its status; none without digests.

    Raises:
        DamagedFileError: The status is not JSON, or is not a mapping.
    """
    written = read_json(folder / STATUS).get("files", {})
    return (
        [name for name, digest in written.items() if _digest(folder / name) != digest]
        if isinstance(written, dict)
        else [STATUS]
    )


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
