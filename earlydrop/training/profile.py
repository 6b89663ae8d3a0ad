"""The trace of some steps, for Perfetto: ``trainer.profile``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from earlydrop.training.fields import ConfigError

log = logging.getLogger("earlydrop")
T = TypeVar("T")


def profile_window(text: str) -> tuple[int, int]:
    """The first step of a window such as ``10:20``, and the step after its last.

    Raises:
        ConfigError: The text is not a window of steps.
    """
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ConfigError(
            f"trainer.profile is {text!r}: expected two steps such as 10:20, the first below the "
            "second"
        )
    return int(first), int(end)


class Profiler:
    """Records a trace of a window of steps, beside the run's records.

    A trace holds every operation: ten steps of a ViT are some tens of megabytes. Open it at
    https://ui.perfetto.dev.

    Args:
        window: Such as ``10:20``, or None for none.
        folder: The folder of the trace. None on every worker but the first; these record nothing.
    """

    def __init__(self, window: str | None, folder: Path | None) -> None:
        self.first, self.end = (
            profile_window(window) if window is not None and folder is not None else (0, 0)
        )
        self.folder = folder
        self.profile: Any = None
        self._traced = (0, 0)  # the first step in the trace, and the step after the last one

    def around(self, items: Iterator[T], step: int) -> Iterator[T]:
        """Yield the items of the steps from ``step`` on, and trace the steps in the window."""
        if step >= self.end:
            if self.end:
                log.warning(
                    "trainer.profile: the run is at step %d, so steps %d to %d have passed",
                    step,
                    self.first,
                    self.end - 1,
                )
            yield from items
            return
        try:
            while True:
                if self.first <= step < self.end and self.profile is None:
                    self._traced = (step, step)
                    self._start()
                elif step >= self.end:
                    self._write()
                try:
                    item = next(items)
                except StopIteration:
                    return
                if self.profile is not None:
                    self._traced = (self._traced[0], step + 1)
                yield item
                step += 1
        finally:
            self._write()

    def _start(self) -> None:
        import torch.profiler

        self.profile = torch.profiler.profile(activities=torch.profiler.supported_activities())
        self.profile.start()

    def _write(self) -> None:
        if self.profile is None or self.folder is None:
            return
        profile, self.profile = self.profile, None
        profile.stop()
        first, end = self._traced
        if end == first:
            return
        path = self.folder / f"trace-{first}-{end}.json"
        profile.export_chrome_trace(str(path))
        log.info("wrote the trace of steps %d to %d to %s", first, end - 1, path)
