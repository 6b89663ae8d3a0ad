"""Measure gradients during training: the part that the callbacks of all frameworks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from earlydrop.distance import model_distance
from earlydrop.gradients.probe import LossFunction, probe
from earlydrop.sites.traceless import leave_no_trace

_FROM_THE_REPORT = ("gradient_norm", "gdv", "gde")


class Measuring:
    """The steps, batches and loss of measurements during training.

    Args:
        every: Optimizer steps between two measurements. The first is before the first step.
        batches: A list of at least two mini-batches, or a number of at least 2. With a number, that
            many are taken from the training data, in its batch size. Every measurement uses the
            same ones.
        dataset: The batches for the whole-dataset gradient of the direction error. Default: the
            mini-batches together. False leaves the error out; choose it for a model with noise that
            is not dropout.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss. Default: that of the framework.
        initial: The module or state dict from which the model distance is taken. Default: the
            weights that the trainer was given.

    Raises:
        ValueError: ``every`` or ``batches`` is not usable.
    """

    def __init__(
        self,
        every: int,
        batches: int | Iterable[Any],
        dataset: Iterable[Any] | bool | None,
        loss_fn: LossFunction | None,
        initial: nn.Module | Mapping[str, Tensor] | None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every is {every!r}: expected a number of optimizer steps, 1 or more")
        if not _enough(batches):
            raise ValueError(
                f"batches is {batches!r}: "
                "expected a number of mini-batches, at least 2, or a list of them"
            )
        self.every = every
        self.batches = batches
        self.dataset = dataset
        self.loss_fn = loss_fn
        self.initial = initial
        self._taken: list[Any] | None = None

    def keep_initial(self, model: nn.Module) -> None:
        """Keep the weights of a model as the initial ones, unless there are some already."""
        if self.initial is None:
            self.initial = {name: p.detach().clone() for name, p in model.named_parameters()}

    def due(self, step: int) -> bool:
        """Whether gradients are measured after ``step`` optimizer steps."""
        return step % self.every == 0

    def take(self, model: nn.Module, loader: Any, size: int | None) -> None:
        """Take the mini-batches from the dataset of a loader. A second call does nothing.

        The loader itself is not touched.

        Args:
            model: The model, whose random state is kept.
            loader: The loader of the trainer.
            size: Examples in a batch; None if the items of the dataset are batches.

        Raises:
            ValueError: The dataset has no index, or too few items.
        """
        if isinstance(self.batches, int) and self._taken is None:
            with leave_no_trace(model, loader):
                self._taken = _batches_of(loader, self.batches, size)

    def measure(self, model: nn.Module, loss_fn: LossFunction) -> dict[str, float]:
        """The measures at the present weights and rate, by name, without a trace on training."""
        batches: Any = self._taken if self._taken is not None else self.batches
        dataset: Any = batches if self.dataset is None else self.dataset
        dataset = None if dataset is False else dataset
        report = probe(model, loss_fn, batches, dataset=dataset)
        values = {f"probe/{name}": getattr(report, name) for name in _FROM_THE_REPORT}
        if self.initial is not None:
            values["model/distance"] = model_distance(model, self.initial)
        return {name: value for name, value in values.items() if value is not None}


def _enough(batches: Any) -> bool:
    """Whether these are at least two batches, or a number of at least 2."""
    if isinstance(batches, Iterator) or not isinstance(batches, (int, Iterable)):
        return False
    if isinstance(batches, int):
        return batches >= 2
    return not isinstance(batches, Sized) or len(batches) >= 2


def _batches_of(loader: Any, count: int, size: int | None) -> list[Any]:
    """A fixed random choice of mini-batches from the dataset of a loader."""
    dataset: Any = getattr(loader, "dataset", None)
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if dataset is None or not indexed or isinstance(dataset, IterableDataset):
        source = type(dataset if dataset is not None else loader).__name__
        raise ValueError(
            f"batches is {count}: the training data ({source}) has no index to take them by; "
            "give batches= as a list of batches"
        )
    sampler = getattr(loader, "batch_sampler", None)
    if size is None and sampler is not None:
        size = getattr(sampler, "batch_size", None)
        if size is None:
            raise ValueError(
                f"batches is {count}: the batch sampler ({type(sampler).__name__}) has no "
                "batch_size to take them by; give batches= as a list of batches"
            )
    needed = count * (size or 1)
    if len(dataset) < needed:
        raise ValueError(
            f"batches is {count}: the training data has {len(dataset)} items, and {needed} are "
            "needed; give fewer"
        )
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator)[:needed].tolist()
    collate: Callable[[Any], Any] = loader.collate_fn
    if size is None:
        return [collate(dataset[index]) for index in order]
    batches = []
    for start in range(0, needed, size):
        batches.append(collate([dataset[index] for index in order[start : start + size]]))
    return batches
