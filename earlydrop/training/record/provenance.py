"""Provenance: versions, hardware, data and code of a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import earlydrop
from earlydrop.training.data.extra import extra_record
from earlydrop.training.device import determinism_settings
from earlydrop.training.fields import ConfigError
from earlydrop.training.models.pretrained import pretrained_digest
from earlydrop.training.outside import code_record
from earlydrop.training.record.files import write_atomically
from earlydrop.training.record.folder import DamagedFileError, RunFolder, read_json

if TYPE_CHECKING:
    from earlydrop.training.plan import Plan


def _git(*arguments: str) -> str | None:
    """Output of a git command in the package's checkout; None without one, or if git fails."""
    root = Path(earlydrop.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def processor(device: torch.device) -> str:
    """The name of the GPU or the processor.

    For example ``"AMD EPYC 7B13"``.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip() or platform.machine()
    return platform.processor() or platform.machine()


def environment(device: torch.device, workers: int = 1) -> dict[str, Any]:
    """The parts of the environment that are compared when a run is resumed.

    They can change the last bits of its results.

    Args:
        device: Where it runs.
        workers: How many processes share it.

    Returns:
        Device, thread count and torch version; the number of workers, if there are several. On a
        GPU, the versions of CUDA, cuDNN, NCCL and the driver instead of the thread count, which
        does not affect the bits there.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    bits: dict[str, Any] = {"device": f"{device.type} {name}"}
    if device.type != "cuda":
        bits["threads"] = torch.get_num_threads()
    bits["torch"] = str(torch.__version__)
    if device.type == "cuda":
        bits |= _cuda_versions()
    return bits | ({"workers": workers} if workers > 1 else {})


def check_environment(
    folder: Path, recorded: Mapping[str, Any], present: Mapping[str, Any]
) -> None:
    """Refuse to resume a run if the environment has changed since its last checkpoint."""
    if recorded == present:
        return
    if_left_out = {"workers": 1}
    differing = []
    for key in {**present, **recorded}:
        if recorded.get(key) != present.get(key):
            there = recorded.get(key, if_left_out.get(key))
            here = present.get(key, if_left_out.get(key))
            differing.append(f"{key} {there} there, {here} here")
    raise ConfigError(
        f"{folder} was last saved in another environment ({'; '.join(differing)}), so the last "
        "bits may differ: resume it there, resume it here with resume=force, or start over with "
        "resume=never"
    )


def _cuda_versions() -> dict[str, Any]:
    """CUDA (or ROCm), cuDNN, NCCL and the driver; None for one that is missing."""
    nccl = (
        ".".join(map(str, torch.cuda.nccl.version()))
        if torch.distributed.is_nccl_available()
        else None
    )
    return {
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": nccl,
        "driver": driver_version(),
    }


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of NVIDIA's driver, such as ``"550.54.15"``; None without one.

    It is read from the kernel, or from ``nvidia-smi``.
    """
    if file.is_file():
        match = re.search(
            r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s",
            file.read_text(encoding="utf-8", errors="replace"),
        )
        if match is not None:
            return match[1]
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def write_provenance(plan: Plan, folder: RunFolder, workers: int = 1) -> None:
    """Write ``provenance.json`` and ``config.yaml``. A resumed run keeps its own.

    If ``data.extra`` (the further test sets) has changed when a run is resumed,
    ``provenance.json`` takes the new value, and ``config.yaml`` is written again as a whole. A run
    is measured on these sets only at its end.
    """
    extra = extra_record(plan.source.extra) if plan.config.data.extra else {}
    recorded: dict[str, Any] = {}
    with suppress(DamagedFileError):
        recorded = read_json(folder.path / "provenance.json")
    if recorded and (recorded.get("data") or {}).get("extra", {}) != extra:
        folder.write_config(plan.config)
        recorded["data"] = (recorded.get("data") or {}) | {"extra": extra}
        _write(folder, recorded)
    if not (folder.path / "config.yaml").is_file():
        folder.write_config(plan.config)
    if not (folder.path / "provenance.json").is_file():
        content = collect(plan.device, plan.fingerprint, plan.source.digest, workers)
        content["arm"] = plan.name
        content["data"] = {
            "classes": int(plan.source.classes),
            "images": {split: int(count) for split, count in plan.source.sizes.items()},
            "steps_per_epoch": plan.steps_per_epoch,
        } | ({"extra": extra} if extra else {})
        if plan.config.trainer.deterministic:
            content["deterministic"] = determinism_settings()
        if plan.code:
            content |= {"code": code_record(plan.code), "configuration": plan.configuration}
        if plan.config.model.pretrained is not None:
            content["pretrained"] = {
                "file": plan.config.model.pretrained,
                "sha256": pretrained_digest(plan.config.model.pretrained),
            }
        _write(folder, content)


def _write(folder: RunFolder, content: dict[str, Any]) -> None:
    write_atomically(
        folder.path / "provenance.json", (json.dumps(content, indent=1) + "\n").encode()
    )


def collect(
    device: torch.device, fingerprint: str, dataset_digest: str, workers: int = 1
) -> dict[str, Any]:
    """Versions, commit, packages, hardware and data of a run."""
    diff = _git("diff", "HEAD")
    return {
        "fingerprint": fingerprint,
        "earlydrop": earlydrop.__version__,
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": (_git("rev-parse", "HEAD") or "").strip() or None,
        "diff": diff if diff is None or len(diff) < 100_000 else diff[:100_000] + "\n[cut]",
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor(device),
        "cpu_count": os.cpu_count(),
        "environment": environment(device, workers),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "dataset_digest": dataset_digest,
        "packages": _packages(),
        "command": sys.argv,
    }


def _packages() -> dict[str, str]:
    """The version of each installed package. The remains of a broken installation are left out."""
    versions = {}
    for package in importlib.metadata.distributions():
        metadata = package.metadata
        if metadata is not None and metadata["Name"] and metadata["Version"]:
            versions[metadata["Name"]] = metadata["Version"]
    return dict(sorted(versions.items()))
