"""Choose the sites of a model that a schedule drives."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from torch import nn

from earlydrop.sites.find import Site, SiteList, all_rates, find_sites, tuples_of_rates
from earlydrop.sites.unwrap import named_modules, unwrap

Kind = Literal["unit", "path", "all"]
KINDS: tuple[str, ...] = get_args(Kind)
SiteChoice = str | Site | Iterable[str | Site] | Callable[[str, nn.Module], bool]


def choose_sites(
    model: nn.Module, kind: Kind = "unit", sites: SiteChoice | None = None
) -> SiteList:
    """Choose the sites that a schedule drives.

    Args:
        model: The model.
        kind: ``"unit"`` (dropout), ``"path"`` (stochastic depth) or ``"all"``.
        sites: None for the sites of the kind that were built with a rate above 0. Otherwise names,
            globs (``"blocks.*.mlp.*"``), sites of `find_sites` or a predicate
            ``(name, module) -> bool``, matched against the sites of the kind. A doubtful site
            (`find_sites` leaves it out) is chosen by a pattern that ends with its attribute
            (``"*.attention_dropout"``) or is the name of its layer. A plain rate of 0 that a glob
            matches is left out if a site of its kind with a rate above 0 is chosen too, unless a
            pattern ends with its attribute.

    Returns:
        The chosen sites, at least one.

    Raises:
        ValueError: The kind is unknown, the model is no module, there is no site, ``sites`` is None
            and all sites have rate 0, ``sites`` holds something else, ``sites`` chooses nothing, or
            the choice mixes rates of 0 with others.
    """
    if kind not in KINDS:
        expected = "expected 'unit' (dropout), 'path' (stochastic depth) or 'all'"
        raise ValueError(f"kind is {kind!r}: {expected}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    of_kind = [site for site in find_sites(model) if kind in ("all", site.kind)]
    if sites is None:
        chosen = [site for site in of_kind if site.base_rate > 0]
        if not chosen:
            raise ValueError(_nothing_to_drive(model, kind, of_kind))
        return SiteList(chosen)
    if callable(sites) and not isinstance(sites, nn.Module):
        chosen = [site for site in of_kind if sites(site.name, site.module)]
        if not chosen:
            raise ValueError(
                f"sites: the predicate chose none of the {len(of_kind)} {_adjective(kind)}sites: "
                f"{_listed(of_kind)}"
            )
    else:
        patterns = _patterns(sites)
        chosen = _without_plain_zeros(_match(model, kind, of_kind, patterns), patterns)
    _check_proportions(chosen)
    return SiteList(chosen)


def _patterns(sites: object) -> list[str]:
    """The names and globs in a choice of sites."""
    entries = [sites] if isinstance(sites, (str, Site)) else sites
    if isinstance(entries, Iterable) and not isinstance(entries, nn.Module):
        entries = [entry.name if isinstance(entry, Site) else entry for entry in entries]
        if all(isinstance(entry, str) for entry in entries):
            return entries
    raise ValueError(
        f"sites is {sites!r}: expected names, globs, sites of earlydrop.find_sites(model), or a "
        "predicate (name, module) -> bool"
    )


def doubtful_left_out(model: nn.Module, kind: str, chosen: list[Site]) -> list[Site]:
    """Doubtful sites with a rate above 0 that a choice leaves out.

    A site of the other kind is returned too if a layer directly inside its module is driven and
    ``site.attribute`` does not contain "dropout".
    """
    driven = {(id(site.module), site.attribute) for site in chosen}
    driven_layers = {id(site.module) for site in chosen}

    def may_be_of_kind(site: Site) -> bool:
        beside = any(id(unwrap(child)) in driven_layers for child in site.module.children())
        return kind in ("all", site.kind) or (beside and "dropout" not in site.attribute)

    left_out = []
    for site in all_rates(model):
        is_driven = site.driven or (id(site.module), site.attribute) in driven
        if site.doubtful and site.base_rate > 0 and not is_driven and may_be_of_kind(site):
            left_out.append(site)
    return left_out


def _without_plain_zeros(chosen: list[Site], patterns: list[str]) -> list[Site]:
    """The chosen sites without plain rates of 0 that a glob matches by chance.

    A plain rate of 0 stays if a pattern ends with its attribute, or if no site of its kind has a
    rate above 0.
    """
    endings = {pattern.rpartition(".")[2] for pattern in patterns}
    kinds_above = {site.kind for site in chosen if site.base_rate > 0}
    kept = []
    for site in chosen:
        attribute = site.attribute.rpartition(".")[2]
        by_chance = site.plain and site.base_rate == 0 and attribute not in endings
        if not by_chance or site.kind not in kinds_above:
            kept.append(site)
    return kept


def _check_proportions(chosen: list[Site]) -> None:
    """Refuse sites of a kind that mix rates of 0 with others."""
    for kind in ("unit", "path"):
        bases = {site.name: site.base_rate for site in chosen if site.kind == kind}
        zeros = [name for name, base in bases.items() if base == 0]
        above = [name for name, base in bases.items() if base > 0]
        if zeros and above:
            raise ValueError(
                f"sites mixes rates of 0 ({zeros[0]!r}) and above ({above[0]!r}: "
                f"{bases[above[0]]:g}): their proportions are unknown. Build the model with the "
                "rates that these sites should have at the peak, or choose only sites with a rate "
                "of 0, or only sites with a rate above 0"
            )


def _match(model: nn.Module, kind: str, sites: list[Site], patterns: list[str]) -> list[Site]:
    """The sites that match some patterns, and the doubtful ones that a pattern names."""
    doubtful = [site for site in all_rates(model) if site.doubtful and kind in ("all", site.kind)]
    chosen: dict[str, Site] = {}
    for pattern in patterns:
        matches = [site for site in sites if _matches(site, pattern)]
        matches += [site for site in doubtful if _asks_for(site, pattern)]
        if not matches:
            count = f"{len(sites + doubtful)} {_adjective(kind)}sites"
            raise ValueError(
                f"sites: {pattern!r} matches none of the {count}: {_listed(sites + doubtful)}"
                f"{_second_name(model, sites, pattern)}"
            )
        chosen |= {site.name: site for site in matches}
    if not chosen:
        raise ValueError(f"sites is empty: name at least one site; the sites are: {_listed(sites)}")
    return list(chosen.values())


def _matches(site: Site, pattern: str) -> bool:
    """Whether a pattern matches the name of a site.

    The attribute may be left out of the pattern, except for a plain rate.
    """
    if fnmatch.fnmatchcase(site.name, pattern):
        return True
    if site.plain:
        return False
    layer = site.name.removesuffix("." + site.attribute)
    return any(fnmatch.fnmatchcase(name, pattern) for name in (layer, f"{layer}.{site.attribute}"))


def _asks_for(site: Site, pattern: str) -> bool:
    """Whether a pattern names a doubtful site.

    Such a pattern ends with the attribute of the site, or is the name of its layer.
    """
    if not site.plain and pattern == site.name:
        return True
    attribute = site.attribute.rpartition(".")[2]
    return pattern.rpartition(".")[2] == attribute and _matches(site, pattern)


def _second_name(model: nn.Module, sites: list[Site], pattern: str) -> str:
    """A note on a pattern that names a shared module by another name than its first."""
    by_module = {id(site.module): site for site in sites}
    for name, module in named_modules(unwrap(model), remove_duplicate=False):
        if id(module) in by_module and fnmatch.fnmatchcase(name, pattern):
            first = by_module[id(module)].name
            return (
                f". {name!r} is the same module as {first!r}, used a second time: "
                f"one module has one rate, so name it {first!r}"
            )
    return ""


def _adjective(kind: str) -> str:
    """The kind as a word before "sites": ``"unit "``, ``"path "``, or nothing."""
    return "" if kind == "all" else f"{kind} "


def _listed(sites: list[Site]) -> str:
    """The names of some sites, at most six."""
    if not sites:
        return "there are none"
    return ", ".join(site.name for site in sites[:6]) + (", ..." if len(sites) > 6 else "")


def _nothing_to_drive(model: nn.Module, kind: str, sites: list[Site]) -> str:
    """The error for a model without a site to drive by default, with the remedies."""
    name = type(unwrap(model)).__name__
    build = {
        "unit": "for a timm model proj_drop_rate=, attn_drop_rate= or pos_drop_rate=; "
        "for your own nn.Dropout(p)",
        "path": "for a timm model drop_path_rate=; for a torchvision one stochastic_depth_prob=",
    }
    remedy = "; ".join(text for key, text in build.items() if kind in (key, "all"))
    if sites:
        return (
            f"all {len(sites)} {_adjective(kind)}sites of {name} were built with rate 0, so "
            f"nothing says which to drive: build the model with the peak rate ({remedy}), or "
            f"choose sites yourself: sites='*' drives all of them ({_listed(sites)})"
        )
    return (
        f"{name} has no {_adjective(kind)}site to drive (a layer built with rate 0 may be an "
        "nn.Identity, which can never drop): build the model with the peak rate "
        f"({remedy}).{_hints(model, kind)}"
    )


def _hints(model: nn.Module, kind: str) -> str:
    """Hints at sites of the other kind, doubtful sites and rates in tuples."""
    hints = ""
    kinds = sorted({site.kind for site in find_sites(model)})
    if kinds:
        hints += f" It has {kinds[0]} sites: kind={kinds[0]!r} drives those."
    doubtful = doubtful_left_out(model, kind, [])
    if doubtful:
        site = doubtful[0]
        hints += f" This may be a rate, {site.name}={site.base_rate:g}: "
        hints += f"sites={site.name!r} drives it."
    tuples = tuples_of_rates(model, kind)
    if tuples:
        hints += f" {tuples[0]} are rates in a tuple, which cannot be driven: "
        hints += "hold each in an attribute of the layer that it is for."
    return hints
