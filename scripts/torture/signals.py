"""Signals to runs and sweeps: nothing stays behind, and the same command ends with equal bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from torture.commands import TINY, Outcome, real, shown, start
from torture.runs import differences, run_folders, state_of
from torture.tally import Tally

PATIENCE = 10.0  # seconds for a process, and all that it started, to be gone
MARK = "EARLYDROP_TORTURE"  # environment variable of the processes started here and their children
LONG = [
    *TINY,
    "trainer.epochs=100",
    "trainer.checkpoint_seconds=0.2",
    "trainer.eval_every=25%",
    "probe.at=[0%,50%,100%]",
    "out=runs",
]
SWEEP = ["-m", *LONG, "trainer.epochs=40", "schedule=none,early", "seed=0,1"]
IMAGES = [
    *LONG, "data=imagefolder", "data.root=../images", "data.image_size=16",
    "data.train_images=null", "trainer.batch_size=8", "trainer.epochs=6",
    "data.workers=2", "augment=none",
]  # fmt: skip
COMMANDS = {
    "run": LONG,
    "serial": [*SWEEP, "hydra/launcher=basic"],
    "joblib": [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "workers": IMAGES,
}
RUNS = {"run": 1, "serial": 4, "joblib": 4, "workers": 1}


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed command: its folder, and the seconds from its first run's beginning."""

    folder: Path
    training: float


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their environment, dead ones left out."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0")
            if here and "State:\tZ" not in (path / "status").read_text():
                processes.append(int(path.name))
        except OSError:  # it has ended, or is another user's
            continue
    return processes


def _until_training(process: subprocess.Popen[bytes], cwd: Path) -> None:
    end = time.monotonic() + 120
    while (
        process.poll() is None
        and not list(cwd.glob("runs/*/*/metrics.jsonl"))
        and time.monotonic() < end
    ):
        time.sleep(0.02)


def _undisturbed(kind: str, root: Path) -> Undisturbed:
    cwd = root / kind
    cwd.mkdir()
    process = start("run", COMMANDS[kind], cwd, root / "log")
    _until_training(process, cwd)
    began = time.monotonic()
    if process.wait() != 0 or len(run_folders(cwd)) != RUNS[kind]:
        raise SystemExit(
            "error: the undisturbed command failed: "
            f"{shown('run', COMMANDS[kind])}\n{(root / 'log').read_text()}"
        )
    return Undisturbed(cwd, time.monotonic() - began)


def _send(process: subprocess.Popen[bytes], number: int, group: bool) -> None:
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def _gone(process: subprocess.Popen[bytes], mark: str) -> list[int]:
    """Wait for all that was started to end; what has not ended in time is returned, and killed."""
    end = time.monotonic() + PATIENCE
    while (left := marked(mark)) and time.monotonic() < end:
        process.poll()
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return left


def _attack(
    tally: Tally,
    case: str,
    root: Path,
    kind: str,
    number: int,
    group: bool,
    share: float,
    whole: Undisturbed,
) -> None:
    cwd, log, mark = root / f"trial-{case}", root / f"{case}.log", uuid.uuid4().hex
    cwd.mkdir()
    process = start("run", COMMANDS[kind], cwd, log, **{MARK: mark})
    _until_training(process, cwd)
    try:
        process.wait(share * whole.training)
    except subprocess.TimeoutExpired:
        finished = sum(state_of(path) == "finished" for path in run_folders(cwd).values())
        _send(process, number, group)
    else:
        finished = RUNS[kind]
    left = _gone(process, mark)
    done = Outcome(
        shown("run", COMMANDS[kind]), process.returncode, log.read_text(errors="replace"), "", 0
    )
    target = "group" if group else "process"
    where = f"{signal.Signals(number).name} to the {target} after {share:.0%} of training"
    if left:
        tally.fail(
            "orphan",
            case,
            done.shown,
            f"{where}: {len(left)} of its processes were there {PATIENCE:.0f} s later",
        )
    if done.traceback:
        tally.fail("traceback", case, done.shown, f"{where}: {done.last_line}")
    if number != signal.SIGKILL and done.code == 0 and finished < RUNS[kind] - 1:
        tally.fail(
            "silent",
            case,
            done.shown,
            f"{where}: {finished} of {RUNS[kind]} runs were finished; it went on and exited with 0",
        )
    _goes_on(tally, case, kind, cwd, where, whole)
    shutil.rmtree(cwd)


def _goes_on(tally: Tally, case: str, kind: str, cwd: Path, where: str, whole: Undisturbed) -> None:
    again = real("run", COMMANDS[kind], cwd)
    if tally.crash(case, again):
        return
    if again.code != 0:
        tally.fail(
            "lost", case, again.shown, f"after {where}: exit code {again.code}: {again.last_line}"
        )
    for words in differences(cwd, whole.folder):
        tally.fail("lost", case, again.shown, f"after {where}: {words}")


def _cases(seed: int, short: bool) -> list[tuple[str, str, int, bool, float]]:
    """Every signal to process and group, at a drawn moment in each third of the training."""
    cases = []
    for kind in COMMANDS:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            for group in (False, True):
                for third in range(3):
                    case = f"{kind}-{number.name}-{'group' if group else 'process'}-{third}"
                    cases.append(
                        (
                            case,
                            kind,
                            number,
                            group,
                            (third + random.Random(f"{seed}{case}").random()) / 3,
                        )
                    )
    if not short:
        return [
            case for i, case in enumerate(cases) if case[1] == "run" or i % 3 != 1
        ]  # of the longer commands, two of three moments
    return [case for case in cases if case[0] == "run-SIGTERM-process-1"]


def _images(folder: Path) -> None:
    """Twenty-four images a class and split, each with pixels of its own."""
    pixels = random.Random(0)
    for split, name, i in (
        (split, name, i) for split in ("train", "val") for name in ("cat", "dog") for i in range(24)
    ):
        path = folder / split / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (20, 20), pixels.randbytes(1200)).save(path)


def signals(tally: Tally) -> None:
    """SIGTERM, SIGINT and SIGKILL, to process and group, at moments of a run and of sweeps."""
    root = Path(tempfile.mkdtemp(prefix="torture-")).resolve()
    whole: dict[str, Undisturbed] = {}
    try:
        _images(root / "images")
        for case, kind, number, group, share in _cases(
            tally.seed, tally.short and tally.only is None
        ):
            if not tally.wants(case):
                continue
            if kind not in whole:
                whole[kind] = _undisturbed(kind, root)
            _attack(tally, case, root, kind, number, group, share, whole[kind])
    finally:
        shutil.rmtree(root, ignore_errors=True)
