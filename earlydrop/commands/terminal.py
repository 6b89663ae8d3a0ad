"""Terminals that lack characters, and machines without a writable home."""

from __future__ import annotations

import atexit
import codecs
import os
import shutil
import sys
import tempfile
from pathlib import Path

_PLAIN = {
    "±": "+-",
    "−": "-",
    "–": "-",
    "×": "x",
    "·": "*",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "Δ": "d",
    "…": "...",
}
_AT_HOME = {  # variables that move the folders of other packages away from the home
    "WANDB_CACHE_DIR": "wandb-cache",
    "WANDB_CONFIG_DIR": "wandb-config",
    "WANDB_DATA_DIR": "wandb-data",
    "MPLCONFIGDIR": "matplotlib",
}


def prepare() -> None:
    """Print on any terminal, and give other packages a folder if the home cannot be written."""
    print_on_any_terminal()
    _write_elsewhere_without_a_home()


def print_on_any_terminal() -> None:
    """Replace characters that the output's encoding lacks: by similar ones, or a question mark."""
    codecs.register_error("earlydrop", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="earlydrop")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lacking), error.end


def _write_elsewhere_without_a_home() -> None:
    missing = [name for name in _AT_HOME if name not in os.environ]
    if not missing or _home_is_writable():
        return
    folder = Path(tempfile.mkdtemp(prefix="earlydrop-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:  # processes that this one starts have them too
        (folder / _AT_HOME[name]).mkdir()
        os.environ[name] = str(folder / _AT_HOME[name])
    instead = f"W&B and Matplotlib keep their files in {folder}"
    print(f"note: there is no home folder that can be written: {instead}", file=sys.stderr)


def _home_is_writable() -> bool:
    try:
        home = Path.home()
    except RuntimeError:  # a user without a name
        return False
    return home.is_dir() and os.access(home, os.W_OK | os.X_OK)
