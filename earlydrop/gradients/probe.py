"""The probe: measure the gradients of a model at fixed weights, without changing its training.

The paper leaves parts of the protocol open; these choices are ours. Mini-batch gradients are taken
in training mode with dropout at its present rate. The whole-dataset gradient is taken with every
dropout and path site off (checked on its first batch), and with BatchNorm as in training. The probe
restores everything that it touches, so training is bit for bit the same with and without it.
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
from earlydrop.sites.audit.watch import watch
from earlydrop.sites.drive import sites_off
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.sites.unwrap import named_modules, unwrap

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
    """Measure the gradients of a model: norm, direction variance and error, bias, noise scale.

    The probe restores the random state of Python, NumPy and torch, the generators of loaders,
    samplers and transforms, ``.grad``, modes and buffers. It never writes parameters.

    Args:
        model: The model, measured in training mode. If it is in training mode already, its modules
            in evaluation mode stay so.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss over the batch, a scalar tensor
            with a graph.
        batches: The mini-batches, at least two. One gradient is taken of each. Use the batch size
            of training.
        dataset: All training batches, for the whole-dataset gradient. It is iterated once, in its
            own order. If it is None, direction error and bias are None.
        images_in: The number of images in a batch, as a function of the batch. Default: the first
            dimension of the first tensor in it.
        parts: A function that splits one of ``batches`` into parts. The parts pass through the
            model one by one, and the gradient is the mean of their gradients, as in gradient
            accumulation. ``loss_fn`` and ``images_in`` then get parts. Default: one part.
        group: Workers whose gradients to combine. Each gives its own ``batches`` and ``dataset``,
            with at least one batch in both.
        measures: Additional measures: names and functions of `Moments`. The report has their values
            in ``further``.

    Returns:
        The measures.

    Raises:
        ValueError: ``batches`` or ``dataset`` is not iterable, ``dataset`` is a one-shot iterator
            or empty, ``group`` is given without ``dataset``, there are fewer than two batches,
            ``parts`` gives no part, the images of a batch cannot be counted, a gradient is zero or
            not finite, the loss is not a scalar, no parameter requires a gradient, or parameters
            are sharded (FSDP2).
        RuntimeError: The model still drops with every site off, so there is no single whole-dataset
            gradient (the error names the place), or the model uses activation checkpointing with
            ``use_reentrant=True``.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    >>> data = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(8)]
    >>> def loss_fn(model, batch):
    ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> report = probe(model, loss_fn, batches=data[:4], dataset=data)
    >>> 0 < report.gdv < 1 and 0 < report.gde < 1
    True
    """
    _check_iterables(batches, dataset)
    module = model
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        module = model.module
    parameters = [p for p in unwrap(module).parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient: nothing to measure"
        )
    refuse_sharded(
        dict(unwrap(module).named_parameters()),
        "the probe",
        "use DistributedDataParallel, or probe a whole copy in one process",
    )
    count_images = images_in or batch_images
    gradient_of = _Gradient(module, loss_fn, parameters)
    with (
        leave_no_trace(module, batches, dataset, loss_fn),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        if not module.training:
            module.train()
        dataset_gradient, dataset_images = None, None
        if dataset is not None:
            mean = MeanGradient()
            with sites_off(module):
                for index, batch in enumerate(_fresh(dataset)):
                    if index == 0:
                        _refuse_drops(module, loss_fn, batch)
                    mean.add(gradient_of(batch), count_images(batch), like=parameters)
            dataset_gradient, dataset_images = mean.value(group), mean.images
        sums = GradientSums(dataset_gradient, dataset_images)
        for batch in _fresh(batches):
            if parts is None:
                sums.add(gradient_of(batch), count_images(batch), like=parameters)
            else:
                mean_gradient, images = _mean_over_parts(gradient_of, parts(batch), count_images)
                sums.add(mean_gradient, images, like=parameters)
        if group is not None:
            sums.all_reduce(group)
    return sums.report(measures)


def _check_iterables(batches: Any, dataset: Any) -> None:
    """Refuse batches that cannot be iterated, and a dataset that can be iterated only once."""
    if dataset is not None and isinstance(dataset, Iterator):
        raise ValueError(
            f"dataset is a one-shot {type(dataset).__name__}, empty at the next probe: "
            "give a list of batches, a DataLoader, or an object whose __iter__ starts anew"
        )
    for name, value in (("batches", batches), ("dataset", dataset)):
        if value is not None and not isinstance(value, Iterable):
            raise ValueError(
                f"{name} is {type(value).__name__}: "
                "expected an iterable of batches, such as a list or a DataLoader"
            )


class _Gradient:
    """The gradient of the loss of a batch, one tensor for each parameter."""

    def __init__(self, module: nn.Module, loss_fn: LossFunction, parameters: list[Any]) -> None:
        self.module = module
        self.loss_fn = loss_fn
        self.parameters = parameters
        self.checked = False  # whether a loss was checked for reentrant checkpoints

    def __call__(self, batch: Any) -> tuple[Tensor | None, ...]:
        loss = self.loss_fn(self.module, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"loss_fn returned {_describe(loss)}: expected the batch's mean loss, a scalar "
                "tensor that depends on the parameters"
            )
        if not self.checked:
            _refuse_reentrant(loss)
            self.checked = True
        # backward() would write .grad and fire the hooks of DDP and of optimizers.
        return torch.autograd.grad(loss.reshape(()), self.parameters, allow_unused=True)


def _mean_over_parts(
    gradient: _Gradient, parts: Iterable[Any], count: Callable[[Any], int]
) -> tuple[Sequence[Tensor | None], int]:
    """The mean gradient over the parts of a mini-batch, and the number of its images."""
    total: Sequence[Tensor | None] = []
    images = number = 0
    for part in parts:
        of_part = gradient(part)
        if number == 0:
            total = of_part
        else:
            total = [_sum(a, b) for a, b in zip(total, of_part, strict=True)]
        images += count(part)
        number += 1
    if number == 0:
        raise ValueError("parts gave no part of a batch: expected at least one")
    return [entry if entry is None else entry / number for entry in total], images


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None:
        return b
    if b is None:
        return a
    return a + b


def _refuse_reentrant(loss: Tensor) -> None:
    """Refuse a graph with a reentrant checkpoint.

    torch.autograd.grad does not support it: it gives None for the parameters inside, or raises.
    """
    waiting = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "the probe cannot measure a model with activation checkpointing by "
                "use_reentrant=True, since torch.autograd.grad does not support it: use "
                "use_reentrant=False (transformers: model.gradient_checkpointing_enable("
                'gradient_checkpointing_kwargs={"use_reentrant": False})), or switch '
                "checkpointing off while probing"
            )
        waiting.extend(following for following, _ in node.next_functions)


def _refuse_drops(module: nn.Module, loss_fn: LossFunction, batch: Any) -> None:
    """Refuse a model that drops with every site off: its gradient would depend on the seed."""
    inner = unwrap(module)
    with leave_no_trace(module, batch, loss_fn), torch.no_grad(), watch(inner) as seen:
        loss = loss_fn(module, batch)
    names = {id(submodule): name or "the model" for name, submodule in named_modules(inner)}
    drops = set()
    for draw in seen.draws_with_effect(loss):
        if draw.module is not None or draw.rate is not None:
            owner = names.get(id(draw.module), "loss_fn")
            drops.add(f"{draw.operation} in {owner} ({draw.where})")
    if drops:
        listed = "; ".join(sorted(drops)[:4]) + ("; ..." if len(drops) > 4 else "")
        raise RuntimeError(
            f"with every site off something still drops: {listed}. The whole-dataset gradient "
            "would depend on the seed. Build the model without it, make it a site (an "
            "nn.Dropout), or measure without dataset="
        )


def batch_images(batch: Any) -> int:
    """The number of images in a batch: the first dimension of the first tensor in it.

    The batch is a tensor, or tuples, lists and dictionaries of them. ValueError if no tensor has a
    first dimension of 1 or more.
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
    raise ValueError(
        f"cannot tell how many images {_describe(batch)} holds: "
        "give images_in=, a function of the batch"
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _fresh(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches; a DataLoader is replaced by a copy.

    A loader with persistent workers has only one iterator, which training may be using.
    """
    if isinstance(batches, DataLoader):
        batches = copy.copy(batches)
        batches.__dict__["_iterator"] = None
    return batches
