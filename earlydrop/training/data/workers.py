"""Processes that read batches of images ahead, and live on from pass to pass."""

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

_GRACE = 30.0  # seconds that a worker lives on after SIGTERM
_IGNORED = ("SIGINT", "SIGUSR1", "SIGUSR2")  # by workers
_HELD = {  # while workers start
    getattr(signal, name) for name in ("SIGTERM", *_IGNORED) if hasattr(signal, name)
}


def _outlive_signals(worker: int) -> None:
    """Let a worker outlive a signal for a while.

    A signal that ends a run goes to its whole group, and the run has to save before it ends its
    workers. SLURM's warnings are for the run alone.
    """

    def end_later(number: int, frame: object) -> None:
        timer = threading.Timer(_GRACE, os._exit, (143,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end_later)
    for name in _IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def _start_method() -> str:
    """The way in which workers start: Python's own here, but spawn in place of forkserver.

    A forked and a spawned process inherit the signal mask of the process that starts them. A
    process that a fork server forks inherits the server's, which was set when the server was
    started.
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
            # The first spawn starts Python's resource tracker, which takes away our mask.
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:  # Windows has no mask, and no scheduler that sends signals
        yield


class _Feed:
    """The batches that a loader reads next; another pass has others."""

    def __init__(self) -> None:
        self.start(())

    def start(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches
        self.given, self.ended = 0, False

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self._batches:
            self.given += 1
            yield batch
        self.ended = True


class _Loader:
    """Worker processes that read batches ahead, in one pass after another."""

    def __init__(self, dataset: torch.utils.data.Dataset[Any], workers: int, pin: bool) -> None:
        self._feed = _Feed()
        self._loader = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=self._feed,  # type: ignore[arg-type]  # lazily: a long run has many
            num_workers=workers,
            prefetch_factor=AHEAD,
            persistent_workers=True,
            collate_fn=collate,
            pin_memory=pin,
            generator=torch.Generator(),
            worker_init_fn=_outlive_signals,
            multiprocessing_context=_start_method(),
        )
        self._batches: Any = None

    def read(self, batches: Iterable[list[Any]]) -> Iterator[tuple[PixelBatch, bool]]:
        """Read some batches.

        Yields:
            Each batch, and whether it is the last: then the workers have nothing left to do.
        """
        self._feed.start(batches)
        with _signals_held() if self._batches is None else nullcontext():
            self._batches = iter(self._loader)
        received = 0
        while (batch := next(self._batches, None)) is not None:
            received += 1
            yield batch, self._feed.ended and received == self._feed.given

    def end(self) -> None:
        """End the workers now, not when the last traceback that holds them is gone."""
        if self._batches is not None:
            self._batches._shutdown_workers()


class WorkerPool:
    """Loaders whose workers live on: to start one takes seconds where Python spawns processes.

    Training keeps one for the whole run. Evaluations and probes, which come in between, share a
    second.
    """

    def __init__(self, dataset: torch.utils.data.Dataset[Any], workers: int, pin: bool) -> None:
        self._new = (dataset, workers, pin)
        self._all: list[_Loader] = []
        self._idle: list[_Loader] = []

    def read(self, batches: Iterable[list[Any]]) -> Generator[PixelBatch, None, None]:
        """Read some batches; a pass that is given up ends its workers."""
        loader = self._idle.pop() if self._idle else self._start()
        lent = True
        try:
            for batch, last in loader.read(batches):
                if last:  # given back before the batch is handed on: its reader may ask no more
                    self._idle.append(loader)
                    lent = False
                yield batch
                if last:
                    return
            self._idle.append(loader)
            lent = False
        finally:
            if lent and loader in self._all:
                self._all.remove(loader)
                loader.end()

    def _start(self) -> _Loader:
        if not self._all:
            # This runs before torch's own hook, after which workers are not waited for.
            atexit.register(self.close)
        loader = _Loader(*self._new)
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
