"""Checks of the numbers: environment, masks, against the CPU, two equal runs, resuming, workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from timm.layers import DropBlock2d, DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import earlydrop
from earlydrop.training.compiler import compiler_problem
from earlydrop.training.record.provenance import environment
from earlydrop.training.streams import seed_device
from gpu_check.base import FailedError, SkippedError, differing, small, train, want


def check_environment(device: torch.device, folder: Path) -> str:
    """The versions of everything that computes; on a GPU all of them are known."""
    found = environment(device)
    unknown = [name for name, value in found.items() if value is None]
    want(not unknown, f"unknown: {', '.join(unknown)}")
    return ", ".join(f"{name} {value}" for name, value in found.items())


def check_against_cpu(device: torch.device, folder: Path) -> str:
    """20 steps without dropout: losses within 1e-4 of the CPU's in float32, 3e-2 in bf16."""
    plain = {"schedule__name": "none", "probe__at": []}
    reference, _ = train(small(torch.device("cpu"), folder / "cpu", **plain))
    words = []
    for precision, most in (("float32", 1e-4), ("bf16", 3e-2)):
        found, _ = train(small(device, folder / precision, trainer__precision=precision, **plain))
        pairs = [(a["train/loss"], b["train/loss"]) for a, b in zip(reference, found, strict=True)]
        apart = max(abs(a - b) / abs(a) for a, b in pairs)
        want(apart <= most, f"{precision}: losses are up to {apart:.1e} apart, expected {most:g}")
        words.append(f"{precision} {apart:.1e}")
    return "largest relative difference of a loss: " + ", ".join(words)


LAYERS: dict[
    str, tuple[Callable[[float], nn.Module], tuple[int, ...], bool]
] = {  # with the inputs' shape, and whether the mean stays
    "Dropout": (nn.Dropout, (256, 256), True),
    "Dropout2d": (nn.Dropout2d, (256, 64, 2, 2), True),
    "AlphaDropout": (nn.AlphaDropout, (256, 256), False),
    "DropPath": (DropPath, (8192, 8), True),
    "StochasticDepth": (lambda rate: StochasticDepth(rate, "row"), (8192, 8), True),
    "DropBlock2d": (
        lambda rate: DropBlock2d(rate, block_size=3, gamma_scale=1.0),
        (64, 8, 16, 16),
        True,
    ),
}


def check_masks(device: torch.device, folder: Path) -> str:
    """Every driver, its masks, eager and compiled: dropped share, mean, seed, evaluation."""
    compiled = compiler_problem(device.type) is None
    tried = 0
    for name in LAYERS:
        for masks in ("native", "fast"):
            for compiles in (
                (False, True) if compiled and name in ("Dropout", "DropPath") else (False,)
            ):
                _check_mask(device, name, masks, compiles)
                tried += 1
    return f"{tried} combinations of layer, masks and mode" + (
        "" if compiled else "; not compiled: torch.compile does not work here"
    )


def _check_mask(device: torch.device, name: str, masks: str, compiles: bool) -> None:
    build, shape, keeps_mean = LAYERS[name]
    rate, what = 0.25, f"{name}, {masks} masks, {'compiled' if compiles else 'eager'}"
    model = nn.Sequential(build(rate)).to(device).train()
    earlydrop.DropoutScheduler(model, earlydrop.constant(rate), kind="all", masks=masks)
    called = torch.compile(model) if compiles else model
    ones = torch.ones(shape, device=device)

    def draw(seed: int) -> Tensor:
        seed_device(device, seed)
        found: Tensor = called(ones)
        return found

    one, same, other = draw(1), draw(1), draw(2)
    want(torch.equal(one, same), f"{what}: one seed gave two masks")
    want(not torch.equal(one, other), f"{what}: two seeds gave one mask")
    kept = one.max() if keeps_mean else one.flatten().mode().values
    share = float((one != kept).double().mean())
    units = {
        "Dropout2d": 256 * 64,
        "DropPath": 8192,
        "StochasticDepth": 8192,
        "DropBlock2d": 64,
    }.get(name, ones.numel())
    # the blocks of DropBlock2d overlap, so its share varies more
    spread = 6 * math.sqrt(rate * (1 - rate) / units) + (0.05 if name == "DropBlock2d" else 0.0)
    want(
        abs(share - rate) <= spread,
        f"{what}: {share:.4f} of the values are dropped, expected {rate} ± {spread:.4f}",
    )
    if keeps_mean:
        mean = float(one.double().mean())
        want(abs(mean - 1) <= spread / (1 - rate), f"{what}: the mean is {mean:.4f}, expected 1")
    model.eval()
    want(torch.equal(called(ones), ones), f"{what}: it drops in evaluation mode")


