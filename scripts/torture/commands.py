"""Running the console commands from outside, in forks of this process or as processes.

A fork saves the seconds of imports. It is as separate as a process that was started: it may be
killed or crash, and leaves nothing behind here. It does not test the imports themselves, so the
parts mistakes and signals also start real processes.
"""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("run", "report", "cite", "findings", "reproduce")
TINY = [
    "tracking=off", "model=mlp", "model.hidden=[16]", "data.train_images=200", "trainer.epochs=1",
    "trainer.batch_size=50",
    "probe.batches=2", "probe.dataset_limit=50", "threads=1",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The end of a command; ``code`` is negative for a signal, None if it had to be stopped."""

    shown: str
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text or "Fatal Python error" in self.text

    @property
    def last_line(self) -> str:
        """The last line of its output; of a traceback, the line that names the error."""
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        if self.traceback:
            lines = [
                line
                for line in lines
                if re.match(r"[A-Za-z_.]*(Error|Exception|Timeout|Interrupt)\b", line)
            ] or lines
        return lines[-1][:300] if lines else "(no output)"

    @property
    def lines(self) -> int:
        return sum(1 for line in self.err.splitlines() if line.strip())


def shown(command: str, arguments: Sequence[str]) -> str:
    """The command as a person types it."""
    return shlex.join(["earlydrop" if command == "run" else f"earlydrop-{command}", *arguments])


def load() -> None:
    """Import the modules of the commands, once and without a thread, for forks to begin with."""
    for name in (
        "torch",
        "hydra",
        "timm",
        "torchvision",
        "pandas",
        "matplotlib.pyplot",
        "scipy.stats",
        "earlydrop.training.run",
    ):
        importlib.import_module(name)
    for command in COMMANDS:
        importlib.import_module(f"earlydrop.commands.{command}")


def fork(
    command: str,
    arguments: Sequence[str],
    cwd: Path,
    before: Callable[[], None] | None = None,
    limit: float = 120,
) -> Outcome:
    """Run a command in a fork of this process and in a folder, after calling ``before`` there."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _be(command, arguments, cwd, (out.fileno(), err.fileno()), before)
        code = _wait(child, limit)
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Outcome(shown(command, arguments), code, *texts, seconds)


def _be(
    command: str,
    arguments: Sequence[str],
    cwd: Path,
    outputs: tuple[int, int],
    before: Callable[[], None] | None,
) -> None:
    """Run the command in a forked child; never returns."""
    code = 1
    try:
        atexit._clear()  # the parent's temporary folders are the parent's to remove
        os.setsid()
        os.chdir(cwd)
        os.environ["HOME"] = str(cwd)  # a ~ that is expanded stays here
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
        sys.argv = ["earlydrop" if command == "run" else f"earlydrop-{command}", *arguments]
        main = importlib.import_module(f"earlydrop.commands.{command}").main
        if before is not None:
            before()
        main()
        code = 0
    except SystemExit as stop:
        code = _exit_code(stop)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _exit_code(stop: SystemExit) -> int:
    if isinstance(stop.code, str):
        print(stop.code, file=sys.stderr)
    return 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1


def _wait(child: int, limit: float) -> int | None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def words(command: str, arguments: Sequence[str]) -> list[str]:
    """The argument list of a real process."""
    if command == "run":
        return [sys.executable, "-m", "earlydrop", *arguments]
    return [
        sys.executable,
        "-c",
        f"from earlydrop.commands.{command} import main; main()",
        *arguments,
    ]


def start(
    command: str, arguments: Sequence[str], cwd: Path, log: Path, **environment: str
) -> subprocess.Popen[bytes]:
    """Start a real process, in a session of its own; what it says goes to a file."""
    with log.open("wb") as file:
        return subprocess.Popen(
            words(command, arguments), cwd=cwd, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | {"HOME": str(cwd)} | environment,
        )  # fmt: skip


def real(command: str, arguments: Sequence[str], cwd: Path, limit: float = 300) -> Outcome:
    """Run a command as a process of its own."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            words(command, arguments), cwd=cwd, capture_output=True, text=True, errors="replace",
            timeout=limit, check=False,
            env=os.environ | {"HOME": str(cwd)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(shown(command, arguments), None, "", "", limit)
    return Outcome(
        shown(command, arguments),
        done.returncode,
        done.stdout,
        done.stderr,
        time.monotonic() - began,
    )
