"""Signals that ask a run to stop: Ctrl-C, SIGTERM, and the warnings that SLURM sends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def _available(*names: str) -> tuple[signal.Signals, ...]:
    """The named signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


_WARNINGS = _available("SIGUSR1", "SIGUSR2")
_CTRL_BREAK = _available("SIGBREAK")  # Windows
_STOPS = (signal.SIGINT, signal.SIGTERM, *_WARNINGS, *_CTRL_BREAK)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Context in which a signal stops the run after the current step.

    A Ctrl-C after another signal raises `KeyboardInterrupt` at once. If a warning of SLURM (SIGUSR1
    or SIGUSR2) has arrived, its previous handler is called when the context ends. An example is
    submitit's handler, which requeues the job. Outside the main thread no signal is handled.

    Yields:
        A function that says whether a signal has come.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(received)
        return

    def receive(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in _STOPS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for warning in _WARNINGS:
            if warning in received and callable(previous[warning]):
                os.kill(os.getpid(), warning)
