"""Whole processes: start-up, sweeps, two workers, the quickstart, and an earlier commit's pace."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.measure import Measured, Row
from earlydrop.training.compose import compose_one

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def timed(command: list[str], folder: str | Path, **environment: str) -> float:
    """Seconds that a command takes.

    Raises:
        RuntimeError: It failed; with the end of what it printed.
    """
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


_BARE = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from benchmark import measure
if sys.argv[3] == "vit":
    step = measure.stepper(measure.vit(0.0))
else:
    step = measure.study_stepper("quickstart")
step()
sys.stdin.readline()
began = time.perf_counter()
for _ in range(int(sys.argv[2])):
    step()
print(time.perf_counter() - began)
"""


def side_by_side(copies: int, steps: int, what: str = "vit") -> float:
    """Seconds of ``copies`` bare training loops side by side, with one thread each."""
    command = [sys.executable, "-c", _BARE, str(Path(__file__).parents[1]), str(steps), what]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(copies)
    ]
    time.sleep(15)  # all are imported and warm
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def row_two_cores(quick: bool) -> list[Row]:
    steps = 60 if quick else 240
    base = [sys.executable, "-m", "earlydrop", "-m", "schedule=none,constant,early,late",
            f"trainer.steps={steps}", "tracking=off",
            "trainer.eval_every=100%", "probe=none"]  # fmt: skip
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, extra in (
            ("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
            ("one thread", ["threads=1"]),
            ("two threads", ["threads=2"]),
        ):
            seconds[name] = timed(
                [*base, *extra, f"out={temporary}/{name.replace(' ', '-')}"], temporary
            )
    value = seconds["joblib"] / seconds["one thread"]
    bare = 20 if quick else 60
    limit = side_by_side(2, bare) / (2 * side_by_side(1, bare))
    note = (
        ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items())
        + f" ({steps} steps a run, start-up included); "
    )
    note += (
        f"two bare loops side by side take {limit:.3f} of their time in turn: this machine's limit"
    )
    what = "4-run sweep with two joblib workers, against one after another at one thread"
    return [Measured(value, note=note).row("two cores", what, at_most=0.6)]


def row_start(quick: bool) -> list[Row]:
    code = """
import time, torch
from torch import nn
t = time.perf_counter()
import earlydrop
m = nn.Sequential(nn.Dropout(.1))
s = earlydrop.DropoutScheduler(m, earlydrop.early(.1, 9))
s.step()
print(time.perf_counter() - t)
"""
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(5)
    ]
    helps = [timed([sys.executable, "-m", "earlydrop", "--help"], ROOT) for _ in range(5)]
    rows = []
    for name, what, values, target in (
        ("start", "import earlydrop and one use of it, beyond import torch (seconds)", times, 0.1),
        ("help", "earlydrop --help (seconds)", helps, 2.0),
    ):
        value = statistics.median(values)
        rows.append(
            Measured(value, low=min(values), high=max(values)).row(name, what, at_most=target)
        )
    return rows


def row_workers(quick: bool) -> list[Row]:
    """One run of two parts a step, by one process and by two gloo workers of one thread each."""
    steps, rates = 60 if quick else 300, {}
    run = ["device=cpu", "trainer.accumulate=2", f"trainer.steps={steps}", "trainer.log_every=20",
           "threads=1",
           "trainer.eval_every=100%", "evaluation.splits=[test]", "probe=none",
           "tracking=off"]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with tempfile.TemporaryDirectory() as temporary:
        for name, launcher in (
            ("one", [sys.executable]),
            ("two", torchrun),
            ("one again", [sys.executable]),
        ):
            rates[name] = _rate(
                launcher, run, Path(temporary) / name.replace(" ", "-"), **ONE_THREAD
            )
    alone = (rates["one"] + rates["one again"]) / 2
    value = rates["two"] / alone
    note = ", ".join(f"{name} {rate:.0f} images/s" for name, rate in rates.items())
    what = (
        "images per second of a run on two gloo workers, against one process (vit_micro, 2 parts a "
        "step, one thread each)"
    )
    return [Measured(value, note=note).row("two workers", what)]


