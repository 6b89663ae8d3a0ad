"""``earlydrop --version --verbose``: the version, the machine and the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from earlydrop import __version__

_PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb", "numpy", "pandas")


def show_version(arguments: list[str]) -> None:
    """Print the version; with ``--verbose``, also the machine and the packages.

    Args:
        arguments: Those of the command.

    Raises:
        SystemExit: There are other arguments.
    """
    others = [argument for argument in arguments if argument not in ("--version", "--verbose")]
    if others:
        raise SystemExit(f"error: --version goes with --verbose alone, not with {' '.join(others)}")
    print(f"earlydrop {__version__}")
    if "--verbose" in arguments:
        for name, value in _details().items():
            print(f"{name:<12} {value}")


def _details() -> dict[str, str]:
    import torch

    from earlydrop.training.compiler import compiler_problem

    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    device = accelerator.type if accelerator is not None else "cpu"
    if device == "cuda":
        device = f"cuda ({torch.cuda.get_device_name()})"
    details = {
        "Python": f"{sys.version.split()[0]} on {platform.platform()}",
        "device": f"{device}, {os.cpu_count()} cores",
    }
    for package in _PACKAGES:
        try:
            details[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            details[package] = "not installed"
    details["compiling"] = compiler_problem(device.split()[0]) or "works"
    return details
