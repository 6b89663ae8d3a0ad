"""Names of folders, from what a user calls things."""

from __future__ import annotations

import re
from pathlib import Path

from earlydrop.training.config import ConfigError

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, on Windows


def slug(text: str) -> str:
    """A text as one plain component of a path, which every system takes.

    Raises:
        ConfigError: Nothing is left of it.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace("%", "pct")).strip("-.")
    if not plain:
        raise ConfigError(f"{text!r} cannot name a folder: use letters and digits")
    plain = plain[:100].rstrip(".")  # Windows drops a dot at the end
    return f"_{plain}" if _RESERVED.fullmatch(plain) else plain


def study_folder(out: str, study: str) -> Path:
    """``<out>/<study>``, where a study's runs and its report are."""
    return Path(out).expanduser() / slug(study)
