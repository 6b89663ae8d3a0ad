"""The audit: what a model really drops, and what of it no scheduler drives."""

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
from earlydrop.sites.choose import KINDS, Kind
from earlydrop.sites.drive import sites_at_base
from earlydrop.sites.find import Site, all_rates, find_sites
from earlydrop.sites.link import banks_of, rate_of
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.sites.unwrap import named_modules, unwrap
from earlydrop.sites.watch import Draw, watch


@dataclass(frozen=True)
class Drop:
    """Something that a model drops, or draws at random, in a forward in training mode.

    Attributes:
        module: Dotted name of the innermost module that was running; ``""`` for the model itself.
        operation: What dropped: a function of torch.nn.functional, a kernel, or a function of ``random`` or ``numpy.random``.
        rate: Its rate at the rates that the model was built with; None where it has none that can be told.
        where: The line that called it.
        site: The name of the site behind it; None if there is none.
        status: ``"driven"``, ``"drivable"`` (a scheduler of this kind would drive it), ``"other kind"`` or ``"undriven"``.
        calls: How often it was called.
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
    """What `audit` found. It prints as a table.

    Attributes:
        model: The model's class.
        kind: The kind of sites that were switched off.
        drops: All that drops.
        scripted: Names of scripted modules, which no scheduler drives.
    """

    model: str
    kind: str
    drops: tuple[Drop, ...]
    scripted: tuple[str, ...] = ()

    @property
    def undriven(self) -> tuple[Drop, ...]:
        """What still drops with every site of the kind off."""
        return tuple(drop for drop in self.drops if drop.status == "undriven")

    def __str__(self) -> str:
        rows = _grouped(self.drops)
        lines = [self._counted(), *([rows_as_text([_COLUMNS, *rows])] if rows else []), *self._said_of_scripted()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self._said_of_scripted())
        return rows_as_html(_grouped(self.drops), _COLUMNS, self._counted()) + below

    def _counted(self) -> str:
        total, left = sum(drop.calls for drop in self.drops), sum(drop.calls for drop in self.undriven)
        return f"{self.model}, kind {self.kind!r}: {total} calls drop, {left or 'none'} of them undriven"

    def _said_of_scripted(self) -> list[str]:
        return [f"scripted, so not driven whatever they hold: {', '.join(self.scripted)}"] if self.scripted else []


def audit(model: nn.Module, inputs: Any, kind: Kind = "all") -> Audit:
    """Find out what a model drops, whoever calls the dropout, and what of it is left when every driven site is off (ours).

    Two forwards in training mode are watched at torch's dispatcher: one at the rates that the model was built with, and one with every
    site off that a scheduler of this kind drives, or, where none does yet, would drive by default. What still drops is undriven.
    Random numbers that make no difference (LayerDrop draws at rate 0 too) do not count; noise that is no dropout does.

    Nothing is left behind: random state, modes, buffers, ``.grad`` and the scheduler's rates are as before. Call it before or
    after a scheduler is made.

    Args:
        model: The model. Compiled and distributed wrappers are looked through.
        inputs: What the model takes: a tensor, a tuple of arguments, or a dictionary of keywords.
        kind: ``"unit"``, ``"path"`` or ``"all"``. What sites of the other kind drop is listed apart.

    Returns:
        The table; its ``undriven`` is empty where a schedule at rate 0 means no dropout.

    Raises:
        ValueError: An unknown kind, or a model that is no module.

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
        raise ValueError(f"kind is {kind!r}: expected 'unit' (dropout), 'path' (stochastic depth) or 'all'")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: expected a torch.nn.Module")
    inner = unwrap(model)
    every = list(all_rates(inner))
    sites = [site for site in every if not site.doubtful or site.driven]
    driven = [site for site in sites if site.driven]
    off = driven or [site for site in sites if site.base_rate > 0]
    off = [site for site in off if kind in ("all", site.kind)]
    built, left = _run(inner, inputs, None), _run(inner, inputs, off)
    rows = _rows(inner, kind, every, off, built, left)
    scripted = [name for name, module in named_modules(inner) if isinstance(module, torch.jit.ScriptModule)]
    outermost = [name for name in scripted if name.rpartition(".")[0] not in scripted or name == ""]
    return Audit(type(inner).__name__, kind, rows, tuple(name or type(inner).__name__ for name in outermost))


