"""Finding the sites of a model.

A *site* is one drop rate in a model: ``p`` of an ``nn.Dropout``, ``drop_prob`` of a timm ``DropPath``, ``dropout`` of an
``nn.LSTM``, ``attention_dropout`` of a transformers attention that hands it to a functional dropout. There are two kinds: *unit*
(dropout) and *path* (stochastic depth).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from earlydrop.display import number, rows_as_html
from earlydrop.sites import layers
from earlydrop.sites.families import covered, drops_paths, family_of, in_known_library, is_rate
from earlydrop.sites.held import PREFIX, stored_rate
from earlydrop.sites.link import COPIED_BASE, original_class, rate_of
from earlydrop.sites.reads import reads
from earlydrop.sites.unwrap import named_modules, unwrap


@dataclass(frozen=True)
class Site:
    """One drop rate in a model.

    Attributes:
        name: The module's dotted name in the model as it was built, without wrappers; with ``.attribute``
            behind it where one module has several rates or the rate is a plain attribute that its forward
            reads.
        module: The module that drops.
        attribute: The attribute that holds the rate; ``"config.dropout"`` where the module reads it from its config.
        kind: ``"unit"`` or ``"path"``.
        plain: Whether the rate is a plain attribute of a module that is no drop layer.
        doubtful: Whether it only looks like a rate, so that it is driven where its own name asks for it.
    """

    name: str
    module: nn.Module = field(repr=False)
    attribute: str
    kind: str
    driver: type = field(repr=False)
    plain: bool = field(default=False, repr=False)
    doubtful: bool = field(default=False, repr=False)

    @property
    def rate(self) -> float:
        """The present rate, read from where the module reads it."""
        return float(operator.attrgetter(self.attribute)(self.module))

    @property
    def base_rate(self) -> float:
        """The rate that the module was built with."""
        stored = float(stored_rate(self.module, self.attribute))
        copied = self.module.__dict__.get(COPIED_BASE, {}).get(self.attribute)
        if copied is not None and copied[0] == stored:  # a copy of a driven module, its rate not touched since
            return float(copied[1])
        return stored

    @property
    def driven(self) -> bool:
        """Whether a scheduler drives this rate now."""
        return rate_of(self.module, self.attribute) is not None


class SiteList(list[Site]):
    """Sites, in the order of ``model.named_modules()``; in a notebook it shows as a table."""

    def _repr_html_(self) -> str:
        rows = [(site.name, site.kind, number(site.base_rate), number(site.rate), "yes" if site.driven else "no") for site in self]
        return rows_as_html(rows, ("site", "kind", "built with", "rate now", "driven"), f"{len(self)} sites")


def find_sites(model: nn.Module) -> SiteList:
    """Every site of a model, driven or not, in the order of ``model.named_modules()``.

    Drop layers are known by their class; a class of another library whose name says that it drops, by a rate called ``p``,
    ``prob``, ``rate``, ``drop_prob`` or ``drop_rate`` that its code reads after building. A plain float attribute with ``drop``
    in its name that the module's code reads after building is a site too: in models of transformers, timm and torchvision, and
    elsewhere where a drop layer directly inside the module has the same rate. Scripted modules have none: `earlydrop.audit`
    names them.

    Args:
        model: Any module. Wrappers (DistributedDataParallel, FSDP, torch.compile, checkpointing) are looked through.

    Returns:
        The sites; empty if there are none.

    >>> [site.name for site in find_sites(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))]
    ['1']
    """
    return SiteList(site for site in all_rates(model) if not site.doubtful)


def all_rates(model: nn.Module) -> Iterator[Site]:
    """The sites of a model, and what only looks like one.

    Args:
        model: Any module.

    Yields:
        Sites, doubtful ones too.
    """
    inner = unwrap(model)
    parents = {
        id(unwrap(child)): (module, key)
        for module in inner.modules()
        if unwrap(module) is module
        for key, child in module._modules.items()
        if child is not None
    }
    for name, module in named_modules(inner):
        if isinstance(module, torch.jit.ScriptModule) or unwrap(module) is not module:
            continue
        around = parents.get(id(module), (None, ""))
        layer = list(_layer_rates(name, module, *around))
        yield from layer
        yield from _plain_rates(name, module, {site.attribute for site in layer}, *around)


def _layer_rates(name: str, module: nn.Module, parent: nn.Module | None, key: str) -> Iterator[Site]:
    """The rates of a module whose class says that it drops."""
    family = family_of(module)
    if family is None:
        return
    for attribute in family.attributes:
        if not is_rate(module.__dict__.get(attribute)):
            continue
        several = len(family.attributes) > 1 or (family.by_name and not name)
        full = f"{name}.{attribute}".removeprefix(".") if several else name
        site = Site(full, module, attribute, family.kind, family.driver)
        if not family.by_name or _read(module, attribute, parent, key):
            yield site
        elif not _handed_on(module, site.base_rate):
            yield replace(site, doubtful=True)


def _handed_on(module: nn.Module, rate: float) -> bool:
    """Whether a site inside a module has a rate that the module holds too, so that it was only handed on."""
    return any(site.base_rate == rate for child in module.children() for site in all_rates(child))


def _plain_rates(name: str, module: nn.Module, known: set[str], parent: nn.Module | None, key: str) -> Iterator[Site]:
    """Plain float attributes that look like rates, of a module that may be no drop layer."""
    for attribute in (*module.__dict__, *_read_from_config(original_class(module))):  # type: ignore[arg-type]
        if "drop" not in attribute or attribute in known or attribute[0] == "_":
            continue
        value = stored_rate(module, attribute)
        if not isinstance(value, float) or not is_rate(value) or covered(module, attribute):
            continue
        if attribute.startswith(PREFIX) or _read(module, attribute, parent, key):
            full = f"{name}.{attribute}" if name else attribute
            kind = "path" if drops_paths(attribute) else "unit"
            site = Site(full, module, attribute, kind, layers.EagerOnly, plain=True)
            if not in_known_library(original_class(module)):
                twin = _kind_of_twin(site)
                site = replace(site, kind=twin or kind, doubtful=twin is None)
            yield site


def _kind_of_twin(site: Site) -> str | None:
    """The kind of a plain rate that is also the rate of a drop layer directly inside its module.

    Such a module hands one number to its layers and to a function: nanoGPT's attention to ``scaled_dot_product_attention``,
    DINOv2's block to stochastic depth over the batch.
    """
    beside = [
        layer
        for child in site.module.children()
        for layer in _layer_rates("", unwrap(child), site.module, "")
        if layer.base_rate == site.base_rate
    ]
    kinds = {layer.kind for layer in beside if not layer.doubtful}
    if site.kind in kinds:
        return site.kind
    return "path" if "path" in kinds and "dropout" not in site.attribute else None


def tuples_of_rates(model: nn.Module) -> list[tuple[str, str, tuple[float, ...]]]:
    """Rates that a forward reads from a tuple or a list, which no scheduler can drive.

    Args:
        model: Any module.

    Returns:
        Name, kind and rates of those that are not all 0; models of transformers, timm and torchvision have none.
    """
    found = []
    for name, module in named_modules(unwrap(model)):
        own = original_class(module)
        if isinstance(module, torch.jit.ScriptModule) or in_known_library(own):
            continue
        for attribute, value in module.__dict__.items():
            if "drop" not in attribute or not isinstance(value, (tuple, list)) or attribute not in reads(own):
                continue
            if all(map(is_rate, value)) and any(isinstance(each, float) and each > 0 for each in value):
                kind = "path" if drops_paths(attribute) else "unit"
                found.append((f"{name}.{attribute}".removeprefix("."), kind, tuple(map(float, value))))
    return found


@cache
def _read_from_config(cls: type) -> tuple[str, ...]:
    """What looks like a rate among the entries of its config that a class reads after building."""
    return tuple(sorted(chain for chain in reads(cls) if chain.startswith(PREFIX) and "drop" in chain and chain.count(".") == 1))


def _read(module: nn.Module, attribute: str, parent: nn.Module | None, key: str) -> bool:
    """Whether an attribute is used after the module was built, by the module or by the one around it."""
    if attribute in reads(original_class(module)):
        return True
    return parent is not None and f"{key}.{attribute}" in reads(original_class(parent))
