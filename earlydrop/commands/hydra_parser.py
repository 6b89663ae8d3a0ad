"""Hydra's command-line parser on Python 3.14 and later."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any


def accept_lazy_help() -> None:
    """Let Hydra make its command-line parser on Python 3.14 and later.

    From 3.14 on, argparse checks each help text when it is added. The help of Hydra's
    ``--shell-completion`` is an object, not a text, so the check raises ValueError
    (facebookresearch/hydra#3121). Where Hydra makes its parser without an error, nothing changes.
    """
    original = importlib.import_module("hydra._internal.utils").get_args_parser
    for name in ("hydra._internal.utils", "hydra.main"):  # both hold the function
        module: Any = importlib.import_module(name)
        module.get_args_parser = lambda: build_parser(original)


def build_parser(build: Callable[[], argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Make a parser. If argparse refuses a help, make it again and check only helps that are text.

    Args:
        build: Makes the parser.

    Returns:
        The parser.

    Raises:
        ValueError: The parser cannot be made for another reason.
    """
    try:
        return build()
    except ValueError:
        container: Any = argparse._ActionsContainer
        check = getattr(container, "_check_help", None)
        if check is None:
            raise

    def check_texts(parser: Any, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check(parser, action)

    container._check_help = check_texts
    try:
        return build()
    finally:
        container._check_help = check
