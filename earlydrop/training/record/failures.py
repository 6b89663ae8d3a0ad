"""The jobs of a sweep that failed, each noted in a file of its own beside the runs."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_FOLDER = "failures"


def note_failure(study: Path, sweep: str, overrides: list[str], reason: str) -> None:
    """Note a failed job for the study's report.

    ``sweep`` begins with the id of the process that launched it. `forget_failures` removes the
    notes of sweeps that have ended.
    """
    digest = hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:12]
    path = study / _FOLDER / sweep / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"overrides": overrides, "reason": reason}) + "\n", encoding="utf-8")


def forget_failures(study: Path, sweep: str) -> None:
    """Remove the notes of sweeps that have ended, except those of ``sweep``.

    A sweep that was launched on another machine counts as ended, since its process is not here.
    """
    for folder in study.glob(f"{_FOLDER}/*"):
        if folder.is_file():  # as they were noted before each sweep had a folder
            folder.unlink(missing_ok=True)
        elif folder.name != sweep:
            process = folder.name.partition("-")[0]
            if not process.isdecimal() or not process_runs(int(process)):
                shutil.rmtree(folder, ignore_errors=True)


def process_runs(number: int) -> bool:
    """Whether there is a process of this number."""
    if sys.platform == "win32":  # where os.kill(number, 0) would send Ctrl-C
        kernel = ctypes.WinDLL("kernel32")
        handle = kernel.OpenProcess(0x1000, False, number)  # PROCESS_QUERY_LIMITED_INFORMATION
        code = ctypes.c_ulong()
        runs = (
            bool(handle)
            and bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code)))
            and code.value == 259  # STILL_ACTIVE
        )
        kernel.CloseHandle(handle)
        return runs
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def failures(study: Path) -> list[dict[str, Any]]:
    """``overrides`` and ``reason`` of each failed job of a study's last sweep and running ones."""
    notes = []
    for path in sorted(study.glob(f"{_FOLDER}/*/*.json")):
        try:
            notes.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            notes.append({"overrides": [str(path)], "reason": "this note of a failure is damaged"})
    return notes


def failure_lines(notes: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each reason, with its job, or the first of its jobs and the number of others."""
    jobs: dict[str, list[str]] = {}
    for failure in notes:
        jobs.setdefault(str(failure["reason"]), []).append(" ".join(failure["overrides"]))
    lines = []
    for reason, names in jobs.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"failed: {names[0]}{more}: {reason}")
    return lines
