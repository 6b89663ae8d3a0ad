"""Whether torch.compile works on this machine."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

INSTALL = "on Debian and Ubuntu: apt-get install g++ python3-dev"
"""The command that installs the compiler and the headers that torch.compile needs on a CPU."""


def _one_line(x: Tensor) -> Tensor:
    return x * 2 + 1


@functools.cache
def compiler_problem(device_type: str) -> str | None:
    """The problem that stops torch.compile on this machine, if there is one.

    Compiles a function of one line and runs it. The answer is kept for the process.

    Args:
        device_type: Where the function runs, such as ``"cpu"`` or ``"cuda"``.

    Returns:
        The problem, with its remedy if one is known; None if the compiled function works.
    """
    x = torch.arange(4.0, device=device_type)
    try:
        result = torch.compile(_one_line)(x)
    except Exception as error:  # torch has no common class for these errors
        return _describe(error)
    if not torch.equal(result, _one_line(x)):
        return "a compiled function of one line gives wrong numbers"
    return None


def _describe(error: Exception) -> str:
    text = str(error)
    if "No working C++ compiler" in text or "InvalidCxxCompiler" in text:
        return f"there is no C++ compiler ({INSTALL})"
    if "Python.h" in text:
        return f"the Python headers are missing ({INSTALL})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"a function of one line fails with {lines[0] if lines else type(error).__name__}"
