"""The probe: collect mini-batch and whole-dataset gradients of a frozen model, leaving its training untouched.

Protocol (ours, where the paper's text leaves room): the mini-batch gradients are taken in training mode with dropout at its present
rate; the whole-dataset gradient with every dropout and path site off, which is checked on its first batch, and BatchNorm as in training.
Everything that the measuring touches is put back, so that training with the probe on is bit for bit training with it off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from earlydrop.distance import refuse_sharded
from earlydrop.gradients.measures import GradientReport, Moments
from earlydrop.gradients.sums import GradientSums, MeanGradient
from earlydrop.sites.drive import sites_off
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.sites.unwrap import named_modules, unwrap
from earlydrop.sites.watch import watch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LossFunction = Callable[[nn.Module, Any], Tensor]


def probe(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    dataset: Iterable[Any] | None = None,
    *,
    images_in: Callable[[Any], int] | None = None,
    parts: Callable[[Any], Iterable[Any]] | None = None,
    group: ProcessGroup | None = None,
    measures: Mapping[str, Callable[[Moments], float | None]] | None = None,
) -> GradientReport:
    """Measure the gradients of a model at its present weights: norm, direction variance and error, bias, noise scale.

    Nothing is left behind: Python's, NumPy's and torch's random state, the generators of loaders, samplers and their transforms,
    ``.grad``, every module's mode and every buffer are as before. Parameters are never written.

    Args:
        model: The model; measured in training mode. Submodules that were set to evaluation inside a model in training mode stay so.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss over the batch, a scalar tensor with a graph.
        batches: The mini-batches, at least two; one gradient is taken for each. Use batches of the training batch size.
        dataset: All training batches, for the whole-dataset gradient; iterated once, in its own order. None leaves out the
            direction error and the bias.
        images_in: Number of images in a batch. Default: the first dimension of the first tensor in it.
        parts: The parts of one of ``batches``, which go through the model one after the other; its gradient is the mean of theirs, as
            gradient accumulation takes it. ``loss_fn`` and ``images_in`` are then called with parts. Default: a batch is one part.
        group: Combine the gradients of these workers, each of which gives its own ``batches`` and ``dataset``.
        measures: Measures of your own, by name: functions of the `Moments`, for the report's ``further``.

    Returns:
        The measures.

    Raises:
        ValueError: A one-shot iterator as ``dataset``, fewer than two batches, a gradient that is zero or not finite, a loss that is not
            a scalar, sharded parameters (FSDP2).
        RuntimeError: The model still drops with every site off, so that there is no one whole-dataset gradient; it says where. Or it
            uses activation checkpointing with ``use_reentrant=True``.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    >>> data = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(8)]
    >>> def loss_fn(model, batch):
    ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> report = probe(model, loss_fn, batches=data[:4], dataset=data)
    >>> 0 < report.gdv < 1 and 0 < report.gde < 1
    True
    """
    if dataset is not None and isinstance(dataset, Iterator):
        raise ValueError(
            f"dataset is a one-shot {type(dataset).__name__}, which could not be measured twice: give a list of batches, a "
            "DataLoader, or an object whose __iter__ starts anew"
        )
    for name, value in (("batches", batches), ("dataset", dataset)):
        if value is not None and not isinstance(value, Iterable):
            raise ValueError(f"{name} is {type(value).__name__}: expected an iterable of batches, such as a list or a DataLoader")
    module = model.module if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) else model
    parameters = [p for p in unwrap(module).parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient: nothing to measure")
    named = dict(unwrap(module).named_parameters())
    refuse_sharded(named, "the probe", "use DistributedDataParallel, or probe a whole copy in one process")
    count = images_in or batch_images
    looked_at: list[Tensor] = []

    def gradient(batch: Any) -> tuple[Tensor | None, ...]:
        loss = loss_fn(module, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"loss_fn returned {_describe(loss)}: expected the batch's mean loss, a scalar tensor that depends on the parameters"
            )
        if not looked_at:
            _refuse_reentrant(loss)
            looked_at.append(loss.detach())
        # Not backward(): no .grad is touched and no hook of DDP or of an optimizer fires.
        return torch.autograd.grad(loss.reshape(()), parameters, allow_unused=True)

    def mean_gradient(batch: Any) -> tuple[Sequence[Tensor | None], int]:
        """The gradient of a mini-batch, and its number of images."""
        if parts is None:
            return gradient(batch), count(batch)
        total: Sequence[Tensor | None] = []
        images = number = 0
        for part in parts(batch):
            found = gradient(part)
            total = [_sum(a, b) for a, b in zip(total, found, strict=True)] if number else found
            images, number = images + count(part), number + 1
        if number == 0:
            raise ValueError("parts gave no part of a batch: expected at least one")
        return [each if each is None else each / number for each in total], images

    with leave_no_trace(module, batches, dataset, loss_fn), torch.inference_mode(False), torch.enable_grad():
        if not module.training:
            module.train()
        reference = None
        mean = MeanGradient()
        if dataset is not None:
            with sites_off(module):
                for index, batch in enumerate(_fresh(dataset)):
                    if index == 0:
                        _check_nothing_drops(module, loss_fn, batch)
                    mean.add(gradient(batch), count(batch), like=parameters)
            reference = mean.value(group)
        sums = GradientSums(reference, mean.images if dataset is not None else None)
        for batch in _fresh(batches):
            found, images = mean_gradient(batch)
            sums.add(found, images, like=parameters)
        if group is not None:
            sums.all_reduce(group)
    return sums.report(measures)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _refuse_reentrant(loss: Tensor) -> None:
    """Refuse a graph with a checkpoint that gives gradients to backward() alone: those of its parameters would be missing."""
    waiting = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "the probe cannot measure a model with activation checkpointing of the kind use_reentrant=True, whose gradients only "
                "backward() gives: checkpoint with use_reentrant=False (transformers: model.gradient_checkpointing_enable("
                'gradient_checkpointing_kwargs={"use_reentrant": False})), or switch checkpointing off while probing'
            )
        waiting.extend(following for following, _ in node.next_functions)


def _check_nothing_drops(module: nn.Module, loss_fn: LossFunction, batch: Any) -> None:
    """Refuse a model that drops though every site is off: its gradient would depend on the seed."""
    inner = unwrap(module)
    with leave_no_trace(module, batch, loss_fn), torch.no_grad(), watch(inner) as seen:
        loss = loss_fn(module, batch)
    left = [draw for draw in seen.finish(loss) if draw.module is not None or draw.rate is not None]
    if left:
        names = {id(each): name or "the model" for name, each in named_modules(inner)}
        found = sorted({f"{draw.operation} in {names.get(id(draw.module), 'loss_fn')} ({draw.where})" for draw in left})
        raise RuntimeError(
            f"with every site off something still drops: {'; '.join(found[:4])}{'; ...' if len(found) > 4 else ''}. The whole-dataset "
            "gradient would depend on the seed. Build the model without it, make it a site (an nn.Dropout), or measure without dataset="
        )


def batch_images(batch: Any) -> int:
    """Number of images in a batch: the first dimension of the first tensor in it.

    Args:
        batch: A tensor, or tuples, lists and dictionaries of them.

    Returns:
        The number of images.

    Raises:
        ValueError: There is no tensor with a first dimension.
    """
    stack = [batch]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor) and item.dim() > 0 and item.shape[0] > 0:
            return int(item.shape[0])
        if isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple)):
            stack.extend(reversed(item))
    raise ValueError(f"cannot tell how many images {_describe(batch)} holds: give images_in=, a function of the batch")


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _fresh(batches: Iterable[Any]) -> Iterable[Any]:
    """A loader with persistent workers has one iterator only, which training may be using: measure with a copy of the loader."""
    if isinstance(batches, DataLoader):
        batches = copy.copy(batches)
        batches.__dict__["_iterator"] = None
    return batches
