"""Driving sites: on, silent for a while, and back to what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn

from earlydrop.sites.attention import Attention
from earlydrop.sites.bank import RateBank
from earlydrop.sites.find import Site, find_sites
from earlydrop.sites.layers import EagerOnly
from earlydrop.sites.link import Rate, banks_of, is_scheduled, link, original_class, rate_of, unlink
from earlydrop.sites.reads import reads
from earlydrop.sites.unwrap import named_modules, unwrap


class _Plan(NamedTuple):
    """What one module will carry."""

    drivers: list[type]
    rates: dict[str, Rate]
    reads: list[Rate]


def drive(model: nn.Module, sites: list[Site], fast_masks: bool) -> RateBank:
    """Swap the classes of the sites' modules so that a `RateBank` sets their rates: of all of them, or, should anything fail, of none.

    Args:
        model: The model that the sites were found in.
        sites: The sites; none may be driven already.
        fast_masks: Whether nn.Dropout layers draw 16-bit masks.

    Returns:
        The bank, every rate 0.

    Raises:
        ValueError: A site is driven already.
    """
    for site in sites:
        if site.driven:
            raise ValueError(
                f"site {site.name!r} is driven by a DropoutScheduler already: call that scheduler's restore(), or "
                "earlydrop.restore(model), before driving it with another; or leave it out with sites="
            )
    bank = RateBank([s.name for s in sites], [s.base_rate for s in sites], [s.kind for s in sites], fast_masks)
    inner = unwrap(model)
    devices = _devices(inner)
    names = {module: name for name, module in named_modules(inner)}
    try:
        for module, planned in _plan(inner, sites, bank).items():
            link(module, names[module], tuple(planned.drivers), planned.rates, devices[module], planned.reads)
    except BaseException:
        unlink_all(model, bank)
        raise
    return bank


def _plan(model: nn.Module, sites: list[Site], bank: RateBank) -> dict[nn.Module, _Plan]:
    """What each module will carry: the sites' modules, and those whose forward reads the rate of a module inside."""
    plan: dict[nn.Module, _Plan] = {}
    for index, site in enumerate(sites):
        planned = plan.setdefault(site.module, _Plan([site.driver], {}, []))
        planned.rates[site.attribute] = Rate(bank, index)
    driven = {module: planned.rates for module, planned in plan.items()}
    for module in model.modules():
        for key, held in module._modules.items():
            child = unwrap(held) if held is not None else None
            if child is None or child not in driven or unwrap(module) is not module or isinstance(module, torch.jit.ScriptModule):
                continue
            timm_attention = key == "attn_drop" and "fused_attn" in module.__dict__
            used = reads(original_class(module))
            container = original_class(child).forward is nn.Module.forward  # it drops while the module around it goes through it
            read = [rate for attribute, rate in driven[child].items() if container or f"{key}.{attribute}" in used]
            if read or timm_attention:
                planned = plan.setdefault(module, _Plan([], {}, []))
                planned.reads.extend(read or driven[child].values())
                driver = Attention if timm_attention else EagerOnly
                for rate in planned.reads if timm_attention else ():
                    rate.bank.plain_path[rate.place] = True
                if driver not in planned.drivers:
                    planned.drivers.append(driver)
    return plan


def _devices(model: nn.Module) -> dict[nn.Module, torch.device]:
    """The device of each module: that of its own first parameter, else its parent's."""
    devices: dict[nn.Module, torch.device] = {}

    def visit(module: nn.Module, inherited: torch.device) -> None:
        first = next(module.parameters(), None)
        device = first.device if first is not None else inherited
        devices[module] = device
        for child in module.children():
            if child not in devices:
                visit(child, device)

    visit(model, torch.device("cpu"))
    return devices


def restore(model: nn.Module) -> None:
    """Put every driven module of a model back as it was built: its class, and its base rate.

    What was put on top of a module's class since (weight norm, FSDP) stays.

    Args:
        model: The model. Modules that are not driven are left alone.
    """
    for module in unwrap(model).modules():
        if is_scheduled(module):
            unlink(module)


@contextmanager
def sites_off(model: nn.Module) -> Iterator[None]:
    """Within it no site of the model drops, driven or not, whatever the mode of its modules; afterwards all is as before.

    Standard, non-inverted dropout then multiplies by its keep probability, as it does at test.

    """
    banks = {id(bank): bank for module in unwrap(model).modules() for bank in banks_of(module)}
    undriven = [site for site in find_sites(model) if not site.driven]
    with ExitStack() as stack:
        for bank in banks.values():
            stack.enter_context(bank.silenced())
        if undriven:
            stack.enter_context(stack.enter_context(sites_at_base(model, undriven)).silenced())
        yield


@contextmanager
def driven_at_base(model: nn.Module) -> Iterator[None]:
    """Within it every driven site of the model drops at the rate that it was built with, in eager mode; afterwards all is as before."""
    banks = {id(bank): bank for module in unwrap(model).modules() for bank in banks_of(module)}
    with ExitStack() as stack:
        for bank in banks.values():
            stack.enter_context(bank.at_base_rates())
        yield


@contextmanager
def driven_off(model: nn.Module) -> Iterator[None]:
    """Within it no driven site of the model drops; what is not driven goes on. Afterwards all is as before."""
    banks = {id(bank): bank for module in unwrap(model).modules() for bank in banks_of(module)}
    with ExitStack() as stack:
        for bank in banks.values():
            stack.enter_context(bank.silenced())
        yield


@contextmanager
def sites_at_base(model: nn.Module, sites: list[Site]) -> Iterator[RateBank]:
    """Within it a bank drives some sites at the rates that they were built with.

    Args:
        model: The model.
        sites: Sites that are not driven.

    Yields:
        The bank.
    """
    bank = drive(model, sites, fast_masks=False)
    try:
        bank.hold_base_rates()
        yield bank
    finally:
        unlink_all(model, bank)


def unlink_all(model: nn.Module, bank: RateBank) -> None:
    """Give back every module of a model that a bank drives."""
    for module in unwrap(model).modules():
        if any(each is bank for each in banks_of(module)):
            unlink(module, bank)


def is_driven_by(site: Site, bank: RateBank) -> bool:
    """Whether a bank drives a site."""
    rate = rate_of(site.module, site.attribute)
    return rate is not None and rate.bank is bank
