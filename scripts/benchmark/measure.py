"""Parts of the rows: measuring side by side, a small ViT, its step, the peak memory of a call."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.config import ModelConfig
from earlydrop.training.data.objective import Objective
from earlydrop.training.models import Task, build_model
from earlydrop.training.optim import make_optimizer
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass
class Row:
    """One line of the table."""

    name: str
    what: str
    value: float
    target: str
    met: bool
    low: float | None = None
    high: float | None = None
    note: str = ""
    torch: str = str(torch.__version__)


class Measured(NamedTuple):
    """A median ratio, the spread of the measured ratios, and what was divided, in words."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""

    def row(
        self,
        name: str,
        what: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> Row:
        """The line of the table; ``at_most`` or ``at_least`` is the target, if there is one."""
        target, met = "(no target)", True
        if at_most is not None:
            target, met = f"at most {at_most}", self.value <= at_most
        elif at_least is not None:
            target, met = f"at least {at_least}", self.value >= at_least
        return Row(name, what, target=target, met=met, **self._asdict())


def synchronised(act: Callable[[], object]) -> float:
    """Seconds that a call takes, the device included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    act()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, warm_up: int = 3
) -> Measured:
    """Median and spread of ours/theirs over alternating measurements."""
    for _ in range(warm_up):
        ours(), theirs()
    pairs = []
    for i in range(repeats):
        first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        a, b = synchronised(first), synchronised(second)
        pairs.append((a, b) if i % 2 == 0 else (b, a))
    ratios = sorted(a / b for a, b in pairs)
    a, b = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    return Measured(
        statistics.median(ratios),
        low=ratios[len(ratios) // 10],
        high=ratios[-1 - len(ratios) // 10],
        note=f"{a:.1f} ms against {b:.1f} ms",
    )


def vit(unit: float, depth: int = 6, attention: str = "plain") -> nn.Module:
    return build_model(
        ModelConfig(depth=depth, attention=attention),
        Task(channels=1, classes=10, image_size=28, unit=unit, path=0.0),
        0,
    ).to(DEVICE)


def stepper(
    model: nn.Module,
    batch: int = 128,
    bf16: bool = False,
    after: Callable[[], object] = lambda: None,
    fused: bool | None = True,
) -> Callable[[], None]:
    """A function that runs one training step on fixed images: forward, backward, optimizer."""
    images, labels = (
        torch.randn(batch, 1, 28, 28, device=DEVICE),
        torch.randint(10, (batch,), device=DEVICE),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=fused or None)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


def study_stepper(
    experiment: str, bf16: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """A function that runs a bare training step of an experiment's model, without dropout.

    Every step has the same batch of the experiment's training images, on the CPU.
    """
    config = config_from_dict(compose([f"experiment={experiment}", "schedule=none", "device=cpu"]))
    plan = make_plan(config)
    model, _ = scheduled_model(plan)
    images, labels = next(
        iter(
            Objective(plan.source, config.augment).batches(
                [(0, torch.arange(config.trainer.batch_size))], 0, "augment"
            )
        )
    )
    optimizer = make_optimizer(model.train(), config.optim)
    called = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(called(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory(act: Callable[[], object]) -> int:
    """Bytes that a call needs at its peak, beyond what was held before.

    With CUDA it is the device's memory, else the process's resident memory (Linux).
    """
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        act()
        return torch.cuda.max_memory_allocated() - before

    def resident(field: str) -> int:
        return next(
            1024 * int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(field)
        )

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    act()
    return resident("VmHWM") - before
