"""Names of folders, made from a user's names, and their largest length."""

from __future__ import annotations

import re
from pathlib import Path

from earlydrop.training.fields import ConfigError

LONGEST = 100
"""Most characters of a study's or a label's name, as given and as a folder.

W&B takes 128 for a group, file systems 255 for a folder.
"""

# Devices, on Windows.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def printable(text: str) -> str:
    r"""Escape each byte of a file's name that is not UTF-8, as in ``\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode()


def slug(text: str, key: str) -> str:
    """Make a given name one plain component of a path, which every system takes.

    It is never cut, so that two long names with different ends stay two.

    Raises:
        ConfigError: Nothing is left of it, or it is too long. The message names the key.
    """
    plain = _plain(text)
    if not plain:
        raise ConfigError(f"{key} is {text!r}: it cannot name a folder; use letters and digits")
    longest = max(len(text), len(plain))  # "%" becomes "pct"
    if longest > LONGEST:
        raise ConfigError(
            f"{key} is {text!r}: it has {longest} characters, expected at most {LONGEST}"
        )
    return plain


def run_label(label: str | None, described: str, seed: int) -> str:
    """The beginning of a run's folder: its label, else its schedule in words and its seed.

    Those words are cut where they are long: the fingerprint behind them tells runs apart.

    Raises:
        ConfigError: The label cannot name a folder.
    """
    if label is not None:
        return slug(label, "label")
    return _plain(f"{described}-seed{seed}")[:LONGEST].rstrip(".")


def study_folder(out: str, study: str) -> Path:
    """``<out>/<study>``, where a study's runs and its report are."""
    return Path(out).expanduser() / slug(study, "study")


def _plain(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("%", "pct")).strip("-.")
    return f"_{plain}" if _RESERVED.fullmatch(plain) else plain
