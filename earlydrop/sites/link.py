"""What a driven module carries, and the swap of its class.

Each driver (`earlydrop.sites.layers`, `earlydrop.sites.attention`) is a mixin. `link` puts it in front of a module's own class, in place,
so identity, hooks, ``isinstance`` and ``state_dict`` keys survive; `unlink` takes it away again.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch._compile
import torch.utils.checkpoint
from torch import Tensor, nn

from earlydrop.sites.bank import RateBank
from earlydrop.sites.held import PREFIX, ConfigView, real_config

LINK = "_earlydrop_link"  # in the __dict__ of a driven module: what drives it
RATE = "_earlydrop_rate"  # beside it: the rate as a 0-d tensor, a view of the bank's vector
COPIED_HOOKS = "earlydrop: hooks in the copy"  # in a deepcopy's memo: (dictionary of hooks, key) that the copy shall not have
COPIED_BASE = "_earlydrop_base"  # in the __dict__ of a copy of a driven module: {attribute: (rate when copied, base rate)}


class Rate(NamedTuple):
    """One rate: a place in a bank."""

    bank: RateBank
    place: int

    @property
    def name(self) -> str:
        return self.bank.names[self.place]


@dataclass(frozen=True)
class Link:
    """What a driven module knows of its schedulers."""

    name: str  # of the module, dotted; "" for the model itself
    bank: RateBank  # of the first rate
    index: int
    rates: dict[str, Rate]  # attribute -> rate
    reads: tuple[Rate, ...]  # rates of the modules inside that this module's forward reads as floats
    drivers: tuple[type, ...]
    original: type[nn.Module]
    scheduled: type[nn.Module]
    view: ConfigView | None = None  # of the module's config, where it reads rates from that

    @property
    def all_rates(self) -> tuple[Rate, ...]:
        return (*self.rates.values(), *self.reads)

    def changing(self) -> bool:
        """Whether one of its rates is on, or will be."""
        return any(rate.bank.on or rate.bank.rises for rate in self.all_rates)


def refuse(rate: str, module: str, layer: str) -> NoReturn:
    path = f"model.get_submodule({module!r})" if module else "model"
    raise RuntimeError(
        f"site {rate!r} cannot have a changing rate under torch.compile: {layer} hands it to a kernel as a Python float, so every new rate "
        f"would compile a new graph. Leave that module out of the compiled part (m = {path}; m.forward = "
        "torch.compiler.disable(m.forward)), choose other sites with sites=, replace it by a layer that calls an nn.Dropout, or train "
        "without torch.compile"
    )


# What torch.compiler.disable() would set, without importing the compiler for it: tracing stops here, so that the error is raised.
refuse._torchdynamo_disable = True  # type: ignore[attr-defined]
refuse._torchdynamo_disable_msg = "earlydrop: this drop rate cannot change inside a compiled graph"  # type: ignore[attr-defined]


# Whether torch.compile watches the calls of a frame that it left to Python, as it does after a graph break: what that frame calls would
# be compiled by itself, with the rate as a constant.
compiler_watches: Callable[[], object] = torch._C._dynamo.eval_frame.get_eval_frame_callback


@torch._compile._disable_dynamo  # torch.compiler.disable(), without importing the compiler before something is compiled
def outside_the_graph(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a driven module in eager mode, where tracing stops."""
    return type(module).forward(module, *args, **kwargs)


outside_the_graph._torchdynamo_disable = True  # type: ignore[attr-defined]
outside_the_graph._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "earlydrop: this module hands a drop rate to a kernel as a Python float, so while the rate changes it runs outside of the graph: leave "
    "out fullgraph=True, choose other sites with sites=, or replace the module by one that calls an nn.Dropout"
)


class Scheduled:
    """What every driven module shares: moving with the model, and being copied as the plain module that it is."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        result: nn.Module = super()._apply(fn, recurse)  # type: ignore[misc]
        old = self.__dict__.get(RATE)
        if old is None:
            return result
        device = fn(torch.empty(0, device=old.device)).device  # where fn moves things; the rate's dtype stays
        if device != old.device:
            link: Link = self.__dict__[LINK]
            self.__dict__[RATE] = link.bank.view(link.index, device)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are plain modules with the rate of this moment, free of the scheduler."""
        twin = plain_twin(cast(nn.Module, self))
        reduced: Any = twin.__reduce_ex__(protocol)
        make, arguments, *state = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]  # pickle would refuse it: this object has another class
            make, arguments = copyreg._reconstructor, (type(twin), object, None)  # type: ignore[attr-defined]
        return make, arguments, *state

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        for hooks, key in memo.pop(COPIED_HOOKS, ()):  # torch copies a module's hooks before the modules inside
            hooks.pop(key, None)
        twin = plain_twin(cast(nn.Module, self))
        own = getattr(type(twin), "__deepcopy__", None)  # torch's parametrized modules have one
        if own is not None:
            memo[id(self)] = own(twin, memo)
            return memo[id(self)]
        return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]

    def __prepare_scriptable__(self) -> NoReturn:
        link: Link = self.__dict__[LINK]
        raise RuntimeError(
            f"{link.name or link.original.__name__!r} is driven by a DropoutScheduler, which TorchScript cannot compile: call the "
            "scheduler's restore() before torch.jit.script, or script a copy.deepcopy(model), which is free of the scheduler"
        )

    def extra_repr(self) -> str:
        return plain_twin(cast(nn.Module, self)).extra_repr()  # some read their __dict__, which holds the base rate


