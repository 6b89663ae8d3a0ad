"""One driven module: its `Link` to the banks, and the swap of its class.

A driver (`earlydrop.sites.layers`) is a mixin. `drive_module` puts it in front of a module's own
class, in place, so identity, hooks, ``isinstance`` and ``state_dict`` keys stay. `release_module`
takes it away.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn

from earlydrop.sites import attention
from earlydrop.sites.bank import RateBank
from earlydrop.sites.guards import check_recomputation, refuse
from earlydrop.sites.plain import PREFIX, ConfigView, real_config, stored_rate

# In the __dict__ of a driven module: its Link, and its first rate as a 0-d tensor, a view of the
# vector of the bank.
LINK = "_earlydrop_link"
RATE = "_earlydrop_rate"
# In the __dict__ of a copy of a driven module: {attribute: (rate when copied, base rate)}.
COPIED_BASE = "_earlydrop_base"
# In the memo of a deepcopy: the hooks that the copy must not have, each as (dictionary, key).
COPIED_HOOKS = "earlydrop: hooks in the copy"


class Rate(NamedTuple):
    """The place of one rate in a bank."""

    bank: RateBank
    place: int

    @property
    def name(self) -> str:
        return self.bank.names[self.place]


@dataclass(frozen=True)
class Link:
    """The rates of a driven module, its drivers and its classes.

    Attributes:
        name: Dotted name of the module; ``""`` for the model itself.
        bank: Bank of the first rate.
        index: Place of the first rate in its bank.
        rates: The rates of the module, by attribute.
        reads: Rates of the modules inside, which the forward of this module reads as floats.
        drivers: The mixins in front of the module's own class.
        original: The module's own class.
        scheduled: The class made of the drivers and the own class.
        view: View of the module's config, where the module reads rates from its config.
    """

    name: str
    bank: RateBank
    index: int
    rates: dict[str, Rate]
    reads: tuple[Rate, ...]
    drivers: tuple[type, ...]
    original: type[nn.Module]
    scheduled: type[nn.Module]
    view: ConfigView | None = None

    @property
    def all_rates(self) -> tuple[Rate, ...]:
        return (*self.rates.values(), *self.reads)


class Scheduled:
    """Base class of the drivers: moves and copies driven modules.

    When a module moves to another device, its rate moves too. A copy is a plain module of the
    original class, without the scheduler.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        result: nn.Module = super()._apply(fn, recurse)  # type: ignore[misc]
        old = self.__dict__.get(RATE)
        if old is None:
            return result
        # Only the device follows fn; the rate keeps its dtype.
        device = fn(torch.empty(0, device=old.device)).device
        if device != old.device:
            link: Link = self.__dict__[LINK]
            self.__dict__[RATE] = link.bank.view(link.index, device)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Reduce to a plain module with the present rate, without the scheduler."""
        twin = plain_twin(cast(nn.Module, self))
        reduced: Any = twin.__reduce_ex__(protocol)
        make, arguments, *state = reduced
        # pickle refuses __newobj__ with a class other than that of the object.
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            make = copyreg._reconstructor  # type: ignore[attr-defined]
            arguments = (type(twin), object, None)
        return make, arguments, *state

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        # torch copies the hooks of a module before the modules inside it.
        for hooks, key in memo.pop(COPIED_HOOKS, ()):
            hooks.pop(key, None)
        twin = plain_twin(cast(nn.Module, self))
        own = getattr(type(twin), "__deepcopy__", None)  # parametrized modules of torch have it
        if own is not None:
            memo[id(self)] = own(twin, memo)
            return memo[id(self)]
        return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]

    def __prepare_scriptable__(self) -> NoReturn:
        link: Link = self.__dict__[LINK]
        raise RuntimeError(
            f"{link.name or link.original.__name__!r} is driven by a DropoutScheduler, which "
            "TorchScript cannot compile: call the scheduler's restore() before torch.jit.script, "
            "or script a copy.deepcopy(model), which is free of the scheduler"
        )

    def extra_repr(self) -> str:
        # Some classes read their __dict__, which holds the base rate.
        return plain_twin(cast(nn.Module, self)).extra_repr()


def plain_twin(module: nn.Module) -> nn.Module:
    """A module of the original class with the contents of a driven module, at its present rates.

    Copying, pickling and printing a driven module use it.
    """
    link: Link = module.__dict__[LINK]
    twin: nn.Module = object.__new__(_exchange(type(module), link.scheduled, link.original))
    state = {key: value for key, value in module.__dict__.items() if key not in (LINK, RATE)}
    if link.view is not None:
        state["config"] = copy.copy(state["config"])  # other modules share the config
    twin.__dict__.update(state)
    base = {}
    for attribute, (bank, place) in link.rates.items():
        _store(twin, attribute, bank.rates[place])
        base[attribute] = (bank.rates[place], bank.base_rates[place])
    if base:
        twin.__dict__[COPIED_BASE] = state.get(COPIED_BASE, {}) | base
    return twin


def _store(module: nn.Module, attribute: str, value: float) -> None:
    """Write a rate to a module's own ``__dict__`` or config, past the property that drives it."""
    if attribute.startswith(PREFIX):
        setattr(module.__dict__["config"], attribute.removeprefix(PREFIX), value)
    else:
        module.__dict__[attribute] = value


