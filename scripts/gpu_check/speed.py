"""Checks of speed: waiting for the GPU, graphs, attention kernels, throughput, copies, memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import nn

import earlydrop
from earlydrop.sites.attention import available
from earlydrop.training.compiler import compiler_problem
from earlydrop.training.config import ModelConfig
from earlydrop.training.flops import bf16_peak
from earlydrop.training.models import Task, build_model
from gpu_check.base import FailedError, SkippedError, make_trainer, small, want


def check_waits(device: torch.device, folder: Path) -> str:
    """Nothing in batches and steps waits for the GPU, by torch's own check."""
    trainer = make_trainer(
        small(device, folder, trainer__log_every=1000, probe__at=[], trainer__precision="bf16")
    )
    trainer.model.train()
    batches = iter(trainer.batches())
    for _ in range(3):  # allocators, handles and kernels of the first steps
        trainer.train_step(next(batches))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            trainer.train_step(next(batches))
            if trainer.scheduler is not None:
                trainer.scheduler.step()
    except RuntimeError as error:
        import traceback

        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "earlydrop" in frame.filename
        ]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        raise FailedError(f"{where} waits for the GPU ({str(error).splitlines()[0]})") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "5 steps of 4 parts wait for nothing"


def check_graphs(device: torch.device, folder: Path) -> str:
    """A compiled model at a changing rate, with evaluations between, takes three graphs at most."""
    problem = compiler_problem(device.type)
    if problem is not None:
        raise SkippedError(problem)
    model = build_model(
        ModelConfig(name="mlp", hidden=[32]),
        Task(channels=1, classes=10, image_size=28, unit=0.2, path=0.0),
        0,
    ).to(device)
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.2, cutoff=10))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    called, images = torch.compile(model.train()), torch.randn(16, 1, 28, 28, device=device)
    for step in range(15):
        called(images).sum().backward()
        scheduler.step()
        if step in (4, 12):
            with torch.no_grad():
                called.eval()(images)
            called.train()
    graphs = counters["unique_graphs"] - before
    want(graphs <= 3, f"{graphs} graphs, expected at most 3")
    return f"{graphs} graphs for 15 steps and 2 evaluations"


def check_attention(device: torch.device, folder: Path) -> str:
    """With dropout on, attention goes through a fused kernel, eager and compiled."""
    fused = {}
    for compiles in (False, True) if compiler_problem(device.type) is None else (False,):
        model = (
            build_model(
                ModelConfig(depth=2, attention="fused"),
                Task(channels=1, classes=10, image_size=28, unit=0.1, path=0.0),
                0,
            )
            .to(device)
            .train()
        )
        earlydrop.DropoutScheduler(model, earlydrop.early(0.1, cutoff=100))
        called = torch.compile(model) if compiles else model
        images = torch.randn(32, 1, 28, 28, device=device)

        def step(called: nn.Module = called, images: torch.Tensor = images) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                called(images).float().sum().backward()

        step()
        with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profile:
            step()
        names = {event.key for event in profile.key_averages()}
        fused["compiled" if compiles else "eager"] = any(
            "scaled_dot_product" in name
            and ("flash" in name or "efficient" in name or "cudnn" in name)
            for name in names
        )
    lacking = [mode for mode, there in fused.items() if not there]
    want(not lacking, f"no fused attention with dropout on: {', '.join(lacking)}")
    return f"fused attention with dropout on: {', '.join(fused)}"


def check_same_attention(device: torch.device, folder: Path) -> str:
    """Under one seed, compiled attention with dropout gives the numbers of eager attention."""
    if compiler_problem(device.type) is not None or not available(device):
        raise SkippedError("torch is too old, or does not compile here")
    results = []
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # compiled attention does not use it
    try:
        for compiles in (False, True):
            torch.manual_seed(0)
            model = Attention(128, 4, attn_drop=0.3).to(device).train()
            earlydrop.DropoutScheduler(model, earlydrop.constant(0.3))
            called = torch.compile(model, fullgraph=True) if compiles else model
            tokens = torch.randn(8, 50, 128, device=device, requires_grad=True)
            torch.manual_seed(1)
            with torch.autocast(device.type, torch.bfloat16):
                out = called(tokens).float()
            out.square().sum().backward()
            results.append(torch.stack((out.detach(), tokens.grad)))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    eager, compiled = results
    error = ((compiled - eager).norm() / eager.norm()).item()
    want(error < 0.01, f"compiled differs from eager by {error:.1%}, expected less than 1%")
    return f"compiled differs from eager by {error:.2%}"


