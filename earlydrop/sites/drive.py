"""Drive sites, switch them off for a while, and restore them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn

from earlydrop.sites.bank import RateBank
from earlydrop.sites.driven import (
    Rate,
    banks_of,
    drive_module,
    is_scheduled,
    keep_copied_rates,
    original_class,
    rate_of,
    release_module,
)
from earlydrop.sites.find import Site, find_sites
from earlydrop.sites.layers import AttentionDriver, EagerOnlyDriver
from earlydrop.sites.plain import reads
from earlydrop.sites.unwrap import named_modules, unwrap


class _Planned(NamedTuple):
    """The drivers of one module, its rates by attribute, and the rates it reads from others."""

    drivers: list[type]
    rates: dict[str, Rate]
    reads: list[Rate]


def drive(model: nn.Module, sites: list[Site], fast_masks: bool) -> RateBank:
    """Make a `RateBank` set the rates of sites, by swapping the classes of their modules.

    The rates of the bank begin at 0. It raises ValueError if a site is driven already. If it fails,
    it drives none of the sites.
    """
    for site in sites:
        if site.driven:
            raise ValueError(
                f"site {site.name!r} is driven by a DropoutScheduler already: call that "
                "scheduler's restore(), or earlydrop.restore(model), before driving it with "
                "another; or leave it out with sites="
            )
    bank = RateBank(
        names=[site.name for site in sites],
        base_rates=[site.base_rate for site in sites],
        kinds=[site.kind for site in sites],
        fast_masks=fast_masks,
    )
    inner = unwrap(model)
    devices = _devices(inner)
    names = {module: name for name, module in named_modules(inner)}
    try:
        for module, planned in _plan(inner, sites, bank).items():
            drive_module(
                module,
                names[module],
                drivers=tuple(planned.drivers),
                rates=planned.rates,
                device=devices[module],
                reads=planned.reads,
            )
    except BaseException:
        release_all(model, bank)
        raise
    return bank


def _plan(model: nn.Module, sites: list[Site], bank: RateBank) -> dict[nn.Module, _Planned]:
    """A plan for each module with a site, and for each module that reads the rate of a child."""
    plan: dict[nn.Module, _Planned] = {}
    for index, site in enumerate(sites):
        planned = plan.setdefault(site.module, _Planned([site.driver], {}, []))
        planned.rates[site.attribute] = Rate(bank, index)
    driven = {module: planned.rates for module, planned in plan.items()}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) or unwrap(module) is not module:
            continue
        for key, held in module._modules.items():
            if held is not None and (child := unwrap(held)) in driven:
                _plan_reader(plan, module, key, child, rates=driven[child])
    return plan


def _plan_reader(
    plan: dict[nn.Module, _Planned],
    module: nn.Module,
    key: str,
    child: nn.Module,
    rates: dict[str, Rate],
) -> None:
    """Add a module to the plan, if it is an attention of timm or reads the rates of the child."""
    timm_attention = key == "attn_drop" and "fused_attn" in module.__dict__
    used = reads(original_class(module))
    # A container has no forward, so the module around it must read the rates of the container.
    container = original_class(child).forward is nn.Module.forward
    read = [rate for name, rate in rates.items() if container or f"{key}.{name}" in used]
    if not read and not timm_attention:
        return
    planned = plan.setdefault(module, _Planned([], {}, []))
    of_child = read or list(rates.values())
    planned.reads.extend(of_child)
    driver = AttentionDriver if timm_attention else EagerOnlyDriver
    if timm_attention:
        for rate in of_child:
            rate.bank.hold_for_attention(rate.place)
    if driver not in planned.drivers:
        planned.drivers.append(driver)


def _devices(model: nn.Module) -> dict[nn.Module, torch.device]:
    """The device of each module: that of its first parameter, or that of its parent."""
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
    """Give every driven module of a model its own class and base rate back.

    Classes that were put on top of a driven class later (weight norm, FSDP) stay on top.

    Args:
        model: The model. Modules that are not driven are left alone.
    """
    for module in unwrap(model).modules():
        if is_scheduled(module):
            release_module(module)


def banks_in(model: nn.Module) -> list[RateBank]:
    """The banks that drive sites of a model, each once."""
    modules = unwrap(model).modules()
    return list(dict.fromkeys(bank for module in modules for bank in banks_of(module)))


@contextmanager
def sites_off(model: nn.Module) -> Iterator[None]:
    """Within it, no site of the model drops, driven or not, whatever the mode of its module.

    Standard, non-inverted dropout then multiplies by its keep probability, as at test. Afterwards
    all is as before.
    """
    undriven = [site for site in find_sites(model) if not site.driven]
    with sites_at_base(model, undriven), driven_off(model):
        yield


@contextmanager
def driven_at_base(model: nn.Module) -> Iterator[None]:
    """Within it, every driven site drops at its base rate, in eager mode."""
    with ExitStack() as stack:
        for bank in banks_in(model):
            stack.enter_context(bank.at_base_rates())
        yield


@contextmanager
def driven_off(model: nn.Module) -> Iterator[None]:
    """Within it, no driven site drops. Sites that are not driven still drop."""
    with ExitStack() as stack:
        for bank in banks_in(model):
            stack.enter_context(bank.silenced())
        yield


@contextmanager
def sites_at_base(model: nn.Module, sites: list[Site]) -> Iterator[None]:
    """Within it, a bank drives some sites, which are not driven yet, at their base rates."""
    if not sites:
        yield
        return
    with ExitStack() as stack:
        for site in sites:
            stack.callback(keep_copied_rates(site.module))
        bank = drive(model, sites, fast_masks=False)
        stack.callback(release_all, model, bank)
        bank.hold_base_rates()
        yield


def release_all(model: nn.Module, bank: RateBank) -> None:
    """Release every module of a model that a bank drives."""
    for module in unwrap(model).modules():
        if any(driving is bank for driving in banks_of(module)):
            release_module(module, bank)


def is_driven_by(site: Site, bank: RateBank) -> bool:
    """Whether a bank drives a site."""
    rate = rate_of(site.module, site.attribute)
    return rate is not None and rate.bank is bank
