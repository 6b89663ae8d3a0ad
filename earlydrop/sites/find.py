"""Find the sites of a model.

A *site* is one drop rate in a model: ``p`` of an ``nn.Dropout``, ``drop_prob`` of a timm
``DropPath``, ``dropout`` of an ``nn.LSTM``, or ``attention_dropout`` of a transformers attention
that hands it to a functional dropout. There are two kinds: *unit* (dropout) and *path* (stochastic
depth).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from earlydrop.display import number, rows_as_html
from earlydrop.sites import layers
from earlydrop.sites.driven import COPIED_BASE, original_class, rate_of
from earlydrop.sites.families import drops_paths, family_of, in_known_library, is_rate
from earlydrop.sites.plain import PREFIX, reads, stored_rate
from earlydrop.sites.unwrap import named_modules, unwrap


@dataclass(frozen=True)
class Site:
    """One drop rate in a model.

    Attributes:
        name: Dotted name in the model as it was built, without wrappers. ``.attribute``
            is added where a module has several rates, or where its forward reads the rate from a
            plain attribute.
        module: The module that drops.
        attribute: The attribute that holds the rate; ``"config.dropout"`` where the module reads it
            from its config.
        kind: ``"unit"`` or ``"path"``.
        driver: The mixin that drives the module.
        plain: Whether the rate is a plain attribute of a module that is no drop layer.
        doubtful: Whether the attribute only looks like a rate. Such a site is driven only if
            ``sites=`` names it.
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
        """The present rate, read as the module reads it."""
        return float(operator.attrgetter(self.attribute)(self.module))

    @property
    def base_rate(self) -> float:
        """The rate with which the module was built."""
        stored = float(stored_rate(self.module, self.attribute))
        copied = self.module.__dict__.get(COPIED_BASE, {}).get(self.attribute)
        # A copy of a driven module keeps the base rate, until its rate is changed.
        if copied is not None and copied[0] == stored:
            return float(copied[1])
        return stored

    @property
    def driven(self) -> bool:
        """Whether a scheduler drives this rate now."""
        return rate_of(self.module, self.attribute) is not None


class SiteList(list[Site]):
    """Sites in the order of ``model.named_modules()``. A notebook shows them as a table."""

    def _repr_html_(self) -> str:
        rows = []
        for site in self:
            driven = "yes" if site.driven else "no"
            base_rate, rate = number(site.base_rate), number(site.rate)
            rows.append((site.name, site.kind, base_rate, rate, driven))
        head = ("site", "kind", "built with", "rate now", "driven")
        return rows_as_html(rows, head, f"{len(self)} sites")


def find_sites(model: nn.Module) -> SiteList:
    """Every site of a model, driven or not, in the order of ``model.named_modules()``.

    Sites are:

    - the rates of known drop layers, recognised by their class;
    - a float attribute ``p``, ``prob``, ``rate``, ``drop_prob`` or ``drop_rate`` of another class,
      if the name of the class says that it drops and its code uses the rate after building;
    - a plain float attribute with ``drop`` in its name that the code of its module uses after
      building. In models of transformers, timm and torchvision each such attribute is a site,
      elsewhere only if a drop layer directly inside the module has the same rate.

    "Uses after building" means that a method of the module or of its parent reads the rate.
    Methods that build or print a module do not count.

    Scripted modules have no sites; `earlydrop.audit` names them.

    Args:
        model: Any module. Wrappers (DistributedDataParallel, FSDP, torch.compile, checkpointing)
            are looked through.

    Returns:
        The sites; empty if there are none.

    >>> [site.name for site in find_sites(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))]
    ['1']
    """
    return SiteList(site for site in all_rates(model) if not site.doubtful)


def all_rates(model: nn.Module) -> Iterator[Site]:
    """The sites of a model, and attributes that only look like rates."""
    inner = unwrap(model)
    parents = _parents(inner)
    for name, module in named_modules(inner):
        if isinstance(module, torch.jit.ScriptModule) or unwrap(module) is not module:
            continue
        parent = parents.get(id(module), _Parent(None, ""))
        of_layer = list(_layer_rates(name, module, parent))
        yield from of_layer
        yield from _plain_rates(name, module, {site.attribute for site in of_layer}, parent)


class _Parent(NamedTuple):
    """The parent of a module, and the module's key in that parent."""

    module: nn.Module | None
    key: str


def _parents(model: nn.Module) -> dict[int, _Parent]:
    """The parent of each module, wrappers left out, by the id of the module."""
    parents = {}
    for module in model.modules():
        if unwrap(module) is not module:
            continue
        for key, child in module._modules.items():
            if child is not None:
                parents[id(unwrap(child))] = _Parent(module, key)
    return parents


