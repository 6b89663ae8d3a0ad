"""The progress bar of a run: in a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from tqdm import tqdm


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def progress_bar(total: int, name: str, visible: bool) -> Any:
    """A bar that counts steps, in a terminal or a notebook; elsewhere it is invisible.

    In a notebook it is a widget, or plain text if ipywidgets is not installed. ``visible`` says
    whether this process shows any progress.
    """
    options: dict[str, Any] = {"total": total, "desc": name, "unit": "step", "dynamic_ncols": True}
    if not in_notebook():
        return tqdm(disable=None if visible else True, **options)
    if visible and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    return tqdm(disable=not visible, **options)
