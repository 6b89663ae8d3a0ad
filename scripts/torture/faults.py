"""Faults in file operations: this process is killed at the k-th, or the disk is full from it on."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "truncate")
_GROWS = ("mkdir", "write")


class Faults:
    """Wraps the operations that change files.

    Args:
        root: Only what happens below this folder counts.
        at: The number of the operation, from 0; None only counts.
        what: ``"kill"`` kills the process at the operation. ``"full"`` fills the disk: from the
            operation on, a write stops after half of its content, and write and mkdir raise ENOSPC.
        log: Where the operations are listed, a line each, or None.
    """

    def __init__(
        self, root: Path, at: int | None = None, what: str = "kill", log: Path | None = None
    ) -> None:
        self.root, self.at, self.what = f"{root.resolve()}{os.sep}", at, what
        self.count, self.full = 0, False
        self._log = (
            os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log is not None else None
        )

    def install(self) -> None:
        """Replace the operations until this process ends. Call it in a process of its own."""
        for name in _CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        os.open = self._wrapped_os_open(os.open)
        builtins.open = io.open = self._wrapped_open(io.open)

    def due(self, operation: str, path: Any) -> bool:
        """Count an operation, and return whether its fault is due."""
        if self._log is not None:
            os.write(self._log, f"{operation} {os.path.basename(os.fspath(path))}\n".encode())
        self.count += 1
        if self.at is not None and self.count - 1 == self.at:
            if self.what == "kill":
                if operation != "write":  # of a write, half is done first
                    os.kill(os.getpid(), signal.SIGKILL)
                return True
            self.full = True
        return self.full and operation in _GROWS

    def below(self, path: Any) -> bool:
        """Whether a path is below the folder."""
        return not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(
            self.root
        )

    def write(self, file: Any, data: Any, path: Any) -> Any:
        """Write, or write half and then fail."""
        if not self.due("write", path):
            return file.write(data)
        file.write(data[: len(data) // 2])
        file.flush()
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *arguments: Any, **named: Any) -> Any:
            # shutil.rmtree passes paths relative to an open folder
            counted = self.below(path) or named.get("dir_fd") is not None
            if counted and self.due(name, path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            return call(path, *arguments, **named)

        return wrapped

    def _wrapped_os_open(self, call: Callable[..., int]) -> Callable[..., int]:
        def wrapped(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC) and self.below(path):
                self.due("create", path)
            return call(path, flags, *arguments, **named)

        return wrapped

    def _wrapped_open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not self.below(path):
                return call(path, mode, *arguments, **named)
            self.due("open", path)
            return _File(call(path, mode, *arguments, **named), self, path)

        return wrapped


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: Any, faults: Faults, path: Any) -> None:
        self._file, self._faults, self._path = file, faults, path

    def write(self, data: Any) -> Any:
        return self._faults.write(self._file, data, self._path)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)
