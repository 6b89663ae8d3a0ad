"""Where a progress bar is shown."""

import sys
from types import SimpleNamespace

from earlydrop.training.progress import in_notebook


def test_a_shell_that_inherits_from_that_of_jupyter_is_a_notebooks(monkeypatch):
    """Colab's shell is such a one."""
    jupyter = type("ZMQInteractiveShell", (), {})
    for shell, expected in ((type("Shell", (jupyter,), {})(), True), (object(), False)):
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert in_notebook() == expected
