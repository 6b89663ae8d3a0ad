"""Kill a run at random moments, start it again, and compare it with an undisturbed one.

    python scripts/kill_resume.py                           twenty kills of one process by SIGKILL
    python scripts/kill_resume.py --kills 3                 a short form
    python scripts/kill_resume.py --kills 50 --workers 4    fifty kills, four workers under torchrun

With several workers, a kill is SIGKILL or SIGTERM to one worker, all workers or the launcher. Each
kill comes at a different moment.

Weights, optimizer state and metrics.jsonl must be identical. The runs cross the cutoff, an
evaluation and probes, and save a checkpoint every quarter of a second, so kills fall into every
part of a run.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

RUN = [
    sys.executable, "-m", "earlydrop", "tracking=off", "trainer.steps=60", "trainer.batch_size=64",
    "trainer.checkpoint_seconds=0.25",
    "trainer.eval_every=50%", "data.train_images=1000", "probe.dataset_limit=200",
    "probe.batches=3", "threads=1", "trainer.log_every=3",
]  # fmt: skip


def start(out: Path, workers: int) -> subprocess.Popen[bytes]:
    command = RUN
    if workers > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={workers}",
        ]
        command = [
            *launcher,
            *RUN[1:],
            f"trainer.accumulate={workers}",
            f"probe.batches={max(3, workers)}",
            "distributed.timeout=60",
        ]
    return subprocess.Popen(
        [*command, f"out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def workers_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The processes of the workers, in the order of their ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def disturb(process: subprocess.Popen[bytes], workers: int, random: random.Random) -> str:
    """Kill one or more processes of a run, and return which, in words."""
    if workers == 1:
        process.send_signal(signal.SIGKILL)
        return "killed"
    number = random.choice((signal.SIGKILL, signal.SIGTERM))
    ranks = workers_of(process)
    what = random.choice(("a worker", "all workers", "the launcher"))
    victims = {
        "a worker": [random.choice(ranks)] if ranks else [],
        "all workers": ranks,
        "the launcher": [process.pid],
    }[what]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    process.wait()
    gone = time.monotonic() + 60
    while any(
        Path(f"/proc/{pid}").exists() for pid in ranks
    ):  # the workers of a killed launcher end after they have saved
        if time.monotonic() > gone:
            raise SystemExit(f"a worker still runs a minute after {what} got {number.name}")
        time.sleep(0.05)
    return f"{what}, {number.name}"


def until_training(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until the run has a status, that is until it trains."""
    while process.poll() is None and not list(out.glob("*/*/status.json")):
        time.sleep(0.01)


def result(out: Path) -> tuple[bytes, dict[str, object]]:
    (folder,) = (out / "default").iterdir()
    newest = max((folder / "checkpoints").glob("*.pt"))
    return (folder / "metrics.jsonl").read_bytes(), torch.load(newest, weights_only=True)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        process = start(undisturbed, arguments.workers)
        until_training(process, undisturbed)
        began = time.perf_counter()
        if process.wait() != 0:
            raise SystemExit("the undisturbed run failed: run it by hand to see why")
        length = time.perf_counter() - began
        metrics, state = result(undisturbed)
        identical = 0
        for trial in range(arguments.kills):
            out = Path(temporary) / f"killed-{trial}"
            process = start(out, arguments.workers)
            until_training(process, out)
            moment, what = moments.uniform(0, 0.95 * length), "had finished"
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                what = disturb(process, arguments.workers, moments)
            process.wait()
            code = start(out, arguments.workers).wait()
            killed_metrics, killed_state = result(out)
            equal = code == 0 and killed_metrics == metrics and same(killed_state, state)
            identical += equal
            print(f"kill {trial + 1:2d} {moment:5.2f} s into {length:.2f} s of training ({what}): "
                  f"{'identical' if equal else 'DIFFERENT'}", flush=True)  # fmt: skip
        print(f"{identical} of {arguments.kills} identical")
        raise SystemExit(identical != arguments.kills)


if __name__ == "__main__":
    main()
