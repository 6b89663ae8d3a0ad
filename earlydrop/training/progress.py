"""The progress bar of a run: in a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from tqdm import tqdm


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def progress_bar(total: int, name: str, shown: bool) -> Any:
    """A bar that counts steps; a widget in a notebook that has them. Without a terminal or a notebook it shows nothing.

    Args:
        total: Steps of the run.
        name: What stands in front.
        shown: Whether this process shows progress at all.
    """
    options: dict[str, Any] = {"total": total, "desc": name, "unit": "step", "dynamic_ncols": True}
    if not in_notebook():
        return tqdm(disable=None if shown else True, **options)
    if shown and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    return tqdm(disable=not shown, **options)