def _rate_property(attribute: str) -> property:
    """The property that replaces the attribute of a rate: it reads the bank."""

    def read(self: nn.Module) -> Any:
        link: Link = self.__dict__[LINK]
        bank, index = link.rates[attribute]
        if torch.compiler.is_compiling():
            # Keep this order. torch.compile guards each value that is read here, and a value that
            # differs by site costs one graph for each site.
            if self.training and bank.on:
                on_host = bank.attention_rates[index]
                if on_host is not None and attention.available(self.__dict__[RATE].device):
                    return on_host.as_subclass(attention.AttentionRate)
            if self.training and (bank.on or (bank.rises and bank.attention_rates[index] is None)):
                parent = link.name.rpartition(".")[0]
                reader = f"a module that reads {link.original.__name__}.{attribute}"
                refuse(bank.names[index], parent, reader)
            return 0.0  # not used: in evaluation mode, or off
        # Check here too: a container has no forward that could check.
        if self.training and torch._C._current_graph_task_id() != -1:
            check_recomputation(bank, index)
        return bank.rate(index)

    def write(self: nn.Module, value: float) -> None:
        link: Link = self.__dict__[LINK]
        raise AttributeError(
            f"{attribute} of site {link.rates[attribute].name!r} is driven by a DropoutScheduler, "
            f"so setting it to {value!r} would have no effect: call the scheduler's restore() first"
        )

    return property(read, write)


def _config_property() -> property:
    """The property that replaces ``config``: it gives the view with the present rates."""

    def read(self: nn.Module) -> Any:
        return self.__dict__[LINK].view

    def write(self: nn.Module, value: Any) -> None:
        self.__dict__["config"] = real_config(value)
        _put(self, self.__dict__[LINK], self.__dict__[RATE].device)

    return property(read, write)


@cache
def _scheduled_class(
    original: type[Any], drivers: tuple[type, ...], attributes: tuple[str, ...]
) -> type[nn.Module]:
    """The class of a driven module: its drivers in front of its own class, with rate properties."""
    members: dict[str, Any] = {a: _rate_property(a) for a in attributes if not a.startswith(PREFIX)}
    if len(members) < len(attributes):
        members["config"] = _config_property()
    members |= {key: getattr(original, key) for key in ("__module__", "__qualname__", "__doc__")}
    # The forward of a driver takes *args. Give this class a copy with the module's own signature.
    forward: Any = cast(Any, drivers[0]).forward
    if "args" in inspect.signature(forward).parameters:
        own = types.FunctionType(
            forward.__code__,
            forward.__globals__,
            name="forward",
            argdefs=forward.__defaults__,
            closure=forward.__closure__,
        )
        # The Trainer of transformers reads the signature. functools.wraps() would set __wrapped__,
        # which torch.compile follows.
        own.__signature__ = inspect.signature(original.forward)  # type: ignore[attr-defined]
        members["forward"] = own
    return type(original.__name__, (*drivers, original), members)


def _exchange(cls: type, old: type, new: type) -> type:
    """A class with ``old`` exchanged for ``new`` among its bases.

    Classes on top of ``old`` (weight norm, FSDP) stay on top.
    """
    if cls is old:
        return new
    if not issubclass(cls, old):
        return cls
    bases = tuple(_exchange(base, old, new) for base in cls.__bases__)
    members = {
        key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")
    }
    make: Any = type(cls)
    return cast(type, make(cls.__name__, bases, members))


