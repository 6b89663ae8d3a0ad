"""Estimate the time, memory and disk space of a run, from short timings and sizes."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from earlydrop.training.data.objective import Objective
from earlydrop.training.evaluate import evaluated_images
from earlydrop.training.plan import Plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.probes import dataset_images
from earlydrop.training.record.folder import RunFolder
from earlydrop.training.trainer import Trainer

_SECONDS = 2.0  # approximate longest time of one measurement
_FORWARD = 1 / 3  # forward pass / training pass, because a backward takes about two forwards
_CURVATURE = 65  # cost of a curvature measurement, in training passes over one part (gpt_micro)


class Cost(NamedTuple):
    """The cost of a run.

    Attributes:
        images_per_second: Images that one worker trains per second.
        measured: Whether ``images_per_second`` was timed on this machine; else it was given.
        training: Seconds of training, with all workers in parallel.
        evaluation: Seconds of all evaluations.
        probes: Seconds of all probes.
        weights: Bytes of the weights of a worker, their initial values, their average if one is
            kept, and their gradients.
        optimizer: Bytes of the optimizer's state.
        activations: Bytes that a part of a batch keeps for its backward pass.
        checkpoint: Bytes of a checkpoint.
        input: Images that one core reads and augments per second; None if no files are read.
        loaders: Loader processes of a worker. With 0, the worker itself reads each part before it
            trains on it.
    """

    images_per_second: float
    measured: bool
    training: float
    evaluation: float
    probes: float
    weights: int
    optimizer: int
    activations: int
    checkpoint: int
    input: float | None
    loaders: int = 0

    @property
    def total(self) -> float:
        """Seconds of training, evaluation and probes."""
        return self.training + self.evaluation + self.probes

    @property
    def input_bound(self) -> bool:
        """Whether the input path, not the device, sets the pace of training."""
        return self.input is not None and max(self.loaders, 1) * self.input < self.images_per_second

    def seconds(self, images: float, passes: float = 1.0) -> float:
        """Seconds that one worker needs for a number of images.

        Args:
            images: Number of images.
            passes: Device time of an image, as a multiple of a training pass.

        Returns:
            The time of the slower of device and input path. Without loader processes, their sum.
        """
        computing = images * passes / self.images_per_second
        if self.input is None:
            return computing
        if self.loaders == 0:
            return computing + images / self.input
        return max(computing, images / (self.loaders * self.input))


def workers_of(plan: Plan) -> int:
    """The number of workers of a plan."""
    from earlydrop.training.distributed import world_size

    return plan.config.plan.workers or world_size()


def unit_of(plan: Plan) -> str:
    """The unit of a plan's cost. A given speed is taken as that of a GPU elsewhere."""
    is_given = plan.config.plan.images_per_second is not None
    return "GPU hours" if plan.device.type == "cuda" or is_given else "hours"


def estimate(plan: Plan, like: Cost | None = None) -> Cost:
    """Time a few training passes and reads, and scale them to the whole run.

    ``like`` is the cost of a run with the same model, data and optimizer. Then nothing is measured:
    its rates and sizes are reused.
    """
    config = plan.config
    workers, batch = workers_of(plan), config.trainer.batch_size
    like = like or _measure(plan)
    evaluated = 0
    for step in plan.eval_steps:
        for split in config.evaluation.splits:
            evaluated += evaluated_images(plan, split, last=step == plan.total_steps)
    evaluated += sum(len(extra.indices) for extra in plan.source.extra.values())
    evaluated *= 2 if config.trainer.ema is not None else 1
    by_each_worker = 0  # Monte Carlo dropout is not shared
    if config.trainer.mc_passes is not None:
        by_each_worker = (config.trainer.mc_passes + 1) * plan.source.sizes["test"]
    images = config.probe.batches * batch + dataset_images(plan)
    if config.probe.curvature:
        images += _CURVATURE * (batch // config.trainer.accumulate) * workers
    probed = len(plan.probe_steps) * images * (2 if plan.compares else 1)
    return like._replace(
        training=like.seconds(plan.total_steps * batch / workers),
        evaluation=like.seconds(evaluated / workers + by_each_worker, _FORWARD),
        probes=like.seconds(probed / workers),
    )


def _measure(plan: Plan) -> Cost:
    """Measure rates and sizes. The times, which depend on the length of the run, are 0."""
    config = plan.config
    model, _ = scheduled_model(plan)
    given = config.plan.images_per_second
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    states = {"adamw": 2, "sgd": 1, "rmsprop": 1}[config.optim.name]
    averages = int(config.trainer.ema is not None)
    part = config.trainer.batch_size // config.trainer.accumulate
    return Cost(
        images_per_second=given or _images_per_second(plan),
        measured=given is None,
        training=0.0,
        evaluation=0.0,
        probes=0.0,
        weights=(3 + averages) * weights,
        optimizer=states * weights,
        activations=int(_activations(plan, model) * part),
        checkpoint=(1 + states + averages) * weights,
        input=_input_rate(plan) if plan.source.reads_files else None,
        loaders=config.data.workers,
    )


def _images_per_second(plan: Plan) -> float:
    """Images that this process trains per second, from whole optimizer steps.

    Only as many images of a large batch are timed as fit in about two seconds.
    """
    batch = plan.config.trainer.batch_size // plan.config.trainer.accumulate
    rate, images = 0.0, min(batch, 4)
    while True:
        rate = _timed(plan, images)
        affordable = min(batch, max(int(rate * _SECONDS / 3), 1))
        if affordable < 2 * images or images == batch:
            return rate
        images = affordable


def _timed(plan: Plan, images: int) -> float:
    """Images per second: the median of three steps, after one warm-up step."""
    trainer_config = dataclasses.replace(plan.config.trainer, batch_size=images, accumulate=1)
    config = dataclasses.replace(plan.config, trainer=trainer_config)
    small = dataclasses.replace(plan, config=config, source=plan.source.serial(), total_steps=4)
    with tempfile.TemporaryDirectory() as temporary:
        model, scheduler = scheduled_model(small)
        folder = RunFolder(Path(temporary))
        trainer = Trainer(small, model, scheduler, folder, track=lambda step, metrics: None)
        trainer.model.train()
        times = []
        for parts in trainer.batches():
            began = time.perf_counter()
            trainer.train_step(parts)
            trainer.window.summed()[-1].tolist()  # wait for the device
            times.append(time.perf_counter() - began)
        folder.close()
    return images / sorted(times[1:])[1]


def _activations(plan: Plan, model: nn.Module) -> float:
    """Bytes that an image's forward pass keeps for the backward one."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    count = 2
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model.train()(plan.source.blank(count, plan.device))
    bytes_kept = sum(size for where, size in kept.items() if where not in weights)
    return float(bytes_kept + out.numel() * out.element_size()) / count


def _input_rate(plan: Plan) -> float:
    """Images that one core reads and augments per second.

    A first small batch is not timed, because it opens files and loads modules.
    """
    count, reader = min(16, plan.source.sizes["train"]), plan.source.serial()
    keyed = [(0, torch.arange(min(count, 2))), (0, torch.arange(count))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = Objective(reader, plan.config.augment).batches(keyed, 0, "timing")
        next(batches)
        began = time.perf_counter()
        next(batches)
        return count / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
