"""Runs per core hour of the underfitting study (arms none and early), this tree against an earlier commit, side by side in one run.

    python scripts/throughput.py
    python scripts/throughput.py --commit 34dc1ef --seeds 4

Start-up, evaluation and report are included. Each tree runs the same sweep with the same packages, one after the other, twice in turn; the
third row reduces the evaluations before the last one to 1,000 images, which changes none of the final metrics.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ["-m", "earlydrop", "experiment=findings/underfitting", "schedule=none,early", "schedule.kind=unit", "tracking=off"]
REDUCED = ["evaluation.interim_images=1000", "study=reduced"]


def sweep(tree: Path, out: Path, seeds: int, *more: str) -> float:
    """Seconds of one sweep from a tree of the package."""
    command = [sys.executable, *SWEEP, f"seed=range({seeds})", f"out={out}", *more]
    began = time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tree)}, cwd=out.parent, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"the sweep of {tree} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="34dc1ef", help="the earlier commit")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a folder for throughput.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        before.mkdir()
        archive = subprocess.run(["git", "archive", arguments.commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(before)], input=archive, check=True)
        kinds = {"before": (before, ()), "now": (ROOT, ()), "now, reduced evaluation": (ROOT, tuple(REDUCED))}
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for turn in range(arguments.turns):
            for name, (tree, more) in kinds.items():
                seconds[name].append(sweep(tree, Path(temporary) / f"{name[:3]}{len(more)}-{turn}", arguments.seeds, *more))
                print(f"turn {turn + 1}: {name:<24} {seconds[name][-1]:6.1f} s", flush=True)
    cores, runs = os.cpu_count() or 1, 2 * arguments.seeds
    for name, values in seconds.items():
        ratio = statistics.median(b / v for b, v in zip(seconds["before"], values, strict=True))
        per_hour = runs / (statistics.median(values) * cores / 3600)
        print(f"{name:<24} {per_hour:6.1f} runs per core hour, {ratio:.2f} times those of {arguments.commit}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "throughput.json").write_text(
            json.dumps({"runs": runs, "cores": cores, "seconds": seconds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
