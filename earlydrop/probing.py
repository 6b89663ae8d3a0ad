"""The probe: collect mini-batch and whole-dataset gradients of a frozen model, leaving its training untouched.

Protocol (ours, where the paper's text leaves room): the mini-batch gradients are taken in training mode with dropout at its present
rate; the whole-dataset gradient with every dropout and path site off and BatchNorm as in training. Everything that the measuring
touches is put back, so that training with the probe on is bit for bit training with it off.
"""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from earlydrop.gradients import GradientReport, GradientSums, MeanGradient
from earlydrop.sites import sites_off, unwrap

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
    group: ProcessGroup | None = None,
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
        group: Combine the gradients of these workers, each of which gives its own ``batches`` and ``dataset``.

    Returns:
        The measures.

    Raises:
        ValueError: A one-shot iterator as ``dataset``, fewer than two batches, a gradient that is zero or not finite, a loss that is not
            a scalar.

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
    count = images_in or batch_images

    def gradient(batch: Any) -> tuple[Tensor | None, ...]:
        loss = loss_fn(module, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"loss_fn returned {_describe(loss)}: expected the batch's mean loss, a scalar tensor that depends on the parameters"
            )
        # Not backward(): no .grad is touched and no hook of DDP or of an optimizer fires.
        return torch.autograd.grad(loss.reshape(()), parameters, allow_unused=True)

    with leave_no_trace(module, batches, dataset, loss_fn), torch.inference_mode(False), torch.enable_grad():
        if not module.training:
            module.train()
        reference = None
        mean = MeanGradient()
        if dataset is not None:
            with sites_off(module):
                for batch in _fresh(dataset):
                    mean.add(gradient(batch), count(batch), like=parameters)
            reference = mean.value(group)
        sums = GradientSums(reference, mean.images if dataset is not None else None)
        for batch in _fresh(batches):
            sums.add(gradient(batch), count(batch), like=parameters)
        if group is not None:
            sums.all_reduce(group)
    return sums.report()


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


@contextmanager
def leave_no_trace(model: nn.Module, *sources: object) -> Iterator[None]:
    """Afterwards random state, ``.grad``, modes and buffers are as before.

    Args:
        model: The model whose modes, buffers and ``.grad`` are kept.
        *sources: Loaders, datasets and functions whose random generators are kept.

    Yields:
        Nothing.
    """
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.backends.mps.is_available()
    mps_state = torch.mps.get_rng_state() if mps else None
    generators = _generators(sources, numpy, skip=model)
    restores = [_keep_generator(generator) for generator in generators]
    inner = unwrap(model)
    gradients = [(p, p.grad) for p in inner.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in inner.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer
                if buffer is not None and content is not None and not torch.equal(buffer, content):
                    buffer.copy_(content)
        for parameter, grad in gradients:
            parameter.grad = grad
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
        for restore in restores:
            restore()


def _keep_generator(generator: Any) -> Callable[[], object]:
    """What puts a generator back to its present state."""
    if isinstance(generator, torch.Generator):
        return functools.partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    if hasattr(generator, "bit_generator"):  # numpy.random.Generator
        return functools.partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    return functools.partial(generator.set_state, generator.get_state())  # numpy.random.RandomState


def _generators(sources: Iterable[object], numpy: Any, skip: nn.Module) -> list[Any]:
    """The random generators held by loaders, samplers, datasets, transforms and functions, a few levels deep."""
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    leaves: tuple[type, ...] = (Tensor, str, bytes, int, float, type(sys), type)
    if numpy is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
        leaves += (numpy.ndarray,)
    found: list[Any] = []
    seen = {id(module) for module in skip.modules()}
    level = list(sources)
    for _ in range(8):
        following: list[object] = []
        for item in level:
            if id(item) in seen or item is None or isinstance(item, leaves):
                continue
            seen.add(id(item))
            if isinstance(item, kinds):
                found.append(item)
            else:
                following.extend(_parts(item))
        level = following
    return found


def _parts(item: object) -> list[object]:
    """What an object holds: attributes, elements of small containers, what a function closes over."""
    if isinstance(item, Mapping):
        return list(item.values()) if len(item) <= 100 else []
    if isinstance(item, (list, tuple, set)):
        return list(item) if len(item) <= 100 else []
    parts: list[object] = list(getattr(item, "__dict__", {}).values())
    if isinstance(item, functools.partial):
        parts += [item.func, *item.args, *item.keywords.values()]
    parts += [getattr(item, "__self__", None), getattr(item, "__func__", None)]
    for cell in getattr(item, "__closure__", None) or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # a cell that is still empty
            continue
    parts += list(getattr(item, "__defaults__", None) or ())
    return parts