def _run(model: nn.Module, inputs: Any, off: list[Site] | None) -> list[Draw]:
    """What makes a difference in one forward: at the base rates (None), or with some sites off."""
    with ExitStack() as stack:
        stack.enter_context(leave_no_trace(model, inputs))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        banks = {id(bank): bank for module in model.modules() for bank in banks_of(module)}
        if off is None:
            for bank in banks.values():
                stack.enter_context(bank.at_base_rates())
            undriven = [site for site in find_sites(model) if not site.driven]
            if undriven:  # a copy of a driven model has the rates of the moment
                stack.enter_context(sites_at_base(model, undriven))
        else:
            undriven = [site for site in off if not site.driven]
            if undriven:
                bank = stack.enter_context(sites_at_base(model, undriven))
                stack.enter_context(bank.silenced())
            for rate in {id(rate.bank): rate for site in off if (rate := rate_of(site.module, site.attribute))}.values():
                stack.enter_context(rate.bank.silenced())
        model.train()
        with watch(model) as seen:
            outputs = call(model, inputs)
        return seen.finish(outputs)


def call(model: nn.Module, inputs: Any) -> Any:
    """A forward of a tensor, a tuple of arguments, or a dictionary of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _rows(model: nn.Module, kind: str, sites: list[Site], off: list[Site], built: list[Draw], left: list[Draw]) -> tuple[Drop, ...]:
    names = {id(module): name for name, module in named_modules(model)}
    certain = _by_module(site for site in sites if not site.doubtful or site.driven)
    doubtful = _by_module(site for site in sites if site.doubtful and not site.driven)

    def key(draw: Draw) -> tuple[object, ...]:
        return id(draw.module), draw.operation, draw.where, None if draw.rate is None else round(draw.rate, 6)

    still = {key(draw) for draw in left}
    calls = Counter(map(key, left)) | Counter(map(key, built))  # the larger of the two: LayerDrop may skip what calls
    rows = {}
    for draw in [*built, *left]:
        if key(draw) not in rows:
            site = _site_of(draw, certain)
            if site in off and key(draw) in still:
                site = None  # it is off: this is something else
            status = "undriven" if key(draw) in still else "driven" if site is None or site.driven else "drivable"
            named = _site_of(draw, doubtful) if site is None and draw.rate is not None else site
            if kind not in ("all", _kind_of(draw, named, kind)):
                status = "other kind"
            rate = site.base_rate if site is not None and draw.rate is None else draw.rate
            rows[key(draw)] = Drop(
                names.get(id(draw.module), ""),
                draw.operation,
                None if rate is None else round(rate, 6),
                draw.where,
                site.name if site is not None else None,
                status,
                calls[key(draw)],
            )
    return tuple(rows.values())


def _by_module(sites: Iterable[Site]) -> dict[int, list[Site]]:
    found: dict[int, list[Site]] = {}
    for site in sites:
        found.setdefault(id(site.module), []).append(site)
    return found


def _kind_of(draw: Draw, site: Site | None, asked: str) -> str:
    """The kind of what was dropped, where its site or the mask tells it; else that which was asked for."""
    if site is not None:
        return site.kind
    return "unit" if draw.elements and draw.rate is not None else asked


def _site_of(draw: Draw, by_module: dict[int, list[Site]]) -> Site | None:
    """The site behind a draw: of the module that ran, or of one inside, whose rate it reads; the one at the draw's rate first."""
    if draw.module is None:
        return None
    own = by_module.get(id(draw.module), [])
    near = own or [site for child in draw.module.children() if not any(child.children()) for site in by_module.get(id(child), [])]
    near = [site for site in near if site.base_rate > 0] or near
    if draw.rate is None:  # a path that is dropped by hand
        near = [site for site in near if site.kind == "path"] or near
        return near[0] if near else None
    only = near[0] if own and len(near) == 1 and not near[0].plain else None  # a rate that a layer computes from its own
    return next((site for site in near if abs(site.base_rate - draw.rate) < 1e-6), only)


_COLUMNS = ("module", "drops by", "rate", "calls", "driven by", "line")
_OF = {"undriven": "nothing", "driven": "{}", "drivable": "a scheduler would: {}", "other kind": "other kind: {}"}


def _grouped(drops: tuple[Drop, ...]) -> list[tuple[str, ...]]:
    """The table's rows: those that differ in their rates, and in the numbers of their names, as one."""
    groups: dict[tuple[str, ...], list[Drop]] = {}
    for drop in drops:
        module, site = (re.sub(r"\b\d+\b", "*", name) for name in (drop.module or "(model)", drop.site or "a rate above it"))
        by = "other kind" if drop.status == "other kind" and drop.site is None else _OF[drop.status].format(site)
        groups.setdefault((module, drop.operation, by, drop.where), []).append(drop)
    return [
        (module, operation, _rates(found), str(sum(drop.calls for drop in found)), by, where)
        for (module, operation, by, where), found in groups.items()
    ]


def _rates(drops: list[Drop]) -> str:
    """The rates of one row: one, or from the lowest to the highest."""
    known = sorted({drop.rate for drop in drops if drop.rate is not None})
    if not known:
        return "?"
    return number(known[0]) if len(known) == 1 else f"{number(known[0])} to {number(known[-1])}"