def plain_twin(module: nn.Module) -> nn.Module:
    """A second shell around a driven module's parts, of its own class and at its present rates, for copies and prints."""
    link: Link = module.__dict__[LINK]
    twin: nn.Module = object.__new__(_exchange(type(module), link.scheduled, link.original))
    state = {key: value for key, value in module.__dict__.items() if key not in (LINK, RATE)}
    now = {attribute: rate.bank.rates[rate.place] for attribute, rate in link.rates.items()}
    if link.view is not None:  # a config of its own: the others share theirs
        state["config"] = copy.copy(state["config"])
    twin.__dict__.update(state)
    for attribute, value in now.items():
        _store(twin, attribute, value)
    if now:
        base = {a: (now[a], rate.bank.base_rates[rate.place]) for a, rate in link.rates.items()}
        twin.__dict__[COPIED_BASE] = state.get(COPIED_BASE, {}) | base
    return twin


def _store(module: nn.Module, attribute: str, value: float) -> None:
    """Write a rate where the module, undriven, reads it."""
    if attribute.startswith(PREFIX):
        setattr(module.__dict__["config"], attribute.removeprefix(PREFIX), value)
    else:
        module.__dict__[attribute] = value


def check_recomputation(bank: RateBank, index: int) -> None:
    """Activation checkpointing runs a forward again during the backward: refuse if the rate has changed in between."""
    rate = bank.rate(index)
    if torch._C._current_graph_task_id() == -1:
        bank.forward_rates[index] = rate
        if threading.get_ident() != bank.thread:
            bank.other_thread = True
        return
    then = _rate_of_graph(bank, index)
    if then != rate:
        raise RuntimeError(
            f"the rate of site {bank.names[index]!r} changed from {then:g} to {rate:g} between a "
            "forward and its recomputation in the backward: call scheduler.step() after the backward, once per optimizer step"
        )


def _rate_of_graph(bank: RateBank, index: int) -> float:
    """The rate that a site had when the graph was made whose backward is running.

    The node that is running was made by the forward that is now computed again, so its number tells when that was.
    """
    node = torch._C._current_autograd_node()
    if bank.other_thread or node is None:  # numbers of another thread: what is known is the rate of the last forward
        return bank.forward_rates[index]
    then = bank.rate_at(index, node._sequence_nr())
    if then != bank.rate(index) and _recomputing_twice():  # the node was made by a recomputation, which was checked itself
        return bank.rate(index)
    return then


def _recomputing_twice() -> bool:
    """Whether a recomputation runs inside another one, as in nested checkpoints with ``use_reentrant=True``."""
    found = 0
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and found < 2:
        found += frame.f_code is _RECOMPUTING
        frame = frame.f_back
    return found == 2


_RECOMPUTING = torch.utils.checkpoint.CheckpointFunction.backward.__code__


def _rate_property(attribute: str) -> property:
    def read(self: nn.Module) -> float:
        link: Link = self.__dict__[LINK]
        bank, index = link.rates[attribute]
        if torch.compiler.is_compiling():
            if self.training and (bank.on or (bank.rises and not bank.plain_path[index])):
                refuse(bank.names[index], link.name.rpartition(".")[0], f"a module that reads {link.original.__name__}.{attribute}")
            return 0.0  # not used: evaluating, or off
        if self.training and torch._C._current_graph_task_id() != -1:  # a container that reads it has no forward to check it
            check_recomputation(bank, index)
        return bank.rate(index)

    def write(self: nn.Module, value: float) -> None:
        link: Link = self.__dict__[LINK]
        raise AttributeError(
            f"{attribute} of site {link.rates[attribute].name!r} is driven by a DropoutScheduler, so setting it to "
            f"{value!r} would have no effect: call the scheduler's restore() first"
        )

    return property(read, write)


def _config_property() -> property:
    def read(self: nn.Module) -> Any:
        return self.__dict__[LINK].view

    def write(self: nn.Module, value: Any) -> None:
        self.__dict__["config"] = real_config(value)
        _put(self, self.__dict__[LINK], self.__dict__[RATE].device)

    return property(read, write)


@cache
def _scheduled_class(original: type[Any], drivers: tuple[type, ...], attributes: tuple[str, ...]) -> type[nn.Module]:
    members: dict[str, Any] = {a: _rate_property(a) for a in attributes if not a.startswith(PREFIX)}
    if len(members) < len(attributes):
        members["config"] = _config_property()
    members |= {key: getattr(original, key) for key in ("__module__", "__qualname__", "__doc__")}
    forward = next((vars(cls)["forward"] for driver in drivers for cls in driver.__mro__ if "forward" in vars(cls)), None)
    if forward is not None and "args" in inspect.signature(forward).parameters:  # the signature is read by transformers' Trainer
        own = types.FunctionType(forward.__code__, forward.__globals__, "forward", forward.__defaults__, forward.__closure__)
        own.__signature__ = inspect.signature(original.forward)  # type: ignore[attr-defined]  # not __wrapped__: torch.compile follows it
        members["forward"] = own
    return type(original.__name__, (*drivers, original), members)