def drive_module(
    module: nn.Module,
    name: str,
    drivers: tuple[type, ...],
    rates: Mapping[str, Rate],
    device: torch.device,
    reads: Sequence[Rate] = (),
) -> None:
    """Make banks drive a module, besides those that drive it already.

    The module's class is swapped in place. ``rates`` holds the places of its rates by attribute; it
    is empty for a module that only reads the rates of modules inside (``reads``).
    """
    link: Link | None = module.__dict__.get(LINK)
    if link is None:
        first = next(iter((*rates.values(), *reads)))
        link = Link(
            name=name,
            bank=first.bank,
            index=first.place,
            rates={},
            reads=(),
            drivers=(),
            original=type(module),
            scheduled=type(module),
        )
    link = replace(
        link,
        drivers=tuple(dict.fromkeys((*drivers, *link.drivers))),
        rates=link.rates | dict(rates),
        reads=(*link.reads, *reads),
    )
    _put(module, link, device)
    copied = module.__dict__.pop(COPIED_BASE, {})
    # A copy holds the rates at the time of the copy. Give it its base rates, which a release leaves
    # in place. A config that was not copied may be shared, so it stays as it is.
    for attribute, (bank, index) in rates.items():
        in_config = attribute.startswith(PREFIX)
        if attribute in copied or not in_config:
            _store(module, attribute, bank.base_rates[index])
    undriven = {attribute: pair for attribute, pair in copied.items() if attribute not in rates}
    if undriven:
        module.__dict__[COPIED_BASE] = undriven


def keep_copied_rates(module: nn.Module) -> Callable[[], None]:
    """A function that puts back the present rates of a copy of a driven module.

    Call it after the copy was driven itself and released. A module that is no such copy is left
    alone.
    """
    pairs: dict[str, tuple[float, float]] = module.__dict__.get(COPIED_BASE, {})
    present = {attribute: stored_rate(module, attribute) for attribute in pairs}

    def put_back() -> None:
        for attribute, rate in present.items():
            _store(module, attribute, rate)
        if pairs:
            module.__dict__[COPIED_BASE] = pairs

    return put_back


def _put(module: nn.Module, link: Link, device: torch.device) -> None:
    """Give a module a link, and the class of that link.

    If this fails, the module is left as it was.
    """
    first = link.all_rates[0]
    original: Any = link.original
    scheduled = _scheduled_class(original, link.drivers, tuple(link.rates))
    vector = first.bank.view(first.place, device)
    of_config = {}
    for attribute, rate in link.rates.items():
        if attribute.startswith(PREFIX):
            name = attribute.removeprefix(PREFIX)
            of_config[name] = functools.partial(rate.bank.rate, rate.place)
    view = ConfigView(module.__dict__["config"], of_config) if of_config else None
    link_now = replace(link, bank=first.bank, index=first.place, scheduled=scheduled, view=view)
    module.__class__ = _exchange(type(module), link.scheduled, scheduled)
    module.__dict__[LINK] = link_now
    module.__dict__[RATE] = vector


def release_module(module: nn.Module, bank: RateBank | None = None) -> None:
    """Release a module from one bank or from all.

    If no bank is left, the module gets its own class and base rates back. Otherwise the other banks
    go on driving it.

    Classes that were put on top of its class later (weight norm, FSDP) stay on top.
    """
    link: Link = module.__dict__[LINK]
    rates: dict[str, Rate] = {}
    reads: tuple[Rate, ...] = ()
    if bank is not None:
        rates = {name: rate for name, rate in link.rates.items() if rate.bank is not bank}
        reads = tuple(rate for rate in link.reads if rate.bank is not bank)
    if rates or reads:
        _put(module, replace(link, rates=rates, reads=reads), module.__dict__[RATE].device)
        return
    module.__class__ = _exchange(type(module), link.scheduled, link.original)
    del module.__dict__[LINK]
    del module.__dict__[RATE]


def is_scheduled(module: nn.Module) -> bool:
    """Whether `drive_module` swapped the class of a module.

    Then a bank drives its rates, or its forward reads the rates of driven modules inside.
    """
    return LINK in module.__dict__


def rate_of(module: nn.Module, attribute: str) -> Rate | None:
    """The place of one rate of a module in the bank that drives it.

    None if no bank drives the rate.
    """
    link: Link | None = module.__dict__.get(LINK)
    return link.rates.get(attribute) if link is not None else None


def banks_of(module: nn.Module) -> list[RateBank]:
    """The banks that drive a module."""
    link: Link | None = module.__dict__.get(LINK)
    if link is None:
        return []
    return list(dict.fromkeys(rate.bank for rate in link.all_rates))


def original_class(module: nn.Module) -> type[nn.Module]:
    """The own class of a module, driven or not."""
    link: Link | None = module.__dict__.get(LINK)
    return link.original if link is not None else type(module)
