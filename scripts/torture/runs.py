"""Reading what a run left, to compare it with another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from kill_resume import same

PARTS = (
    "metrics.jsonl",
    "config.yaml",
    "provenance.json",
    "status.json",
    "timing.jsonl",
    "log.txt",
)


def run_folders(out: Path) -> dict[str, Path]:
    """The run folders below a folder, by their path in it."""
    return {
        str(path.parent.relative_to(out)): path.parent for path in sorted(out.rglob("checkpoints"))
    }


def state_of(folder: Path) -> str:
    """The state in ``status.json``; empty if it cannot be read."""
    try:
        return str(json.loads((folder / "status.json").read_text())["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def weights(folder: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    return torch.load(max((folder / "checkpoints").glob("step-*.pt")), weights_only=True)


def difference(folder: Path, reference: Path) -> str | None:
    """The difference of a run from a finished reference, to the byte; None if there is none."""
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if missing:
        return f"{', '.join(missing)} missing"
    if state_of(folder) != "finished":
        return f"its state is {state_of(folder)!r}"
    if (folder / "metrics.jsonl").read_bytes() != (reference / "metrics.jsonl").read_bytes():
        return "metrics.jsonl has other bytes than the undisturbed run's"
    try:
        for line in (folder / "timing.jsonl").read_text().splitlines():
            json.loads(line)
    except ValueError:
        return "timing.jsonl holds a line that is not JSON"
    try:
        equal = same(weights(folder), weights(reference))
    except Exception as error:  # whatever a torn file makes of torch.load
        return f"its checkpoint cannot be read: {error}"
    return None if equal else "its weights are not the undisturbed run's"


def differences(out: Path, reference: Path) -> list[str]:
    """The same for all the runs below two folders."""
    ours, theirs = run_folders(out), run_folders(reference)
    lines = [f"{name} is missing" for name in theirs if name not in ours]
    for name in sorted(ours.keys() & theirs.keys()):
        words = difference(ours[name], theirs[name])
        if words is not None:
            lines.append(f"{name}: {words}")
    return lines
