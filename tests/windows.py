"""Take from this process what Windows lacks or refuses: a rehearsal on any system.

A ``sitecustomize`` that calls `rehearse` does so in every Python process of a command, also in the
workers of loaders and sweeps.
"""

import builtins
import errno
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys

FORBIDDEN = re.compile(
    r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE
)
LONGEST = 259


def rehearse():
    for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGALRM", "pthread_sigmask"):
        delattr(signal, name)
    multiprocessing.set_start_method("spawn")
    shutil._use_fd_functions = False  # removes trees by path, as on Windows
    if hasattr(shutil, "_rmtree_impl"):  # Python 3.14 chooses when it imports shutil
        shutil._rmtree_impl = shutil._rmtree_unsafe
    _change(os, "mkdir", _named)
    _change(io, "open", _named_where_written)
    builtins.open = io.open
    _change(os, "open", _no_folder)
    for name in ("replace", "rename", "unlink", "remove"):
        _change(os, name, _not_open)


def _change(module, name, check):
    original = getattr(module, name)

    def checked(*arguments, **keywords):
        check(*arguments, **keywords)
        return original(*arguments, **keywords)

    setattr(module, name, checked)


def _text(path):
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""


def _named(path, *_, **__):
    text = _text(path)
    if FORBIDDEN.search(os.path.basename(text.rstrip("/"))) and os.path.basename(text) not in (
        ".",
        "..",
    ):
        raise OSError(
            errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", text
        )
    if len(os.path.abspath(text)) > LONGEST:
        raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified", text)


def _named_where_written(file, mode="r", *_, **__):
    if set(mode) & set("wax+"):
        _named(file)


def _no_folder(path, *_, **__):
    if os.path.isdir(_text(path)):
        raise PermissionError(errno.EACCES, "Permission denied", _text(path))


def _not_open(*paths, **__):
    """Refuse to move, replace or remove a file that this process has open.

    Packages that know Windows and act otherwise there are exempt.
    """
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] in ("tempfile", "filelock"):
            return
        frame = frame.f_back
    for path in map(_text, paths):
        if (
            os.path.isfile(path)
            and not os.path.islink(path)
            and os.path.realpath(path) in _open_files()
        ):
            raise PermissionError(
                errno.EACCES, "The process cannot access the file because it is being used", path
            )


def _open_files():
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return found
