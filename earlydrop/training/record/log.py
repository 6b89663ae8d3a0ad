"""A run's ``log.txt``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("earlydrop")


class _LogFile(logging.FileHandler):
    """A log file that ignores write errors. The run itself reports a full disk, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path | None) -> Iterator[None]:
    """Context in which the package's log goes to a file, and its warnings to the console too.

    Without a file (None), there is only the console.
    """
    file = _LogFile(path, encoding="utf-8") if path is not None else logging.NullHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    level, propagate = log.level, log.propagate
    log.addHandler(file)
    log.addHandler(console)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(file)
        log.removeHandler(console)
        log.setLevel(level)
        log.propagate = propagate
        file.close()
