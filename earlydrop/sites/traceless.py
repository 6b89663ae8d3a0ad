"""Measuring a model without leaving a trace: random state, gradients, modes and buffers are put back."""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.sites.unwrap import unwrap


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
                if buffer is not None and content is not None and not buffer.is_meta and not torch.equal(buffer, content):
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
    closure, defaults = (getattr(item, name, None) for name in ("__closure__", "__defaults__"))
    for cell in closure if isinstance(closure, tuple) else ():  # an object may answer to any name
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # a cell that is still empty
            continue
    parts += list(defaults) if isinstance(defaults, tuple) else []
    return parts