_SPIN = "while True: sum(range(100_000))"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside the ``with`` block, ``count`` other processes each keep a core busy."""
    spinning = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def row_busy(quick: bool) -> list[Row]:
    """A run with a thread a core, alone and beside a busy process.

    Its OpenMP threads wait briefly (earlydrop's choice) or as long as GNU OpenMP's default.
    """
    steps, rates = 60 if quick else 200, {}
    run = ["device=cpu", f"trainer.steps={steps}", "trainer.log_every=20",
           "trainer.eval_every=100%", "evaluation.splits=[test]",
           "probe=none", "tracking=off"]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        for count in (0, 1):
            for how, environment in (("ours", {}), ("OpenMP's", {"GOMP_SPINCOUNT": "300000"})):
                with busy(count):
                    rates[how, count] = _rate(
                        [sys.executable],
                        run,
                        Path(temporary) / f"{count}{len(environment)}",
                        **environment,
                    )
    rows = []
    for count, name, where in (
        (0, "short waits, quiet", "on a quiet machine"),
        (1, "short waits, busy", "beside one other busy process"),
    ):
        ours, theirs = rates["ours", count], rates["OpenMP's", count]
        what = (
            f"images per second of a run with a thread a core {where}: threads that wait briefly, "
            "against GNU OpenMP's default"
        )
        rows.append(
            Measured(ours / theirs, note=f"{ours:.0f} images/s against {theirs:.0f}").row(
                name, what
            )
        )
    return rows


def _rate(launcher: list[str], run: list[str], out: Path, **environment: str) -> float:
    """Images per second of a run, the median of its logged rates after the first."""
    timed([*launcher, "-m", "earlydrop", *run, f"out={out}"], out.parent, **environment)
    (timing,) = out.rglob("timing.jsonl")
    return statistics.median(
        [json.loads(line)["images_per_second"] for line in timing.read_text().splitlines()][1:]
    )


def row_quickstart(quick: bool) -> list[Row]:
    """The first command, alone and beside one and two busy processes, and its bare steps."""
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in (0, 1, 2):
            command = [
                sys.executable,
                "-m",
                "earlydrop",
                "experiment=quickstart",
                f"out={temporary}/{count}",
            ]
            with busy(count):
                seconds[count] = timed(command, temporary)
    one = ["experiment=quickstart", "schedule=none", "seed=0"]
    steps = compose_one(one)["trainer"]["steps"]
    bare = 6 * side_by_side(2, steps, "quickstart")  # twelve runs, two at a time
    value = seconds[0] / bare
    note = f"{seconds[0]:.0f} s against {bare:.0f} s"
    what = "experiment=quickstart, against the bare training steps that it contains, two at a time"
    rows.append(Measured(value, note=note).row("quickstart", what))
    for count, limit in ((1, 2), (2, 3)):
        value = seconds[count] / seconds[0]
        others = f"{count} other busy process{'es' if count > 1 else ''}"
        what = f"experiment=quickstart beside {others}, against a quiet machine"
        rows.append(
            Measured(value, note=f"{seconds[count]:.0f} s").row(
                f"quickstart, {count} busy", what, at_most=limit
            )
        )
    return rows


BEFORE = "34dc1ef"
_STUDY = [
    "experiment=findings/underfitting",
    "schedule=none,early",
    "schedule.kind=unit",
    "tracking=off",
]


def row_throughput(quick: bool) -> list[Row]:
    """Runs per core hour of two arms of the underfitting study, against an earlier commit.

    Start-up, evaluation and report are included. Reduced evaluation reads 1,000 images before the
    last evaluation, which stays on all.
    """
    ways = {
        "throughput": ("as declared", []),
        "throughput, reduced": (
            "evaluations before the last on 1,000 images",
            ["evaluation.interim_images=1000"],
        ),
    }
    seeds, turns = 4, 1 if quick else 2
    seconds: dict[str, list[float]] = {name: [] for name in ("before", *ways)}
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "tree"
        before.mkdir()
        archive = subprocess.run(
            ["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(before)], input=archive, check=True)
        for turn in range(turns):
            for name, tree, more in (
                ("before", before, []),
                *((name, ROOT, more) for name, (_, more) in ways.items()),
            ):
                out = f"out={temporary}/{name.replace(', ', '-')}-{turn}"
                module = "cli" if name == "before" else "commands.run"
                start = f"from earlydrop.{module} import main; main()"
                command = [sys.executable, "-c", start, *_STUDY, f"seed=range({seeds})", out, *more]
                seconds[name].append(timed(command, temporary, PYTHONPATH=str(tree)))
    rows = []
    for name, (how, _) in ways.items():
        ratios = [b / s for b, s in zip(seconds["before"], seconds[name], strict=True)]
        value, median = statistics.median(ratios), statistics.median(seconds[name])
        hours = median * (os.cpu_count() or 1) / 3600
        note = f"{2 * seeds} runs in {median:.0f} s, {2 * seeds / hours:.0f} runs a core hour"
        what = (
            f"runs per core hour of the underfitting study (none and early), {how}, against commit "
            f"{BEFORE}"
        )
        rows.append(
            Measured(
                value,
                low=min(ratios) if turns > 1 else None,
                high=max(ratios) if turns > 1 else None,
                note=note,
            ).row(name, what, at_least=2)
        )
    return rows