def _exchange(cls: type, old: type, new: type) -> type:
    """The class with ``old`` exchanged for ``new`` among its bases: what was put on top since (weight norm, FSDP) stays on top."""
    if cls is old:
        return new
    if not issubclass(cls, old):
        return cls
    bases = tuple(_exchange(base, old, new) for base in cls.__bases__)
    members = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    make: Any = type(cls)
    return cast(type, make(cls.__name__, bases, members))


def link(
    module: nn.Module,
    name: str,
    drivers: tuple[type, ...],
    rates: Mapping[str, Rate],
    device: torch.device,
    reads: Iterable[Rate] = (),
) -> None:
    """Make banks drive a module, besides those that drive it already.

    Args:
        module: The module; its class is swapped in place.
        name: Its name in the model.
        drivers: The mixins to put in front of its class.
        rates: Where its rates are, by attribute; empty for a module that only surrounds a site.
        device: Where the module computes.
        reads: The rates of modules inside that its forward reads.
    """
    before: Link | None = module.__dict__.get(LINK)
    if before is not None:
        drivers = tuple(dict.fromkeys((*drivers, *before.drivers)))
        _put(module, replace(before, drivers=drivers, rates=before.rates | dict(rates), reads=(*before.reads, *reads)), device)
    else:
        first = next(iter((*rates.values(), *reads)))
        original = type(module)
        _put(module, Link(name, *first, dict(rates), tuple(reads), drivers, original, original), device)
    copied = module.__dict__.pop(COPIED_BASE, {})
    for attribute, (bank, index) in rates.items():
        if attribute in copied or not attribute.startswith(PREFIX):  # a config that is shared is never written
            _store(module, attribute, bank.base_rates[index])
    if left := {attribute: value for attribute, value in copied.items() if attribute not in rates}:
        module.__dict__[COPIED_BASE] = left


def _put(module: nn.Module, wanted: Link, device: torch.device) -> None:
    """Give a module a link and the class that goes with it. Only the last of the steps that can fail changes the module."""
    first = wanted.all_rates[0]
    scheduled = _scheduled_class(wanted.original, wanted.drivers, tuple(wanted.rates))  # type: ignore[arg-type]  # a class is hashable
    vector = first.bank.view(first.place, device)
    held = {
        a.removeprefix(PREFIX): functools.partial(bank.rate, i) for a, (bank, i) in wanted.rates.items() if a.startswith(PREFIX)
    }
    view = ConfigView(module.__dict__["config"], held) if held else None
    module.__class__ = _exchange(type(module), wanted.scheduled, scheduled)
    module.__dict__[LINK] = replace(wanted, bank=first.bank, index=first.place, scheduled=scheduled, view=view)
    module.__dict__[RATE] = vector


def unlink(module: nn.Module, bank: RateBank | None = None) -> None:
    """Undo `link`: the module has its own class and its base rate again. What was put on top of its class since stays.

    Args:
        module: A driven module.
        bank: The bank that lets go of it; None for all.
    """
    found: Link = module.__dict__[LINK]
    rates = {attribute: rate for attribute, rate in found.rates.items() if bank is not None and rate.bank is not bank}
    reads = tuple(rate for rate in found.reads if bank is not None and rate.bank is not bank)
    if rates or reads:
        _put(module, replace(found, rates=rates, reads=reads), module.__dict__[RATE].device)
        return
    module.__class__ = _exchange(type(module), found.scheduled, found.original)
    del module.__dict__[LINK]
    del module.__dict__[RATE]


def is_scheduled(module: nn.Module) -> bool:
    """Whether a module's class was swapped by `link`.

    Args:
        module: Any module.

    Returns:
        True if it is driven or surrounds a driven site.
    """
    return LINK in module.__dict__


def rate_of(module: nn.Module, attribute: str) -> Rate | None:
    """Where one rate of a module is driven from.

    Args:
        module: Any module.
        attribute: The attribute that holds the rate.

    Returns:
        The place in a bank; None if no bank drives it.
    """
    found: Link | None = module.__dict__.get(LINK)
    return found.rates.get(attribute) if found is not None else None


def banks_of(module: nn.Module) -> list[RateBank]:
    """The banks that drive a module.

    Args:
        module: Any module.

    Returns:
        The banks; empty if the module is not driven.
    """
    found: Link | None = module.__dict__.get(LINK)
    return list({id(rate.bank): rate.bank for rate in found.all_rates}.values()) if found is not None else []


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was driven.

    Args:
        module: Any module.

    Returns:
        Its own class.
    """
    found: Link | None = module.__dict__.get(LINK)
    return found.original if found is not None else type(module)
