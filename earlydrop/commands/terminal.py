"""What a command finds on any machine: a terminal that may lack characters, and a home that may not be writable."""

from __future__ import annotations

import atexit
import codecs
import os
import shutil
import sys
import tempfile
from pathlib import Path

_PLAIN = {"±": "+-", "−": "-", "–": "-", "×": "x", "·": "*", "→": "->", "≤": "<=", "≥": ">=", "Δ": "d", "…": "..."}
_AT_HOME = {  # what other packages keep below the home, and what says that it is elsewhere
    "WANDB_CACHE_DIR": "wandb-cache",
    "WANDB_CONFIG_DIR": "wandb-config",
    "WANDB_DATA_DIR": "wandb-data",
    "MPLCONFIGDIR": "matplotlib",
}


def prepare() -> None:
    """Make this process print on any terminal, and give other packages a folder where the home cannot be written."""
    print_on_any_terminal()
    _write_elsewhere_without_a_home()


def print_on_any_terminal() -> None:
    """Characters that an output's encoding lacks are replaced by others that say the same, or by a question mark."""
    codecs.register_error("earlydrop", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="earlydrop")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def _write_elsewhere_without_a_home() -> None:
    missing = [name for name in _AT_HOME if name not in os.environ]
    if not missing or _home_is_writable():
        return
    folder = Path(tempfile.mkdtemp(prefix="earlydrop-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:  # processes that this one starts have them too
        (folder / _AT_HOME[name]).mkdir()
        os.environ[name] = str(folder / _AT_HOME[name])
    print(f"note: there is no home folder that can be written: W&B and Matplotlib keep their files in {folder}", file=sys.stderr)


def _home_is_writable() -> bool:
    try:
        home = Path.home()
    except RuntimeError:  # a user without a name
        return False
    return home.is_dir() and os.access(home, os.W_OK | os.X_OK)
