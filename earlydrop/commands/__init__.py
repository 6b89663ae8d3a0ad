"""The console commands: arguments, exit codes, and one line for an error."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a function a console command.

    The command prints on any terminal and ends quietly when its output is closed. For an error that
    the user can correct, it prints one line.
    """

    @functools.wraps(main)
    def run() -> None:
        from earlydrop.commands import terminal

        terminal.prepare()
        try:
            _run_and_flush(main)
        except KeyboardInterrupt:
            from earlydrop.commands.sweep import end_workers

            end_workers(kill=True)
            raise SystemExit(130) from None
        except BrokenPipeError:  # earlydrop-cite runs | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except (OSError, ValueError) as error:
            raise SystemExit(f"error: {error}") from None

    return run


def _run_and_flush(main: Callable[[], None]) -> None:
    """Run a command and write its output, so that the error of a closed pipe can be caught."""
    try:
        main()
    except SystemExit as stop:
        if not isinstance(stop.code, str):  # a text is an error, which Python prints
            sys.stdout.flush()
        raise
    sys.stdout.flush()
