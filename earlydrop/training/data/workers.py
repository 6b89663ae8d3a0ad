"""Processes that read batches of images ahead, and stay alive between passes."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from earlydrop.training.data.transforms import PixelBatch, collate

AHEAD = 2
"""Batches that each worker reads ahead."""

_GRACE_SECONDS = 30.0  # how long a worker lives on after SIGTERM
_IGNORED_BY_WORKERS = ("SIGINT", "SIGUSR1", "SIGUSR2")
_HELD_AT_START = {
    getattr(signal, name) for name in ("SIGTERM", *_IGNORED_BY_WORKERS) if hasattr(signal, name)
}


def _outlive_signals(worker: int) -> None:
    """Let a worker outlive a signal for a while.

    A signal that ends a run goes to its whole group, and the run has to save before it ends its
    workers. Workers ignore SIGINT, SIGUSR1 and SIGUSR2: SLURM's warnings are meant for the run.
    """

    def end_later(number: int, frame: object) -> None:
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (143,))  # 128 + SIGTERM
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end_later)
    for name in _IGNORED_BY_WORKERS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_AT_START)


def _start_method() -> str:
    """The start method of the workers: Python's default, but ``spawn`` instead of ``forkserver``.

    `_signals_held` needs workers that inherit the signal mask of this process. Forked and spawned
    workers do. Workers of a fork server inherit the server's mask, set when the server started.
    """
    usual = multiprocessing.get_start_method()
    return "spawn" if usual == "forkserver" else usual


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back while workers start.

    Workers inherit the mask, so that no signal can end one before `_outlive_signals` has run in it.
    """
    if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
        if _start_method() == "spawn":
            # The first spawn starts Python's resource tracker, which unblocks signals. So it is
            # started before they are held.
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_AT_START)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:  # Windows has no mask, and no scheduler that sends signals
        yield


class _Feed:
    """The batch sampler of a loader. `start` gives it the batches of the next pass."""

    def __init__(self) -> None:
        self.start(())

    def start(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches
        self.handed_out = 0
        self.is_exhausted = False

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self._batches:
            self.handed_out += 1
            yield batch
        self.is_exhausted = True


class _Loader:
    """Worker processes that read batches ahead, in one pass after another."""

    def __init__(self, dataset: torch.utils.data.Dataset[Any], workers: int, pin: bool) -> None:
        self._feed = _Feed()
        self._loader = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=self._feed,  # type: ignore[arg-type]  # an iterator: a long run has many
            num_workers=workers,
            prefetch_factor=AHEAD,
            persistent_workers=True,
            collate_fn=collate,
            pin_memory=pin,
            generator=torch.Generator(),
            worker_init_fn=_outlive_signals,
            multiprocessing_context=_start_method(),
        )
        self._iterator: Any = None

    def read(self, batches: Iterable[list[Any]]) -> Iterator[tuple[PixelBatch, bool]]:
        """Read some batches.

        Yields:
            Each batch, and whether it is the last: then the workers have nothing left to do.
        """
        self._feed.start(batches)
        first_pass = self._iterator is None
        with _signals_held() if first_pass else nullcontext():
            self._iterator = iter(self._loader)
        for received, batch in enumerate(self._iterator, start=1):
            yield batch, self._feed.is_exhausted and received == self._feed.handed_out

    def end(self) -> None:
        """End the workers now. Otherwise they live as long as a traceback refers to them."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()


class WorkerPool:
    """Loaders whose workers stay alive between passes.

    Starting a loader takes seconds where Python spawns processes. Training keeps one loader for the
    whole run. Evaluations and probes share a second loader.
    """

    def __init__(self, dataset: torch.utils.data.Dataset[Any], workers: int, pin: bool) -> None:
        self._loader_arguments = (dataset, workers, pin)
        self._all: list[_Loader] = []
        self._idle: list[_Loader] = []

    def read(self, batches: Iterable[list[Any]]) -> Generator[PixelBatch, None, None]:
        """Read some batches. If the caller stops early, the workers of that pass end."""
        loader = self._idle.pop() if self._idle else self._start()
        lent = True
        try:
            for batch, last in loader.read(batches):
                if last:  # before the batch is handed on: its reader may ask no more
                    self._idle.append(loader)
                    lent = False
                yield batch
                if last:
                    return
            self._idle.append(loader)  # a pass without batches
            lent = False
        finally:
            if lent and loader in self._all:
                self._all.remove(loader)
                loader.end()

    def _start(self) -> _Loader:
        if not self._all:
            # At exit torch sets a flag, after which a loader no longer ends its workers. This hook
            # ends them before that.
            atexit.register(self.close)
        loader = _Loader(*self._loader_arguments)
        self._all.append(loader)
        return loader

    def close(self) -> None:
        """End all workers."""
        atexit.unregister(self.close)
        loaders = list(self._all)
        self._all.clear()
        self._idle.clear()
        for loader in loaders:
            loader.end()