def _layer_rates(name: str, module: nn.Module, parent: _Parent) -> Iterator[Site]:
    """The rates of a module whose class is a drop layer."""
    family = family_of(module)
    if family is None:
        return
    for attribute in family.attributes:
        if not is_rate(module.__dict__.get(attribute)):
            continue
        several = len(family.attributes) > 1 or (family.by_name and not name)
        site = Site(
            name=f"{name}.{attribute}".removeprefix(".") if several else name,
            module=module,
            attribute=attribute,
            kind=family.kind,
            driver=family.driver,
        )
        if not family.by_name or _is_used(module, attribute, parent):
            yield site
        elif not _handed_on(module, site.base_rate):
            yield replace(site, doubtful=True)


def _handed_on(module: nn.Module, rate: float) -> bool:
    """Whether a site inside a module has this rate. The module may then only pass it on."""
    for child in module.children():
        if any(site.base_rate == rate for site in all_rates(child)):
            return True
    return False


def _plain_rates(name: str, module: nn.Module, known: set[str], parent: _Parent) -> Iterator[Site]:
    """Plain float attributes that look like rates, besides those of the drop layer (``known``)."""
    own: Any = original_class(module)
    for attribute in (*module.__dict__, *_read_from_config(own)):
        if attribute in known or not _looks_like_rate(module, attribute):
            continue
        if not attribute.startswith(PREFIX) and not _is_used(module, attribute, parent):
            continue
        site = Site(
            name=f"{name}.{attribute}" if name else attribute,
            module=module,
            attribute=attribute,
            kind="path" if drops_paths(attribute) else "unit",
            driver=layers.EagerOnlyDriver,
            plain=True,
        )
        if not in_known_library(own):
            twin = _kind_of_twin(site)
            site = replace(site, kind=twin or site.kind, doubtful=twin is None)
        yield site


def _looks_like_rate(module: nn.Module, attribute: str) -> bool:
    """Whether an attribute is named for dropping and holds a rate that no driven layer covers."""
    if "drop" not in attribute or attribute.startswith("_"):
        return False
    # The copy of a child's rate, which `AttentionDriver` keeps up to date.
    if attribute == "attn_drop_p" and "attn_drop" in module._modules:
        return False
    value = stored_rate(module, attribute)
    return isinstance(value, float) and is_rate(value)


def _kind_of_twin(site: Site) -> str | None:
    """The kind of a plain rate, if a drop layer directly inside its module has the same rate.

    None if there is no such layer, or if its kind contradicts the attribute's name.

    Such a module passes one number to its layers and to a function: nanoGPT's attention passes it
    to ``scaled_dot_product_attention``, DINOv2's block to stochastic depth over the batch.
    """
    kinds = set()
    for child in site.module.children():
        for twin in _layer_rates("", unwrap(child), _Parent(site.module, "")):
            if twin.base_rate == site.base_rate and not twin.doubtful:
                kinds.add(twin.kind)
    if site.kind in kinds:
        return site.kind
    return "path" if "path" in kinds and "dropout" not in site.attribute else None


def tuples_of_rates(model: nn.Module, kind: str) -> list[str]:
    """Rates of a kind that a forward reads from a tuple or a list, which no scheduler can drive.

    Each tuple with a rate above 0 is given as ``name=rates``. There are none for models of
    transformers, timm and torchvision.
    """
    tuples = []
    for name, module in named_modules(unwrap(model)):
        own = original_class(module)
        if isinstance(module, torch.jit.ScriptModule) or in_known_library(own):
            continue
        for attribute, value in module.__dict__.items():
            if "drop" in attribute and _holds_rates(value) and attribute in reads(own):
                full = f"{name}.{attribute}".removeprefix(".")
                own_kind = "path" if drops_paths(attribute) else "unit"
                if kind in ("all", own_kind):
                    tuples.append(f"{full}={tuple(map(float, value))}")
    return tuples


def _holds_rates(value: Any) -> bool:
    """Whether a value is a tuple or a list of rates, with a float above 0 among them."""
    if not isinstance(value, (tuple, list)) or not all(map(is_rate, value)):
        return False
    return any(isinstance(rate, float) and rate > 0 for rate in value)


@cache
def _read_from_config(cls: type) -> tuple[str, ...]:
    """The entries of its config that a class reads after building and that look like rates."""
    entries = [chain for chain in reads(cls) if chain.startswith(PREFIX) and chain.count(".") == 1]
    return tuple(sorted(entry for entry in entries if "drop" in entry))


def _is_used(module: nn.Module, attribute: str, parent: _Parent) -> bool:
    """Whether the module, or its parent, uses an attribute after the module was built."""
    if attribute in reads(original_class(module)):
        return True
    if parent.module is None:
        return False
    return f"{parent.key}.{attribute}" in reads(original_class(parent.module))
