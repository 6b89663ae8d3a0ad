"""Names and texts: folders named by a user, names of files, and times."""

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


def first_line(error: BaseException) -> str:
    r"""The first line of an error's text, or the error's type if it has no text.

    >>> first_line(EOFError()), first_line(ValueError("one\ntwo"))
    ('EOFError', 'one')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def format_duration(seconds: float) -> str:
    """Seconds as text: in s below 100 s, in min below 100 min, else in h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def slug(text: str, key: str) -> str:
    """Turn a name into one component of a path that every operating system accepts.

    A name is never cut, so long names that differ only at the end stay different.

    Raises:
        ConfigError: Nothing is left of it, or it is too long. The message names the key.
    """
    plain = _plain(text)
    if not plain:
        raise ConfigError(f"{key} is {text!r}: it cannot name a folder; use letters and digits")
    if len(text) > LONGEST:
        raise ConfigError(
            f"{key} is {text!r}: it has {len(text)} characters, expected at most {LONGEST}"
        )
    if len(plain) > LONGEST:  # "%" becomes "pct"
        raise ConfigError(
            f"{key} is {text!r}: as a folder, {plain!r}, it has {len(plain)} characters, expected "
            f"at most {LONGEST}"
        )
    return plain


def run_label(label: str | None, described: str, seed: int) -> str:
    """The beginning of a run's folder: its label, else its schedule in words and its seed.

    A long schedule in words is cut, because the fingerprint that follows tells runs apart.

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
