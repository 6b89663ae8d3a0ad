"""Terminals that lack characters, and machines without a writable home."""

from __future__ import annotations

import atexit
import codecs
import os
import shutil
import sys
import tempfile
from pathlib import Path

_REPLACEMENTS = {
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
_FOLDER_VARIABLES = {  # environment variables for folders that are in the home by default
    "WANDB_CACHE_DIR": "wandb-cache",
    "WANDB_CONFIG_DIR": "wandb-config",
    "WANDB_DATA_DIR": "wandb-data",
    "MPLCONFIGDIR": "matplotlib",
}


def prepare() -> None:
    """Print on any terminal, and give other packages a folder if the home cannot be written."""
    print_on_any_terminal()
    _redirect_folders_if_home_is_not_writable()


def print_on_any_terminal() -> None:
    """Replace characters that the output's encoding lacks: by similar ones, or a question mark."""
    codecs.register_error("earlydrop", _replace_characters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="earlydrop")


def _replace_characters(error: UnicodeError) -> tuple[str, int]:
    """The error handler: similar ASCII characters, or question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_REPLACEMENTS.get(character, "?") for character in lacking), error.end


def _redirect_folders_if_home_is_not_writable() -> None:
    """Point `_FOLDER_VARIABLES` that are not set to a temporary folder, deleted at exit."""
    missing = [name for name in _FOLDER_VARIABLES if name not in os.environ]
    if not missing or _home_is_writable():
        return
    folder = Path(tempfile.mkdtemp(prefix="earlydrop-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in missing:  # child processes inherit these variables
        (folder / _FOLDER_VARIABLES[name]).mkdir()
        os.environ[name] = str(folder / _FOLDER_VARIABLES[name])
    named = ", ".join(missing)
    print(
        f"note: the home folder cannot be written: {named} point to {folder} until this command "
        "ends",
        file=sys.stderr,
    )


def _home_is_writable() -> bool:
    try:
        home = Path.home()
    except RuntimeError:  # no home folder is known for this user
        return False
    return home.is_dir() and os.access(home, os.W_OK | os.X_OK)
