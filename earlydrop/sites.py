"""Sites: where a model drops. Find them, read their rates, set their rates.

A *site* is one drop rate in a model: ``p`` of an ``nn.Dropout``, ``drop_prob`` of a timm ``DropPath``, ``dropout`` of an
``nn.LSTM``. There are two kinds: *unit* (dropout) and *path* (stochastic depth). Layers of timm, torchvision and transformers are
recognised by name, without importing those libraries.

How driven sites get their rates (`RateBank`): each module's ``__class__`` is swapped in place for a subclass (see
`earlydrop.layers`), so identity, hooks, ``isinstance`` and ``state_dict`` keys survive. In eager mode the layer's own code runs and
reads the rate as a Python float; under ``torch.compile`` the graph reads it from a tensor that is updated in place, so that a new
rate never means a new graph.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from earlydrop import layers

KINDS = ("unit", "path", "all")
SiteChoice = str | Iterable[str] | Callable[[str, nn.Module], bool]


class _Family(NamedTuple):
    """How one class of drop layer is recognised and driven."""

    kind: str
    attributes: tuple[str, ...]
    driver: type  # the mixin of earlydrop.layers that drives it


_FAMILIES: dict[tuple[str, str], _Family] = {
    ("torch", "Dropout"): _Family("unit", ("p",), layers.ElementDropout),
    ("torch", "Dropout1d"): _Family("unit", ("p",), layers.FeatureDropout),
    ("torch", "Dropout2d"): _Family("unit", ("p",), layers.FeatureDropout),
    ("torch", "Dropout3d"): _Family("unit", ("p",), layers.FeatureDropout),
    ("torch", "AlphaDropout"): _Family("unit", ("p",), layers.AlphaDropout),
    ("torch", "FeatureAlphaDropout"): _Family("unit", ("p",), layers.FeatureAlphaDropout),
    ("torch", "MultiheadAttention"): _Family("unit", ("dropout",), layers.EagerOnly),
    ("torch", "RNNBase"): _Family("unit", ("dropout",), layers.Recurrent),
    ("timm", "DropPath"): _Family("path", ("drop_prob",), layers.DropPath),
    ("timm", "DropBlock2d"): _Family("unit", ("drop_prob",), layers.TimmDropBlock),
    ("timm", "PatchDropout"): _Family("unit", ("prob",), layers.EagerOnly),
    ("timm", "PatchDropoutWithIndices"): _Family("unit", ("prob",), layers.EagerOnly),
    ("torchvision", "StochasticDepth"): _Family("path", ("p",), layers.StochasticDepth),
    ("torchvision", "DropBlock2d"): _Family("unit", ("p",), layers.TorchvisionDropBlock),
    ("torchvision", "DropBlock3d"): _Family("unit", ("p",), layers.TorchvisionDropBlock),
    ("torchvision", "ShiftedWindowAttention"): _Family("unit", ("attention_dropout", "dropout"), layers.EagerOnly),
}
_FAMILIES |= {
    ("earlydrop", name): _Family("unit", ("p",), driver)
    for name, driver in (
        ("StandardDropout", layers.StandardDropout),
        ("SharedMaskDropout", layers.SharedMaskDropout),
        ("GaussianDropout", layers.GaussianDropout),
    )
}
_EAGER = {kind: _Family(kind, (), layers.EagerOnly) for kind in ("unit", "path")}


@dataclass(frozen=True)
class Site:
    """One drop rate in a model.

    Attributes:
        name: The module's dotted name; with ``.attribute`` behind it where one module has several rates or the rate is a plain
            attribute that was asked for by name.
        module: The module that drops.
        attribute: The attribute that holds the rate.
        kind: ``"unit"`` or ``"path"``.
    """

    name: str
    module: nn.Module = field(repr=False)
    attribute: str
    kind: str
    driver: type = field(repr=False)

    @property
    def rate(self) -> float:
        """The present rate, read from the module."""
        return float(getattr(self.module, self.attribute))

    @property
    def base_rate(self) -> float:
        """The rate that the module was built with."""
        stored = float(self.module.__dict__[self.attribute])
        copied = self.module.__dict__.get(layers.COPIED_BASE, {}).get(self.attribute)
        if copied is not None and copied[0] == stored:  # a copy of a driven module, its rate not touched since
            return float(copied[1])
        return stored

    @property
    def driven(self) -> bool:
        """Whether a scheduler drives this rate now."""
        return layers.drives(self.module, self.attribute)


def _family(module: nn.Module) -> _Family | None:
    for cls in type(module).__mro__:
        library = cls.__module__.partition(".")[0]
        family = _FAMILIES.get((library, cls.__name__))
        if family is None and cls.__name__.endswith(("DropPath", "StochasticDepth")) and issubclass(cls, nn.Module):
            attribute = next((a for a in ("drop_prob", "p") if _is_rate(module.__dict__.get(a))), None)
            if attribute is not None:  # transformers' copies of timm's layer compute the same; of others nothing is known
                driver = layers.DropPath if library == "transformers" else layers.EagerOnly
                family = _Family("path", (attribute,), driver)
        if family is not None:
            own_forward = getattr(type(module), "forward", None) is not getattr(cls, "forward", None) and not layers.is_scheduled(
                module
            )
            if own_forward and family.driver is not layers.Recurrent:
                return family._replace(driver=layers.EagerOnly)  # a subclass with arithmetic of its own
            return family
    return None


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def find_sites(model: nn.Module) -> list[Site]:
    """Every site of a model, driven or not, in the order of ``model.named_modules()``.

    Args:
        model: Any module. Wrappers (DistributedDataParallel, torch.compile) are looked through.

    Returns:
        The sites; empty if there are none.

    >>> [site.name for site in find_sites(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))]
    ['1']
    """
    sites = []
    for name, module in unwrap(model).named_modules():
        name = name.replace("_orig_mod.", "").removesuffix("._orig_mod")
        family = _family(module)
        for attribute in family.attributes if family else ():
            if family is not None and _is_rate(module.__dict__.get(attribute)):
                full = name if len(family.attributes) == 1 else f"{name}.{attribute}"
                sites.append(Site(full, module, attribute, family.kind, family.driver))
    return sites


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's, DistributedDataParallel's and DataParallel's wrappers.

    Args:
        model: A module, wrapped or not.

    Returns:
        The innermost wrapped module.
    """
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def _plain_attributes(model: nn.Module, known: set[tuple[int, str]]) -> Iterator[Site]:
    """Plain float attributes with ``drop`` in their names, as transformers has them; driven only when named."""
    for name, module in unwrap(model).named_modules():
        for attribute, value in list(module.__dict__.items()):
            public_rate = "drop" in attribute and not attribute.startswith("_") and isinstance(value, float) and _is_rate(value)
            if public_rate and (id(module), attribute) not in known:
                full = f"{name}.{attribute}" if name else attribute
                yield Site(full, module, attribute, "path" if "path" in attribute else "unit", layers.EagerOnly)