def check_twice(device: torch.device, folder: Path) -> str:
    """Two runs of one configuration, with dropout, mixing and a probe, are equal to the bit."""
    one, other = (
        train(small(device, folder / name, trainer__deterministic=True))
        for name in ("one", "other")
    )
    want(one[0] == other[0], "the two runs recorded different metrics")
    want(
        not differing(one[1], other[1]),
        f"{differing(one[1], other[1])} of {len(one[1])} tensors differ",
    )
    return f"{len(one[0])} lines of metrics and {len(one[1])} tensors are equal"


def check_resume(device: torch.device, folder: Path) -> str:
    """A run that is stopped at step 7 and resumed ends with the bits of an uninterrupted run."""
    straight = train(small(device, folder / "straight", trainer__deterministic=True))
    stopped = small(device, folder / "stopped", trainer__deterministic=True)
    before, _ = train(stopped, stop_at=7)
    resumed = train(stopped)
    want(before[-1]["step"] == 7, f"the run stopped at step {before[-1]['step']:g}, expected 7")
    want(straight[0] == resumed[0], "the metrics differ")
    want(
        not differing(straight[1], resumed[1]),
        f"{differing(straight[1], resumed[1])} of {len(straight[1])} tensors differ",
    )
    return f"stopped at 7 of 20 steps: {len(straight[1])} tensors are equal"


def check_average(device: torch.device, folder: Path) -> str:
    """The average is its defining sum; an evaluation of it leaves the weights equal to the bit."""
    from earlydrop.training.average import WeightAverage

    model = nn.Linear(64, 64).to(device)
    average, past = WeightAverage(model, 0.5), [model.weight.detach().cpu().clone()]
    for _ in range(5):
        nn.init.normal_(model.weight)
        past.append(model.weight.detach().cpu().clone())
        average.update()
    shares = [0.5**5, *(0.5 ** (6 - i) for i in range(1, 6))]
    expected = sum(share * weight for share, weight in zip(shares, past, strict=True))
    torch.testing.assert_close(average.state_dict()["weight"].cpu(), expected)
    with average.in_place():
        torch.testing.assert_close(model.weight.detach().cpu(), expected)
    want(
        torch.equal(model.weight.detach().cpu(), past[-1]),
        "the weights have changed after an evaluation of the average",
    )
    return "as defined, and the weights are put back"


def check_workers(device: torch.device, folder: Path) -> str:
    """Two GPUs give the losses of one, up to rounding."""
    if torch.cuda.device_count() < 2:
        raise SkippedError(f"found {torch.cuda.device_count()} GPU: this check needs two")
    import subprocess
    import sys

    from earlydrop.training.record.folder import read_metrics

    command = ["tracking=off", "device=cuda", "data.train_images=640", "trainer.batch_size=64",
               "trainer.accumulate=4",
               "trainer.steps=20", "trainer.log_every=1", "trainer.eval_every=100%",
               "probe=none"]  # fmt: skip
    losses = []
    for count in (1, 2):
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={count}",
            "-m",
            "earlydrop",
        ]
        arguments = [
            *(launcher if count > 1 else ["-m", "earlydrop"]),
            *command,
            f"out={folder / str(count)}",
        ]
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise FailedError(f"{count} workers: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        (record,) = (folder / str(count)).rglob("metrics.jsonl")
        losses.append(
            [
                line["train/loss"]
                for line in read_metrics(record.parent / "metrics.jsonl")
                if "train/loss" in line
            ]
        )
    apart = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    want(apart <= 1e-4, f"losses are up to {apart:.1e} apart, expected 1e-4")
    return f"largest relative difference of a loss: {apart:.1e}"
