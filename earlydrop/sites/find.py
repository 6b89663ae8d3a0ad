"""Finding the sites of a model.

A *site* is one drop rate in a model: ``p`` of an ``nn.Dropout``, ``drop_prob`` of a timm ``DropPath``, ``dropout`` of an
``nn.LSTM``, ``attention_dropout`` of a transformers attention that hands it to a functional dropout. There are two kinds: *unit*
(dropout) and *path* (stochastic depth).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import nn

from earlydrop.sites import layers
from earlydrop.sites.families import PATH_NAMES, PLAIN_LIBRARIES, covered, family_of, is_rate
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
    """

    name: str
    module: nn.Module = field(repr=False)
    attribute: str
    kind: str
    driver: type = field(repr=False)
    plain: bool = field(default=False, repr=False)

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


def find_sites(model: nn.Module) -> list[Site]:
    """Every site of a model, driven or not, in the order of ``model.named_modules()``.

    Drop layers are known by their class. In models of transformers, timm and torchvision a plain float attribute with ``drop`` in its
    name that the module's code reads after building is a site too. Scripted modules have none: `earlydrop.audit` names them.

    Args:
        model: Any module. Wrappers (DistributedDataParallel, FSDP, torch.compile, checkpointing) are looked through.

    Returns:
        The sites; empty if there are none.

    >>> [site.name for site in find_sites(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))]
    ['1']
    """
    return [site for site in all_rates(model) if not site.plain or in_known_library(site.module)]


def in_known_library(module: nn.Module) -> bool:
    """Whether a module's class, or one that it extends, is of a library whose plain rates are sites without being named.

    Args:
        module: Any module.

    Returns:
        True for transformers, timm and torchvision.
    """
    return any(cls.__module__.partition(".")[0] in PLAIN_LIBRARIES for cls in original_class(module).__mro__)


def all_rates(model: nn.Module) -> Iterator[Site]:
    """The sites of a model and the plain rates that would be sites in other libraries.

    Args:
        model: Any module.

    Yields:
        Sites.
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
        family = family_of(module)
        attributes = family.attributes if family else ()
        if family is not None:
            for attribute in attributes:
                if is_rate(module.__dict__.get(attribute)):
                    full = name if len(attributes) == 1 else f"{name}.{attribute}"
                    yield Site(full, module, attribute, family.kind, family.driver)
        for attribute in (*module.__dict__, *_read_from_config(original_class(module))):  # type: ignore[arg-type]
            if "drop" not in attribute or attribute in attributes or attribute[0] == "_":
                continue
            value = stored_rate(module, attribute)
            if not isinstance(value, float) or not is_rate(value) or covered(module, attribute):
                continue
            if attribute.startswith(PREFIX) or _read(module, attribute, *parents.get(id(module), (None, ""))):
                kind = "path" if any(part in attribute for part in PATH_NAMES) else "unit"
                yield Site(f"{name}.{attribute}" if name else attribute, module, attribute, kind, layers.EagerOnly, plain=True)


@cache
def _read_from_config(cls: type) -> tuple[str, ...]:
    """What looks like a rate among the entries of its config that a class reads after building."""
    return tuple(sorted(chain for chain in reads(cls) if chain.startswith(PREFIX) and "drop" in chain and chain.count(".") == 1))


def _read(module: nn.Module, attribute: str, parent: nn.Module | None, key: str) -> bool:
    """Whether an attribute is used after the module was built, by the module or by the one around it."""
    if attribute in reads(original_class(module)):
        return True
    return parent is not None and f"{key}.{attribute}" in reads(original_class(parent))
