"""The audit: every drop of a model in a training forward, and the drops that nothing drives."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from earlydrop.display import number, rows_as_html, rows_as_text
from earlydrop.sites.audit.watch import Draw, watch
from earlydrop.sites.choose import KINDS, Kind
from earlydrop.sites.drive import driven_at_base, sites_at_base
from earlydrop.sites.driven import rate_of
from earlydrop.sites.find import Site, all_rates, find_sites
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.sites.unwrap import named_modules, unwrap


@dataclass(frozen=True)
class Drop:
    """A drop, or another random draw, in a forward in training mode.

    Attributes:
        module: Dotted name of the innermost module that was running; ``""`` for the model itself.
        operation: The operation that drew: a function of torch.nn.functional, a kernel, or a
            function of ``random`` or ``numpy.random``.
        rate: The base rate of its site; without a site, the rate of the draw. None if it cannot be
            told.
        where: The line that called the operation.
        site: The name of the site behind it; None if there is none.
        status: ``"driven"``, ``"drivable"`` (a scheduler of this kind would drive it), ``"other
            kind"`` or ``"undriven"``.
        calls: Number of calls.
    """

    module: str
    operation: str
    rate: float | None
    where: str
    site: str | None
    status: str
    calls: int = 1


@dataclass(frozen=True, repr=False)
class Audit:
    """The result of `audit`. It prints as a table.

    Attributes:
        model: The class of the model.
        kind: The kind of the sites that were switched off.
        drops: All drops.
        scripted: Names of scripted modules, which no scheduler drives.
    """

    model: str
    kind: str
    drops: tuple[Drop, ...]
    scripted: tuple[str, ...] = ()

    @property
    def undriven(self) -> tuple[Drop, ...]:
        """The drops of this kind that remain in the second forward of `audit`."""
        return tuple(drop for drop in self.drops if drop.status == "undriven")

    def __str__(self) -> str:
        rows = _grouped(self.drops)
        table = [rows_as_text([_COLUMNS, *rows])] if rows else []
        return "\n".join([self._summary(), *table, *self._note_on_scripted()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self._note_on_scripted())
        return rows_as_html(_grouped(self.drops), _COLUMNS, self._summary()) + below

    def _summary(self) -> str:
        total = sum(drop.calls for drop in self.drops)
        undriven = sum(drop.calls for drop in self.undriven) or "none"
        return f"{self.model}, kind {self.kind!r}: {total} calls drop, {undriven} of them undriven"

    def _note_on_scripted(self) -> list[str]:
        if not self.scripted:
            return []
        return [f"scripted, so not driven even if they drop: {', '.join(self.scripted)}"]


def audit(model: nn.Module, inputs: Any, kind: Kind = "all") -> Audit:
    """List every drop of a model, and mark those that remain with every driven site off (ours).

    torch's dispatcher is watched during two forwards in training mode. The first is at the base
    rates. In the second, the driven sites of this kind are off; if no site of the model is driven,
    the sites of this kind that a scheduler would drive by default are off. A drop of the second
    forward is undriven. Random numbers that an operation uses without effect are left out
    (LayerDrop draws at rate 0 too). Noise other than dropout is listed.

    Afterwards all is as before: random state, modes, buffers, ``.grad`` and the scheduler's rates.
    Call it before or after a scheduler is made.

    Args:
        model: The model. Compiled and distributed wrappers are looked through.
        inputs: Its inputs: a tensor, a tuple of arguments, or a dictionary of keywords.
        kind: ``"unit"``, ``"path"`` or ``"all"``. Drops of the other kind are listed as such.

    Returns:
        The table. If its ``undriven`` is empty, a schedule at rate 0 turns all drops of the kind
        off.

    Raises:
        ValueError: The kind is unknown, or the model is not a module.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.drop, self.rate = nn.Dropout(0.1), 0.2
    ...     def forward(self, x):
    ...         return nn.functional.dropout(self.drop(x), self.rate, self.training)
    >>> report = audit(Net(), torch.ones(4))
    >>> [(drop.module, drop.operation, drop.rate, drop.status) for drop in report.drops]
    [('drop', 'dropout', 0.1, 'drivable'), ('', 'dropout', 0.2, 'undriven')]
    """
    if kind not in KINDS:
        expected = "expected 'unit' (dropout), 'path' (stochastic depth) or 'all'"
        raise ValueError(f"kind is {kind!r}: {expected}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    inner = unwrap(model)
    rates = list(all_rates(inner))
    sites = [site for site in rates if not site.doubtful or site.driven]
    driven = [site for site in sites if site.driven]
    off = driven or [site for site in sites if site.base_rate > 0]
    off = [site for site in off if kind in ("all", site.kind)]
    drops = _drops(
        inner,
        kind,
        rates=rates,
        off=off,
        at_base=_draws(inner, inputs, off=None),
        left=_draws(inner, inputs, off=off),
    )
    return Audit(type(inner).__name__, kind, drops, _scripted(inner))


def _scripted(model: nn.Module) -> tuple[str, ...]:
    """The names of the outermost scripted modules."""
    names = []
    for name, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            names.append(name)
    outermost = [name for name in names if name.rpartition(".")[0] not in names or name == ""]
    return tuple(name or type(model).__name__ for name in outermost)


def _draws(model: nn.Module, inputs: Any, off: list[Site] | None) -> list[Draw]:
    """The draws with an effect in one forward: at the base rates (None), or with sites off."""
    with ExitStack() as stack:
        stack.enter_context(leave_no_trace(model, inputs))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # A copy of a driven model holds the rates at which it was copied.
        sites = find_sites(model) if off is None else off
        stack.enter_context(sites_at_base(model, [site for site in sites if not site.driven]))
        if off is None:
            stack.enter_context(driven_at_base(model))
        rates = [rate_of(site.module, site.attribute) for site in off or ()]
        for bank in dict.fromkeys(rate.bank for rate in rates if rate is not None):
            stack.enter_context(bank.silenced())
        model.train()
        with watch(model) as seen:
            outputs = call(model, inputs)
        return seen.draws_with_effect(outputs)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of arguments, or a dictionary of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _key(draw: Draw) -> tuple[object, ...]:
    """Equal for draws of the same module, operation, line and rate."""
    rate = None if draw.rate is None else round(draw.rate, 6)
    return id(draw.module), draw.operation, draw.where, rate


def _drops(
    model: nn.Module,
    kind: str,
    rates: list[Site],
    off: list[Site],
    at_base: list[Draw],
    left: list[Draw],
) -> tuple[Drop, ...]:
    """The drops of two forwards, at the base rates and with sites off; equal draws are counted."""
    names = {id(module): name for name, module in named_modules(model)}
    sites = _by_module(site for site in rates if not site.doubtful or site.driven)
    doubtful = _by_module(site for site in rates if site.doubtful and not site.driven)
    still = {_key(draw) for draw in left}
    turned_off = "driven" if any(site.driven for site in off) else "drivable"
    # The larger count of the two forwards: LayerDrop may skip the calls of a layer.
    calls = Counter(map(_key, left)) | Counter(map(_key, at_base))
    drops = {}
    for draw in [*at_base, *left]:
        key = _key(draw)
        if key in drops:
            continue
        site = _site_of(draw, sites)
        if site in off and key in still:
            site = None  # that site is off, so the draw has another origin
        similar = site
        if site is None and draw.rate is not None:
            similar = _site_of(draw, doubtful)
        if kind not in ("all", _kind_of(draw, similar, kind)):
            status = "other kind"
        elif key in still:
            status = "undriven"
        elif site is None:
            status = turned_off
        elif site.driven:
            status = "driven"
        else:
            status = "drivable"
        rate = site.base_rate if site is not None else draw.rate
        drops[key] = Drop(
            module=names.get(id(draw.module), ""),
            operation=draw.operation,
            rate=None if rate is None else round(rate, 6),
            where=draw.where,
            site=site.name if site is not None else None,
            status=status,
            calls=calls[key],
        )
    return tuple(drops.values())


def _by_module(sites: Iterable[Site]) -> dict[int, list[Site]]:
    """Sites by the id of their module."""
    by_module: dict[int, list[Site]] = {}
    for site in sites:
        by_module.setdefault(id(site.module), []).append(site)
    return by_module


def _kind_of(draw: Draw, site: Site | None, asked: str) -> str:
    """The kind of a draw by its site or by its mask; the asked kind where neither tells it."""
    if site is not None:
        return site.kind
    return "unit" if draw.per_unit and draw.rate is not None else asked


def _site_of(draw: Draw, by_module: dict[int, list[Site]]) -> Site | None:
    """The site behind a draw.

    It is a site of the module that ran. If that module has none, it is a site of a layer directly
    inside, because the module may read the rate of that layer. Among several sites, it is the one
    whose base rate is the rate of the draw.
    """
    if draw.module is None:
        return None
    own = by_module.get(id(draw.module), [])
    candidates = own
    if not own:
        for child in draw.module.children():
            if not any(child.children()):
                candidates = [*candidates, *by_module.get(id(child), [])]
    candidates = [site for site in candidates if site.base_rate > 0] or candidates
    if draw.rate is None:  # the module drops a path by itself
        candidates = [site for site in candidates if site.kind == "path"] or candidates
        return candidates[0] if candidates else None
    for site in candidates:
        if abs(site.base_rate - draw.rate) < 1e-6:
            return site
    if own and len(candidates) == 1 and not candidates[0].plain:
        return candidates[0]  # a layer with a single rate may compute its drop rate from it
    return None


_COLUMNS = ("module", "drops by", "rate", "calls", "driven by", "line")


def _grouped(drops: tuple[Drop, ...]) -> list[tuple[str, ...]]:
    """The rows of the table. Drops that differ only in rate or in numbers in names share a row."""
    groups: dict[tuple[str, ...], list[Drop]] = {}
    for drop in drops:
        module = _starred(drop.module or "(model)")
        row = (module, drop.operation, _driven_by(drop), drop.where)
        groups.setdefault(row, []).append(drop)
    rows: list[tuple[str, ...]] = []
    for (module, operation, driven_by, where), group in groups.items():
        calls = str(sum(drop.calls for drop in group))
        rows.append((module, operation, _rates(group), calls, driven_by, where))
    return rows


def _starred(name: str) -> str:
    """A dotted name with a star for each number."""
    return re.sub(r"\b\d+\b", "*", name)


def _driven_by(drop: Drop) -> str:
    """The site that drives a drop, or that a scheduler would drive."""
    site = "another rate" if drop.site is None else _starred(drop.site or "(model)")
    if drop.status == "undriven":
        return "nothing"
    if drop.status == "drivable":
        return f"a scheduler would: {site}"
    if drop.status == "other kind":
        return "other kind" if drop.site is None else f"other kind: {site}"
    return site


def _rates(drops: list[Drop]) -> str:
    """The rates of one row: a single rate, or the lowest and the highest."""
    known = sorted({drop.rate for drop in drops if drop.rate is not None})
    if not known:
        return "?"
    if len(known) == 1:
        return number(known[0])
    return f"{number(known[0])} to {number(known[-1])}"