def choose_sites(model: nn.Module, kind: str = "unit", sites: SiteChoice | None = None) -> list[Site]:
    """The sites that a schedule should drive.

    Args:
        model: The model.
        kind: ``"unit"`` (dropout), ``"path"`` (stochastic depth) or ``"all"``.
        sites: None for those of the kind built with a rate above 0. Else names, globs (``"blocks.*.mlp.*"``) or a predicate
            ``(name, module) -> bool``, matched against the sites of the kind. A plain float attribute of a module (transformers:
            ``"*.attention_dropout"``) is a site only when its own name ends a pattern.

    Returns:
        The chosen sites, at least one.

    Raises:
        ValueError: Unknown kind, no site, only sites with rate 0 by default, a pattern that matches nothing, or a choice that
            mixes rates of 0 with others.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected 'unit' (dropout), 'path' (stochastic depth) or 'all'")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    found = [site for site in find_sites(model) if kind in ("all", site.kind)]
    if sites is None:
        chosen = [site for site in found if site.base_rate > 0]
        if not chosen:
            raise ValueError(_nothing_to_drive(model, kind, found))
        return chosen
    if callable(sites):
        chosen = [site for site in found if sites(site.name, site.module)]
        if not chosen:
            raise ValueError(f"sites: the predicate chose none of the {len(found)} {kind} sites: {_some(found)}")
    else:
        chosen = _match(model, kind, found, [sites] if isinstance(sites, str) else list(sites))
    for each in ("unit", "path"):
        bases = {site.name: site.base_rate for site in chosen if site.kind == each}
        zeros = [name for name, base in bases.items() if base == 0]
        if zeros and len(zeros) < len(bases):
            others = next(name for name, base in bases.items() if base > 0)
            raise ValueError(
                f"sites mixes rates of 0 ({zeros[0]!r}) and above ({others!r}: {bases[others]:g}): their proportions are unknown. "
                "Build the model with the rates that these sites should have at the peak, or choose sites of one sort"
            )
    return chosen


def _match(model: nn.Module, kind: str, found: list[Site], patterns: list[str]) -> list[Site]:
    known = {(id(site.module), site.attribute) for site in find_sites(model)}
    plain = [site for site in _plain_attributes(model, known) if kind in ("all", site.kind)]
    chosen: dict[str, Site] = {}
    for pattern in patterns:
        matches = [
            site
            for site in found
            if fnmatch.fnmatchcase(site.name, pattern) or fnmatch.fnmatchcase(site.name.removesuffix("." + site.attribute), pattern)
        ]
        attribute = pattern.rpartition(".")[2]
        matches += [site for site in plain if site.attribute == attribute and fnmatch.fnmatchcase(site.name, pattern)]
        if not matches:
            raise ValueError(f"sites: {pattern!r} matches none of the {len(found)} {kind} sites: {_some(found + plain)}")
        chosen |= {site.name: site for site in matches}
    if not chosen:
        raise ValueError(f"sites is empty: name at least one of {_some(found)}")
    return list(chosen.values())


def _some(sites: list[Site]) -> str:
    names = [site.name for site in sites[:6]]
    return (", ".join(names) + (", ..." if len(sites) > 6 else "")) or "there are none"


def _nothing_to_drive(model: nn.Module, kind: str, found: list[Site]) -> str:
    name = type(unwrap(model)).__name__
    build = {
        "unit": "for a timm model proj_drop_rate=, attn_drop_rate= or pos_drop_rate=; for your own nn.Dropout(p)",
        "path": "for a timm model drop_path_rate=; for a torchvision one stochastic_depth_prob=",
    }
    remedy = "; ".join(text for key, text in build.items() if kind in (key, "all"))
    if found:
        return (
            f"all {len(found)} {kind} sites of {name} were built with rate 0, so nothing says which to drive: build the model with "
            f"the peak rate ({remedy}), or choose sites yourself: sites='*' drives all of them ({_some(found)})"
        )
    other = sorted({site.kind for site in find_sites(model)})
    hint = f" It has {other[0]} sites: kind={other[0]!r} drives those." if other else ""
    plain = [site for site in _plain_attributes(model, set()) if site.base_rate > 0 and kind in ("all", site.kind)]
    if plain:  # timm's ResNet and EfficientNet, transformers' attention: functional dropout
        hint += f" A plain attribute may hold a rate, {plain[0].name}={plain[0].base_rate:g}: sites={plain[0].name!r} drives it."
    return (
        f"{name} has no {kind} site to drive (a layer built with rate 0 may be an nn.Identity, which can never drop): "
        f"build the model with the peak rate ({remedy}).{hint}"
    )


class RateBank:
    """The rates of the sites that one scheduler drives: on the host, and as one float32 vector on each device.

    Args:
        sites: The sites to drive.
        fast_masks: Whether nn.Dropout layers draw 16-bit masks in eager mode.
    """

    def __init__(self, sites: list[Site], fast_masks: bool) -> None:
        largest = {kind: max((s.base_rate for s in sites if s.kind == kind), default=0.0) for kind in ("unit", "path")}
        self.shares = [s.base_rate / largest[s.kind] if largest[s.kind] > 0 else 1.0 for s in sites]
        self.names = [s.name for s in sites]
        self.base_rates = [s.base_rate for s in sites]
        self.rates = [0.0] * len(sites)
        self.forward_rates = [0.0] * len(sites)
        self.value = 0.0
        self.on = False
        self.fast_masks = fast_masks
        self._vectors: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def set(self, value: float) -> None:
        """Set every site's rate to ``value`` · its share of the largest base rate of its kind.

        Args:
            value: The rate of the largest site.
        """
        if value == self.value:
            return
        self.value = value
        self.rates[:] = [value * share for share in self.shares]
        self.on = value > 0
        for shares, vector in self._vectors.values():
            with torch.inference_mode(vector.is_inference()):
                torch.mul(shares, value, out=vector)  # in place: compiled graphs hold this memory

    def view(self, index: int, device: torch.device) -> Tensor:
        """The rate of one site as a 0-d float32 tensor that follows `set`.

        Args:
            index: The site's position in the bank.
            device: Where the site computes.

        Returns:
            A view of that device's rate vector.
        """
        if device not in self._vectors:
            with torch.inference_mode(False), torch.no_grad():
                shares = torch.tensor(self.shares, dtype=torch.float32, device=device)
                self._vectors[device] = (shares, shares * self.value)
        return self._vectors[device][1][index]


def drive(model: nn.Module, sites: list[Site], fast_masks: bool) -> RateBank:
    """Swap the classes of the sites' modules so that a `RateBank` sets their rates.

    Args:
        model: The model that the sites were found in.
        sites: The sites; none may be driven already.
        fast_masks: Whether nn.Dropout layers draw 16-bit masks in eager mode.

    Returns:
        The bank, every rate 0.

    Raises:
        ValueError: A site is driven already.
    """
    for site in sites:
        if layers.is_scheduled(site.module):
            raise ValueError(
                f"site {site.name!r} is driven by a DropoutScheduler already: call that scheduler's restore(), or "
                "earlydrop.restore(model), before driving it with another"
            )
    bank = RateBank(sites, fast_masks)
    devices = _devices(unwrap(model))
    indices: dict[nn.Module, dict[str, int]] = {}
    for index, site in enumerate(sites):
        indices.setdefault(site.module, {})[site.attribute] = index
    drivers = {site.module: site.driver for site in sites}
    for module, attributes in indices.items():
        layers.link(module, drivers[module], bank, attributes, devices[module])
    for module in unwrap(model).modules():
        attention_dropout = module._modules.get("attn_drop")
        if attention_dropout in indices and "fused_attn" in module.__dict__ and not layers.is_scheduled(module):
            layers.link(module, layers.Attention, bank, {}, devices[module])
    return bank


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

    Args:
        model: The model. Modules that are not driven are left alone.
    """
    for module in unwrap(model).modules():
        if layers.is_scheduled(module):
            layers.unlink(module)