def _rate(step: Callable[[], object], images: int, repeats: int = 7) -> float:
    """Images a second of a step, the median after a warm-up."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return images / statistics.median(times)


def check_trainer(device: torch.device, folder: Path) -> str:
    """The trainer has at least 0.95 of a bare loop's speed, in images per second."""
    size, precision = 1024, "bf16"
    sizes = {
        "model__width": 192,
        "model__depth": 12,
        "model__heads": 3,
        "model__attention": "fused",
        "data__train_images": None,
    }
    plain = {
        "augment__mixup": 0.0,
        "augment__cutmix": 0.0,
        "schedule__name": "none",
        "probe__at": [],
    }
    config = small(device, folder, trainer__batch_size=size, trainer__accumulate=1,
                   trainer__steps=100, trainer__precision=precision,
                   trainer__log_every=1000, **sizes, **plain)  # fmt: skip
    trainer = make_trainer(config)
    trainer.model.train()
    batches = iter(trainer.batches())
    ours = _rate(lambda: [trainer.train_step(next(batches)) for _ in range(5)], 5 * size)
    images, labels = next(batches)[0]

    def bare() -> None:
        for _ in range(5):
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(trainer.model(images).float(), labels)
            loss.backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    theirs = _rate(bare, 5 * size)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counted:
        bare()
    name = torch.cuda.get_device_name(device)
    peak = bf16_peak(device) or math.nan
    share = ours * counted.get_total_flops() / (5 * size) / peak
    words = (
        f"{ours:,.0f} images/s, {ours / theirs:.3f} of a bare loop, {share:.1%} of the peak of "
        f"{name}"
    )
    want(ours >= 0.95 * theirs, f"{words}; expected at least 0.95 of it")
    return words


def check_copies(device: torch.device, folder: Path) -> str:
    """Copies from pinned memory overlap a computation, for half of the shorter one or more."""
    host = torch.empty(256 * 2**20, dtype=torch.uint8, pin_memory=True)
    target, stream = torch.empty_like(host, device=device), torch.cuda.Stream()
    square = torch.randn(4096, 4096, device=device)

    def compute() -> None:
        for _ in range(20):
            square @ square

    def copy() -> None:
        with torch.cuda.stream(stream):
            target.copy_(host, non_blocking=True)

    def both() -> None:
        copy()
        compute()

    alone = [1 / _rate(work, 1) for work in (compute, copy)]
    together = 1 / _rate(both, 1)
    hidden = (sum(alone) - together) / min(alone)
    words = (
        f"{hidden:.0%} of the shorter of {alone[0] * 1e3:.1f} ms of products and "
        f"{alone[1] * 1e3:.1f} ms of a copy are hidden"
    )
    want(hidden >= 0.5, f"{words}, expected half")
    return words


def check_probe_memory(device: torch.device, folder: Path) -> str:
    """The probe of ViT-T at the paper's batch, 4,096 images in 32 parts, holds less than 16 GiB."""
    from earlydrop.gradients.probe import probe

    model = build_model(
        ModelConfig(name="vit_tiny_patch16_224", attention="fused"),
        Task(channels=3, classes=1000, image_size=224, unit=0.1, path=0.0),
        0,
    ).to(device)
    parts = [
        (torch.randn(128, 3, 224, 224, device=device), torch.randint(1000, (128,), device=device))
    ] * 32

    def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(batch[0])
        return F.cross_entropy(logits.float(), batch[1])

    torch.cuda.reset_peak_memory_stats()
    report = probe(model, loss_fn, [parts, parts], dataset=parts, parts=iter)
    peak = torch.cuda.max_memory_allocated() / 2**30
    want(peak < 16, f"{peak:.1f} GiB at the peak, expected less than 16")
    return f"{peak:.1f} GiB at the peak, GDV {report.gdv:.3f}"
