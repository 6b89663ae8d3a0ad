"""Writing files on every operating system so that a crash leaves none half done."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_WAITS = (0.01, 0.03, 0.1, 0.3, 0.6)  # seconds between tries
LONGEST_PATH = 259 if os.name == "nt" else None
"""Characters of the longest path that Windows allows by default; None on another system."""


def replace(new: Path, old: Path) -> None:
    """Put a file in the place of another.

    Windows refuses this while another process, such as a virus scanner or an editor, has the old
    file open: it is tried again for a second.
    """
    _retry(lambda: new.replace(old))


def remove(path: Path) -> None:
    """Remove a file, if it is there; tried again as in `replace`.

    A file that another process keeps open on Windows is left.
    """
    with suppress(PermissionError):
        _retry(lambda: path.unlink(missing_ok=True))


def _retry(act: Callable[[], object]) -> None:
    """Act, and try again for a second while it is refused."""
    for wait in _WAITS:
        try:
            act()
        except PermissionError:
            time.sleep(wait)
        else:
            return
    act()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees either the old content or all of the new."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)
    with suppress(PermissionError):  # Windows cannot open a folder, and does not need this fsync
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def why(error: OSError) -> str:
    """The reason why a file could not be written. On Windows, it says if the path is too long."""
    words = error.strerror or str(error)
    length = len(os.path.abspath(error.filename or ""))
    may_be_length = error.errno in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG)
    if LONGEST_PATH is not None and length > LONGEST_PATH and may_be_length:
        words += (
            f"; the path has {length} characters, and Windows allows {LONGEST_PATH}: use a folder "
            "with a shorter path"
        )
    return words