@contextmanager
def sites_off(model: nn.Module) -> Iterator[None]:
    """Within it no site of the model drops, driven or not, whatever the mode of its modules; afterwards all is as before.

    Standard, non-inverted dropout then multiplies by its keep probability, as it does at test.

    Plain float attributes that are driven count as sites; those that are not are unknown to the library and keep their rates.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    banks: dict[int, tuple[RateBank, float]] = {}
    plain: list[tuple[nn.Module, str, float]] = []
    scaled = [(site.module, 1.0 - site.rate) for site in find_sites(model) if site.driver is layers.StandardDropout]
    for module in unwrap(model).modules():
        bank = layers.bank_of(module)
        if bank is not None:
            banks[id(bank)] = (bank, bank.value)
        elif "attn_drop" in module._modules and "attn_drop_p" in module.__dict__:
            plain.append((module, "attn_drop_p", module.__dict__["attn_drop_p"]))
    for site in find_sites(model):
        if not site.driven:
            plain.append((site.module, site.attribute, site.module.__dict__[site.attribute]))
    try:
        for bank, _ in banks.values():
            bank.set(0.0)
        for module, attribute, _ in plain:
            setattr(module, attribute, 0.0)
        for module, keep in scaled:
            module.__dict__["forward"] = functools.partial(torch.mul, keep)
        yield
    finally:
        for module, _ in scaled:
            module.__dict__.pop("forward", None)
        for module, attribute, rate in plain:
            setattr(module, attribute, rate)
        for bank, value in banks.values():
            bank.set(value)
