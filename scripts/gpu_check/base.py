"""Parts of the checks: how one passes, fails or is skipped, and small runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from earlydrop.training.compose import config_from_dict
from earlydrop.training.config import Config
from earlydrop.training.device import arithmetic
from earlydrop.training.endings import Interrupted
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.folder import RunFolder, read_metrics
from earlydrop.training.trainer import Trainer


class FailedError(Exception):
    """A check failed; the message says what is wrong."""


class SkippedError(Exception):
    """A check cannot be made on this machine; the message says why."""


class Check(NamedTuple):
    """One check.

    Attributes:
        run: Called with the device and an empty folder; returns what it found, in words.
        cuda: Whether it needs a CUDA device.
        limit: Seconds after which it has failed.
    """

    run: Callable[[torch.device, Path], str]
    cuda: bool = False
    limit: float = 60.0


def want(condition: bool, message: str) -> None:
    """Fail with a message, unless a condition holds."""
    if not condition:
        raise FailedError(message)


def small(device: torch.device, folder: Path, **overrides: Any) -> Config:
    """A small run: a ViT, 20 steps of 4 parts, dropout, mixing, a probe.

    In the names of ``overrides``, ``__`` stands for a dot.
    """
    values: dict[str, Any] = {
        "out": str(folder), "tracking": "off", "device": str(device),
        "threads": torch.get_num_threads(),
        "model": {"name": "vit_micro", "width": 32, "depth": 2, "heads": 2},
        "data": {"train_images": 640},
        "schedule": {"name": "early", "rate": 0.2, "cutoff": "50%"},
        "augment": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1},
        "trainer": {"steps": 20, "batch_size": 64, "accumulate": 4, "log_every": 1,
        "eval_every": "100%", "checkpoint_seconds": 1e9},
        "evaluation": {"splits": ["test"]},
        "probe": {"at": ["50%"], "batches": 2, "dataset_limit": 64},
    }  # fmt: skip
    for key, value in overrides.items():
        node = values
        *parents, leaf = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return config_from_dict(values)


def make_trainer(config: Config, stop_at: float = math.inf) -> Trainer:
    """The trainer of a run, at its beginning or its checkpoint. It stops at step ``stop_at``."""
    plan = make_plan(config)
    model, scheduler = scheduled_model(plan)
    folder = RunFolder(plan.folder)
    trainer = Trainer(plan, model, scheduler, folder, track=lambda step, metrics: None)
    trainer.stop = lambda: trainer.step >= stop_at
    trainer.resume()
    return trainer


def train(
    config: Config, stop_at: float = math.inf
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train to the end, or to a step: the run's metrics and its weights."""
    trainer = make_trainer(config, stop_at)
    try:
        with arithmetic(config.trainer, trainer.plan.device):
            trainer.train()
    except Interrupted:
        if stop_at == math.inf:
            raise
    finally:
        if trainer.folder is not None:
            trainer.folder.close()
    weights = {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()}
    return read_metrics(trainer.plan.folder / "metrics.jsonl"), weights


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> int:
    """The number of tensors that are not equal to the bit."""
    return sum(not torch.equal(first[name], second[name]) for name in first)
