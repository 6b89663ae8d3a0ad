"""Which sites of a model a schedule drives."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from torch import nn

from earlydrop.sites.find import Site, SiteList, all_rates, find_sites, tuples_of_rates
from earlydrop.sites.unwrap import named_modules, unwrap

Kind = Literal["unit", "path", "all"]
KINDS: tuple[str, ...] = get_args(Kind)
SiteChoice = str | Iterable[str] | Callable[[str, nn.Module], bool]


def choose_sites(model: nn.Module, kind: Kind = "unit", sites: SiteChoice | None = None) -> SiteList:
    """The sites that a schedule should drive.

    Args:
        model: The model.
        kind: ``"unit"`` (dropout), ``"path"`` (stochastic depth) or ``"all"``.
        sites: None for those of the kind built with a rate above 0. Else names, globs (``"blocks.*.mlp.*"``) or a predicate
            ``(name, module) -> bool``, matched against the sites of the kind. What only looks like a rate (`find_sites` leaves it
            out) is a site when a pattern ends with its attribute (``"*.attention_dropout"``) or is the layer's name.

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
        return SiteList(chosen)
    if callable(sites):
        chosen = [site for site in found if sites(site.name, site.module)]
        if not chosen:
            raise ValueError(f"sites: the predicate chose none of the {len(found)} {_called(kind)}sites: {_some(found)}")
    else:
        patterns = [sites] if isinstance(sites, str) else list(sites)
        chosen = _without_plain_zeros(_match(model, kind, found, patterns), patterns)
    _check_proportions(chosen)
    return SiteList(chosen)


def undriven(model: nn.Module, kind: str, chosen: list[Site]) -> list[Site]:
    """What looks like a rate above 0 and is a site only when named, that a choice leaves out.

    Args:
        model: The model.
        kind: ``"unit"``, ``"path"`` or ``"all"``.
        chosen: The sites that are driven.

    Returns:
        Those of the kind, and those beside a driven site whose name does not tell their kind.
    """
    driven = {(id(site.module), site.attribute) for site in chosen}
    driven_layers = {id(site.module) for site in chosen}

    def may_be_of_kind(site: Site) -> bool:
        beside = any(id(unwrap(child)) in driven_layers for child in site.module.children())
        return kind in ("all", site.kind) or (beside and "dropout" not in site.attribute)

    return [
        site
        for site in all_rates(model)
        if site.doubtful
        and site.base_rate > 0
        and may_be_of_kind(site)
        and not site.driven
        and (id(site.module), site.attribute) not in driven
    ]


def undrivable(model: nn.Module, kind: str) -> list[str]:
    """Rates of a kind in tuples and lists, which nothing can drive, each as ``name=rates``.

    Args:
        model: The model.
        kind: ``"unit"``, ``"path"`` or ``"all"``.

    Returns:
        What to print of them.
    """
    return [f"{name}={rates}" for name, each, rates in tuples_of_rates(model) if kind in ("all", each)]


def _without_plain_zeros(chosen: list[Site], patterns: list[str]) -> list[Site]:
    """Plain rates of 0 that a glob happens to match are no reason to refuse a choice: only their own names ask for them."""
    named = {pattern.rpartition(".")[2] for pattern in patterns}
    above = {site.kind for site in chosen if site.base_rate > 0}
    return [s for s in chosen if not s.plain or s.base_rate > 0 or s.attribute in named or s.kind not in above]


def _check_proportions(chosen: list[Site]) -> None:
    for each in ("unit", "path"):
        bases = {site.name: site.base_rate for site in chosen if site.kind == each}
        zeros = [name for name, base in bases.items() if base == 0]
        if zeros and len(zeros) < len(bases):
            others = next(name for name, base in bases.items() if base > 0)
            raise ValueError(
                f"sites mixes rates of 0 ({zeros[0]!r}) and above ({others!r}: {bases[others]:g}): their proportions are unknown. "
                "Build the model with the rates that these sites should have at the peak, or choose sites of one sort"
            )


def _match(model: nn.Module, kind: str, found: list[Site], patterns: list[str]) -> list[Site]:
    doubtful = [site for site in all_rates(model) if site.doubtful and kind in ("all", site.kind)]
    chosen: dict[str, Site] = {}
    for pattern in patterns:
        matches = [site for site in found if _matches(site, pattern)]
        matches += [site for site in doubtful if _asks_for(site, pattern)]
        if not matches:
            raise ValueError(
                f"sites: {pattern!r} matches none of the {len(found)} {_called(kind)}sites: {_some(found + doubtful)}"
                + _second_name(model, found, pattern)
            )
        chosen |= {site.name: site for site in matches}
    if not chosen:
        raise ValueError(f"sites is empty: name at least one of {_some(found)}")
    return list(chosen.values())


def _matches(site: Site, pattern: str) -> bool:
    if fnmatch.fnmatchcase(site.name, pattern):
        return True
    layer = site.name.removesuffix("." + site.attribute)
    return not site.plain and any(fnmatch.fnmatchcase(name, pattern) for name in (layer, f"{layer}.{site.attribute}"))


def _asks_for(site: Site, pattern: str) -> bool:
    """Whether a pattern names a doubtful site itself: a glob that ends with its attribute, or a layer's own name."""
    if not site.plain and pattern == site.name:
        return True
    return pattern.rpartition(".")[2] == site.attribute and _matches(site, pattern)


def _second_name(model: nn.Module, found: list[Site], pattern: str) -> str:
    """What to say of a pattern that names a shared module by another name than its first."""
    sites = {id(site.module): site for site in found}
    for name, module in named_modules(unwrap(model), remove_duplicate=False):
        if id(module) in sites and fnmatch.fnmatchcase(name, pattern):
            first = sites[id(module)].name
            return f". {name!r} is the same module as {first!r}, used a second time: one module has one rate, so name it {first!r}"
    return ""


def _called(kind: str) -> str:
    """What a kind's sites are called: ``"unit "``, ``"path "``, or nothing."""
    return "" if kind == "all" else f"{kind} "


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
            f"all {len(found)} {_called(kind)}sites of {name} were built with rate 0, so nothing says which to drive: build the model with "
            f"the peak rate ({remedy}), or choose sites yourself: sites='*' drives all of them ({_some(found)})"
        )
    other = sorted({site.kind for site in find_sites(model)})
    hint = f" It has {other[0]} sites: kind={other[0]!r} drives those." if other else ""
    named = undriven(model, kind, [])
    if named:
        hint += f" This may be a rate, {named[0].name}={named[0].base_rate:g}: sites={named[0].name!r} drives it."
    tuples = undrivable(model, kind)
    if tuples:
        hint += f" {tuples[0]} are rates in a tuple, which cannot be driven: hold each in an attribute of the layer that it is for."
    return (
        f"{name} has no {_called(kind)}site to drive (a layer built with rate 0 may be an nn.Identity, which can never drop): "
        f"build the model with the peak rate ({remedy}).{hint}"
    )
