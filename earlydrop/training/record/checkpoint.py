"""Checkpoints: written atomically with their hash; the last two are kept."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from earlydrop.training.fields import ConfigError
from earlydrop.training.names import first_line
from earlydrop.training.record.files import remove, write_atomically

log = logging.getLogger(__name__)

BEST = "best.pt"
_KEPT = 2  # checkpoints


def save_checkpoint(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write ``step-<step>.pt`` and its hash, and keep only the newest two checkpoints."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path = folder / f"step-{step:09d}.pt"
    write_atomically(path.with_suffix(".sha256"), hashlib.sha256(payload).hexdigest().encode())
    write_atomically(path, payload)
    for old in list_checkpoints(folder)[_KEPT:]:
        remove(old)  # a file that another process has open stays until the next checkpoint
        remove(old.with_suffix(".sha256"))
    for stale in folder.glob("*.tmp"):
        remove(stale)
    return path


def save_best(folder: Path, content: dict[str, Any]) -> None:
    """Write ``best.pt``, the weights at which the watched metric was best."""
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(folder / BEST, buffer.getvalue())


def load_best(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Load what `save_best` wrote for this configuration, on the CPU.

    None if there is no such file. Also None, with a warning, if it is damaged.
    """
    path = folder / BEST
    if not path.is_file():
        return None
    try:
        content = _content(path.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("%s is damaged (%s): the run has no best weights", path, first_line(error))
        return None
    return content if content["fingerprint"] == fingerprint else None


def _content(payload: bytes) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        ValueError: It is damaged. torch raises errors of many kinds for a damaged file.
    """
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(first_line(error)) from error
    if not isinstance(content, dict) or "fingerprint" not in content:
        raise ValueError("it is not a checkpoint of earlydrop")
    return content


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder.

    The newest is first.
    """
    return sorted(folder.glob("step-*.pt"), reverse=True)


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole.

    Args:
        folder: The ``checkpoints`` folder.
        fingerprint: The configuration that it must belong to.

    Returns:
        Its content on the CPU, or None if there is none.

    Raises:
        ConfigError: It belongs to another configuration.
    """
    for path in list_checkpoints(folder):
        try:
            payload = path.read_bytes()
            if (
                hashlib.sha256(payload).hexdigest()
                != path.with_suffix(".sha256").read_text(encoding="utf-8").strip()
            ):
                raise ValueError("its hash is not the one written beside it")
            content = _content(payload)
        except (OSError, ValueError) as error:
            log.warning("checkpoint %s is damaged (%s): looking for an older one", path, error)
            continue
        if content["fingerprint"] != fingerprint:
            raise ConfigError(
                f"checkpoint {path} belongs to configuration {content['fingerprint']}, not to "
                f"{fingerprint}: move it back to its own "
                "run's folder, or start over with resume=never"
            )
        return content
    return None
