"""Names of folders, from what a user calls things."""

from __future__ import annotations

import re
from pathlib import Path

from earlydrop.training.config import ConfigError


def printable(text: str) -> str:
    r"""A text with an escape such as ``\udcff`` for each byte of a file's name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def slug(text: str) -> str:
    """A text as one plain component of a path.

    Raises:
        ConfigError: Nothing is left of it.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("%", "pct")).strip("-.")
    if not plain:
        raise ConfigError(f"{text!r} cannot name a folder: use letters and digits")
    return plain[:100]


def study_folder(out: str, study: str) -> Path:
    """``<out>/<study>``, where a study's runs and its report are."""
    return Path(out).expanduser() / slug(study)
