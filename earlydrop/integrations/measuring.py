"""What the callbacks of all frameworks share that measure gradients during a training: when, on which batches, and what is logged."""

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
    """When gradients are measured, and on what.

    Args:
        every: Optimizer steps between two measurements; the first is before the first step.
        batches: The mini-batches, one gradient for each, at least two; or how many to take of the training data, of its batch
            size, the same ones at every measurement.
        dataset: The batches behind the whole-dataset gradient of the direction error; by default the mini-batches together; False leaves
            the error out, as a model must that draws noise which is no dropout.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss; by default the framework's own.
        initial: The module or state dict that the model distance is from; by default the weights that the trainer was given.

    Raises:
        ValueError: A value that cannot be used.
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
        many = batches if isinstance(batches, int) else len(batches) if isinstance(batches, Sized) else 2
        if isinstance(batches, Iterator) or not isinstance(batches, (int, Iterable)) or many < 2:
            raise ValueError(f"batches is {batches!r}: expected a number of mini-batches, at least 2, or a list of them")
        self.every, self.batches, self.dataset, self.loss_fn = every, batches, dataset, loss_fn
        self.initial = initial
        self._taken: list[Any] | None = None

    def keep_initial(self, model: nn.Module) -> None:
        """Keep the weights of a model that is to be trained, unless others were given or kept before."""
        if self.initial is None:
            self.initial = {name: p.detach().clone() for name, p in model.named_parameters()}

    def due(self, step: int) -> bool:
        """Whether gradients are measured after ``step`` optimizer steps."""
        return step % self.every == 0

    def take(self, model: nn.Module, loader: Any, size: int | None) -> None:
        """Take the mini-batches out of a loader's dataset, without touching the loader; not twice.

        Args:
            model: The model, whose random state is kept.
            loader: The trainer's loader.
            size: Examples of a batch; None if the dataset's items are batches.

        Raises:
            ValueError: The dataset has no index.
        """
        if isinstance(self.batches, int) and self._taken is None:
            with leave_no_trace(model, loader):
                self._taken = _batches_of(loader, self.batches, size)

    def measure(self, model: nn.Module, loss_fn: LossFunction) -> dict[str, float]:
        """The measures at the model's present weights and rate, by name. Training goes on as if nothing had been measured."""
        batches: Iterable[Any] = self._taken if self._taken is not None else self.batches  # type: ignore[assignment]
        whole = batches if self.dataset is None else self.dataset or None
        report = probe(model, loss_fn, batches, dataset=whole)  # type: ignore[arg-type]
        values = {f"probe/{name}": getattr(report, name) for name in _FROM_THE_REPORT}
        if self.initial is not None:
            values["model/distance"] = model_distance(model, self.initial)
        return {name: value for name, value in values.items() if value is not None}


def _batches_of(loader: Any, count: int, size: int | None) -> list[Any]:
    dataset = getattr(loader, "dataset", None)
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    if dataset is None or not indexed:
        raise ValueError(
            f"batches is {count}: the training data ({type(dataset if dataset is not None else loader).__name__}) has no index to "
            "take them by; give batches= as a list of batches"
        )
    needed = count * (size or 1)
    if len(dataset) < needed:
        raise ValueError(f"batches is {count}: the training data has {len(dataset)} items, and {needed} are needed; give fewer")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:needed].tolist()
    collate: Callable[[Any], Any] = loader.collate_fn
    if size is None:
        return [collate(dataset[index]) for index in order]
    return [collate([dataset[index] for index in order[start : start + size]]) for start in range(0, needed, size)]
