"""Measure a model without side effects: random state, gradients, modes and buffers are restored."""

from __future__ import annotations

import copy
import functools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from earlydrop.sites.unwrap import unwrap


@contextmanager
def leave_no_trace(model: nn.Module, *sources: object) -> Iterator[None]:
    """Afterwards, random state, ``.grad``, modes and the present buffers are as before.

    Within it, ``.grad`` is None at first.

    Args:
        model: The model whose modes, buffers and ``.grad`` are kept.
        *sources: Loaders, datasets and functions whose random generators are kept. Generators
            inside the model are not searched for.

    Yields:
        Nothing.
    """
    restores = [
        *keep_global_random_state(),
        *map(_keep_generator, _generators(sources, skip=model)),
    ]
    inner = unwrap(model)
    gradients = [(p, p.grad) for p in inner.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None  # a backward inside would add to the gradient in place
    modes = [(module, module.training) for module in model.modules()]
    buffers = []
    for module in inner.modules():
        for name, buffer in module._buffers.items():
            content = None
            if buffer is not None and not is_lazy(buffer):
                content = buffer.detach().clone()
            buffers.append((module, name, buffer, content))
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer
                if buffer is None or content is None or buffer.is_meta:
                    continue
                if buffer.layout is not torch.strided or not torch.equal(buffer, content):
                    buffer.copy_(content)
        for parameter, grad in gradients:
            parameter.grad = grad
        for restore in restores:
            restore()


def keep_global_random_state() -> list[Callable[[], object]]:
    """Functions that put the global random state of Python, NumPy and torch back."""
    restores: list[Callable[[], object]] = [functools.partial(random.setstate, random.getstate())]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state = numpy.random.get_state()
        restores.append(functools.partial(numpy.random.set_state, state))
    restores.append(functools.partial(torch.set_rng_state, torch.get_rng_state()))
    if torch.cuda.is_initialized():
        states = torch.cuda.get_rng_state_all()
        restores.append(functools.partial(torch.cuda.set_rng_state_all, states))
    if torch.xpu.is_available():
        states = torch.xpu.get_rng_state_all()
        restores.append(functools.partial(torch.xpu.set_rng_state_all, states))
    if torch.backends.mps.is_available():
        restores.append(functools.partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))
    return restores


def _keep_generator(generator: Any) -> Callable[[], object]:
    """A function that puts a generator back to its present state."""
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    if hasattr(generator, "bit_generator"):  # numpy.random.Generator
        state = copy.deepcopy(generator.bit_generator.state)
        return functools.partial(setattr, generator.bit_generator, "state", state)
    # A torch.Generator, or a RandomState of NumPy.
    return functools.partial(generator.set_state, generator.get_state())


def _generators(sources: Iterable[object], skip: nn.Module) -> list[Any]:
    """The random generators inside loaders, samplers, datasets, transforms and functions.

    They are searched eight levels deep. Objects with slots, containers of more than 100 elements,
    and containers other than mappings, lists, tuples and sets are not searched.
    """
    numpy = sys.modules.get("numpy")
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    leaves: tuple[type, ...] = (Tensor, str, bytes, int, float, types.ModuleType, type)
    if numpy is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
        leaves += (numpy.ndarray,)
    generators: list[Any] = []
    seen = {id(module) for module in skip.modules()}
    level = list(sources)
    for _ in range(8):
        following: list[object] = []
        for item in level:
            if id(item) in seen or item is None or isinstance(item, leaves):
                continue
            seen.add(id(item))
            if isinstance(item, random.SystemRandom):
                continue  # the operating system's generator has no state
            if isinstance(item, kinds):
                generators.append(item)
            else:
                following.extend(_parts(item))
        level = following
    return generators


def _parts(item: object) -> list[object]:
    """The parts of an object: attributes, elements of a small container, what a function holds."""
    if isinstance(item, Mapping):
        return list(item.values()) if len(item) <= 100 else []
    if isinstance(item, (list, tuple, set)):
        return list(item) if len(item) <= 100 else []
    parts: list[object] = list(getattr(item, "__dict__", {}).values())
    if isinstance(item, functools.partial):
        parts += [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, types.BuiltinMethodType):
        parts.append(item.__self__)
    if isinstance(item, types.MethodType):
        parts += [item.__self__, item.__func__]
    slot = getattr(type(item), "__wrapped__", None)
    if isinstance(slot, types.MemberDescriptorType):  # the losses of `earlydrop.integrations`
        parts.append(slot.__get__(item))
    if isinstance(item, types.FunctionType):
        parts += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
        for cell in item.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # the cell is still empty
                continue
    return parts
