"""Eight minutes of checks for one GPU: is earlydrop right and fast on it?

    python scripts/gpu_check.py                        every check, on the GPU
    python scripts/gpu_check.py --device cpu           those that need none
    python scripts/gpu_check.py --only masks,resume    some of them

Prints a line for each check, PASS, FAIL or SKIP, and writes gpu_check.json (--out elsewhere). The
exit code is the number of failures. Each check runs in a process of its own, with a time limit.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from gpu_check import numbers, speed
from gpu_check.base import Check, FailedError, SkippedError

CHECKS = {
    "environment": Check(numbers.check_environment),
    "masks": Check(numbers.check_masks, limit=180),
    "twice": Check(numbers.check_twice, limit=90),
    "resume": Check(numbers.check_resume, limit=90),
    "average": Check(numbers.check_average),
    "graphs": Check(speed.check_graphs, limit=180),
    "against_cpu": Check(numbers.check_against_cpu, cuda=True, limit=90),
    "waits": Check(speed.check_waits, cuda=True),
    "attention": Check(speed.check_attention, cuda=True, limit=120),
    "same_attention": Check(speed.check_same_attention, cuda=True, limit=120),
    "trainer": Check(speed.check_trainer, cuda=True, limit=90),
    "copies": Check(speed.check_copies, cuda=True),
    "probe_memory": Check(speed.check_probe_memory, cuda=True, limit=90),
    "workers": Check(numbers.check_workers, cuda=True, limit=180),
}

_GRACE = 10.0  # seconds that a check's process has to end once it has answered


def outcome(name: str, device: torch.device, folder: Path) -> tuple[str, str]:
    """PASS, FAIL or SKIP, and what was found, in a line."""
    check = CHECKS[name]
    if check.cuda and device.type != "cuda":
        return "SKIP", "needs a CUDA device"
    try:
        return "PASS", check.run(device, folder)
    except SkippedError as reason:
        return "SKIP", str(reason)
    except FailedError as reason:
        return "FAIL", str(reason)
    except Exception as error:  # a check that breaks has failed, and the others go on
        traceback.print_exc()
        return "FAIL", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _work(name: str, device: str, folder: str, answer: Connection) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a check that runs over its time is ended with what it started
    if torch.device(device).index is not None:
        torch.cuda.set_device(torch.device(device))  # memory and streams are those of this device
    answer.send(outcome(name, torch.device(device), Path(folder)))


def limited(name: str, device: str, limit: float) -> tuple[str, str, float]:
    """Run a check in a process of its own; give its outcome, its words and its seconds.

    A check that runs over the limit, or whose process dies, has failed.
    """
    began = time.perf_counter()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    # A forked process cannot use CUDA once its parent has initialised it.
    forks = device == "cpu" and sys.platform == "linux"
    context = multiprocessing.get_context("fork" if forks else "spawn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = context.Process(target=_work, args=(name, device, folder, theirs))
        process.start()
        theirs.close()
        state, words = "FAIL", f"no answer within {limit:g} s"
        if ours.poll(limit):
            try:
                state, words = ours.recv()
            except EOFError:
                process.join()
                words = f"its process ended with {process.exitcode}"
            process.join(_GRACE)
        if process.is_alive():
            _end(process.pid)
        process.join()
    return state, words, time.perf_counter() - began


def _end(pid: int | None) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(pid or 0, signal.SIGKILL)
    except (
        AttributeError,
        ProcessLookupError,
    ):  # the system has no process groups, or the process has not made its own yet
        os.kill(pid or 0, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(CHECKS)}")
    parser.add_argument("--limit", type=float, help="seconds for each check (default: its own)")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_check.json"), help="where the outcomes go as JSON"
    )
    arguments = parser.parse_args()
    names = list(CHECKS) if arguments.only is None else arguments.only.split(",")
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        parser.error(f"--only has {', '.join(unknown)}: expected some of {', '.join(CHECKS)}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            f"--device is {arguments.device}, and torch finds no GPU: give --device cpu for the "
            "checks that need none"
        )
    if arguments.limit is not None and not arguments.limit > 0:
        parser.error(f"--limit is {arguments.limit:g}: expected a number of seconds above 0")
    done = []
    for name in names:
        limit = CHECKS[name].limit if arguments.limit is None else arguments.limit
        state, words, seconds = limited(name, arguments.device, limit)
        done.append({"check": name, "outcome": state, "found": words, "seconds": round(seconds, 1)})
        print(f"{state} {name:<13} {seconds:5.1f} s  {words}", flush=True)
        content = {"device": arguments.device, "torch": str(torch.__version__), "checks": done}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(sum(result["outcome"] == "FAIL" for result in done))


if __name__ == "__main__":
    main()
