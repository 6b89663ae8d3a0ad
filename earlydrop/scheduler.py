"""`DropoutScheduler`: a schedule driving the sites of a model, one call a step, or none behind `attach`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

from torch import nn
from torch.optim import Optimizer

from earlydrop.schedules import Schedule, check_rate
from earlydrop.sites.bank import RateBank
from earlydrop.sites.choose import Kind, SiteChoice, choose_sites, undrivable, undriven
from earlydrop.sites.drive import drive, is_driven_by, unlink_all
from earlydrop.sites.find import Site
from earlydrop.sites.first_forward import FirstForward
from earlydrop.sites.unwrap import renamed

Masks = Literal["native", "fast"]
MASKS: tuple[str, ...] = get_args(Masks)
SAVED = "earlydrop"
"""Where the state of attached schedulers stands in an optimizer's ``state_dict``."""


class DropoutScheduler:
    """Drive the drop rates of a model by a schedule.

    The rate of step 0 is set at once. Call `step` once after each optimizer step, or `attach` an optimizer once; that sets the next
    step's rate. Two peaks (dropout 0.1, stochastic depth 0.5) are two schedulers on one model, one of each kind. The largest site gets
    the schedule's rate; another gets schedule(step) · (its base rate / the largest base rate of its kind), so that a profile
    over depth keeps its shape (Liu et al. 2023). Past the schedule's end its last value holds.

    Args:
        model: Any model. Its drop layers are driven in place; `restore` undoes that.
        schedule: A schedule in steps (see `earlydrop.early` and the others), or any function from the step to a rate in [0, 1).
        kind: ``"unit"`` (dropout), ``"path"`` (stochastic depth) or ``"all"``.
        sites: Which sites of that kind: None for those that were built with a rate above 0, else names, globs or a predicate
            ``(name, module) -> bool``. What only looks like a rate above 0 (`earlydrop.find_sites` says what does) is not
            driven by default: a warning names it. By default the first training forward is
            watched too: what it drops beside the driven sites is warned of, once. A compiled
            model is not watched. `earlydrop.audit` tells all that a model drops.
        masks: ``"native"`` draws masks with torch's own kernels. ``"fast"`` draws those of nn.Dropout layers from 16-bit numbers, about
            three times as fast on a CPU: the same distribution with the rate rounded to 1/65,536, other random numbers. It is for eager
            mode, and for compiled graphs on a CPU (from torch 2.14 on). timm's fused attention then gives way to the plain path while
            its dropout is on.

    Raises:
        ValueError: An unresolved schedule, a rate outside [0, 1), an unknown kind or masks, no site to drive, a mixture of sites with
            and without a base rate, or a site that another scheduler drives. The model is then as it was.

    >>> import earlydrop
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    >>> scheduler = DropoutScheduler(model, earlydrop.early(rate=0.2, cutoff=3))
    >>> rates = [scheduler.last_rate]
    >>> for _ in range(3):
    ...     scheduler.step()
    ...     rates.append(model[1].p)
    >>> rates
    [0.2, 0.1, 0.0, 0.0]
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule | Callable[[int], float],
        kind: Kind = "unit",
        *,
        sites: SiteChoice | None = None,
        masks: Masks = "native",
    ) -> None:
        if not callable(schedule):
            raise ValueError(f"schedule is {schedule!r}: expected a schedule such as earlydrop.early(0.1, cutoff=1_000)")
        if masks not in MASKS:
            raise ValueError(f"masks is {masks!r}: expected 'native' or 'fast'")
        first = check_rate(schedule(0), "the schedule's rate at step 0")
        self.schedule = schedule
        self.sites = choose_sites(model, kind, sites)
        self._bank: RateBank | None = drive(model, self.sites, fast_masks=masks == "fast")
        self._bank.rises = first == 0 and _rises(schedule)
        self._model = model
        self._step = 0
        self._handles: list[Any] = []  # of the hooks on an attached optimizer
        self._bank.set(first)
        self._check: FirstForward | None = None
        if sites is None:
            left = undriven(model, kind, self.sites)
            _warn_of(left, undrivable(model, kind))
            self._check = FirstForward(model, kind, told=[site.module for site in left])

    @property
    def last_rate(self) -> float:
        """The schedule's rate that the sites have now: that of the largest site."""
        return self._driving().value

    @property
    def rates(self) -> dict[str, float]:
        """The present rate of each driven site by name, read from the modules."""
        return {site.name: site.rate for site in self.sites}

    @property
    def last_step(self) -> int:
        """The optimizer step whose rate is set."""
        return self._step

    def step(self) -> None:
        """Set the rate of the next optimizer step. Call it once after each ``optimizer.step()``.

        Raises:
            RuntimeError: After `restore`, or after `attach`, which counts the steps by itself.
            ValueError: The schedule's rate is outside [0, 1); the rates stay as they were.
        """
        self._driving()
        if self._handles:
            raise RuntimeError(
                "this DropoutScheduler is attached to an optimizer, whose steps it counts by itself: step() would count them "
                "twice. Remove the call of step(), or do not call attach()"
            )
        self.set_step(self._step + 1)

    def attach(self, optimizer: Optimizer) -> None:
        """Follow an optimizer, so that a loop needs no call of `step`: each step of the optimizer sets the next step's rate.

        A step that a ``GradScaler`` skips is not counted. The optimizer's ``state_dict`` carries this scheduler's state, so a
        loop that saves and loads its optimizer resumes the rate too; `state_dict` here works as ever. Where one optimizer
        holds another (timm's Lookahead, Accelerate's), the one inside is followed. `restore` detaches.

        Args:
            optimizer: The optimizer; of several, the one that steps once a step of the schedule.

        Raises:
            RuntimeError: After `restore`, or when an optimizer is attached already.
            ValueError: It is not a torch optimizer, or one without hooks.

        >>> import earlydrop, torch
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> DropoutScheduler(model, earlydrop.late(rate=0.2, cutoff=1)).attach(optimizer)
        >>> optimizer.step()
        >>> model[1].p
        0.2
        """
        self._driving()
        if self._handles:
            raise RuntimeError("this DropoutScheduler is attached to an optimizer already: its steps would be counted twice")
        self._handles = _register(optimizer, self._save_with, self._load_with, self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._drives() and not _skipped(optimizer):
            self.set_step(self._step + 1)

    # What torch.compiler.disable() would set: a compiled optimizer step leaves the schedule in Python.
    _after_step._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _save_with(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self._drives():
            state.setdefault(SAVED, []).append(self.state_dict())

    def _load_with(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        saved = state.get(SAVED)
        if not saved or not self._drives():
            return
        here = self._base_rates()
        ours = [each for each in saved if renamed(each.get("base_rates", {}), here) == here]
        self.load_state_dict((ours or saved)[0])  # of other sites: refused there, with the site that differs

    def set_step(self, step: int) -> None:
        """Set the rate of a given optimizer step, for loops that count the steps themselves.

        Args:
            step: The optimizer step that comes next, from 0.

        Raises:
            RuntimeError: After `restore`.
            ValueError: The schedule's rate there is outside [0, 1); the rates stay as they were.
        """
        bank = self._driving()
        bank.set(check_rate(self.schedule(step), f"the schedule's rate at step {step}"))
        self._step = step

    def _drives(self) -> bool:
        return self._bank is not None and is_driven_by(self.sites[0], self._bank)

    def _driving(self) -> RateBank:
        if not self._drives():
            raise RuntimeError("this DropoutScheduler was restored and drives nothing any more: make a new one")
        return cast(RateBank, self._bank)

    def _base_rates(self) -> dict[str, float]:
        bank = self._driving()
        return dict(zip(bank.names, bank.base_rates, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: the step, and the sites' base rates to recognise the model by.

        Returns:
            Plain values: ``{"step": int, "base_rates": {name: rate}}``.
        """
        return {"step": self._step, "base_rates": self._base_rates()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: the step, and with it the rates.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: The state is malformed, or was saved for other sites or base rates.
        """
        try:
            step, base_rates = state["step"], dict(state["base_rates"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"state is {state!r}: expected what DropoutScheduler.state_dict() returned") from None
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step in the state is {step!r}: expected a number of optimizer steps, 0 or more")
        here = self._base_rates()
        base_rates = renamed(base_rates, here)
        if here != base_rates:
            differing = sorted(n for n in here.keys() | base_rates.keys() if here.get(n) != base_rates.get(n))
            name = differing[0]
            raise ValueError(
                f"the state was saved for another model or choice of sites: site {name!r} had base rate {base_rates.get(name)} there and "
                f"has {here.get(name)} here ({len(differing)} differ). Build the model and the scheduler as they were when it was saved"
            )
        self.set_step(step)

    def restore(self) -> None:
        """Give the driven modules back: their own classes, with the rates that they were built with; and let go of an attached
        optimizer. Calling it again does nothing.
        """
        if self._bank is None:
            return
        while self._handles:
            self._handles.pop().remove()
        if self._check is not None:
            self._check.remove()
        bank, self._bank = self._bank, None
        unlink_all(self._model, bank)

    def __repr__(self) -> str:
        return f"DropoutScheduler({self.schedule!r}, {len(self.sites)} sites, step {self._step})"


def _register(optimizer: object, save: Any, load: Any, step: Any) -> list[Any]:
    """Register hooks on an optimizer, and return what removes them. A wrapper that was not made by torch's own constructor calls
    none, so the optimizer that it holds gets them.
    """
    found = optimizer
    while isinstance(found, Optimizer):
        try:
            saving = found.register_state_dict_post_hook(save)
        except AttributeError:  # torch's constructor makes the place for hooks
            inside = [value for value in vars(found).values() if isinstance(value, Optimizer)]
            if len(inside) != 1:
                raise ValueError(
                    f"optimizer is {type(optimizer).__name__}: its step() calls no hooks, so it cannot be followed. Attach the "
                    "optimizer that it holds, or call scheduler.step() after each of its steps"
                ) from None
            found = inside[0]
        else:
            return [saving, found.register_load_state_dict_pre_hook(load), found.register_step_post_hook(step)]
    raise ValueError(f"optimizer is {optimizer!r}: expected a torch.optim.Optimizer, such as torch.optim.AdamW(model.parameters())")


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler had a fused optimizer skip this step, which only its kernel knows; others are not called at all."""
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is not None and bool(overflow)


def _rises(schedule: Schedule | Callable[[int], float]) -> bool:
    """Whether a schedule that is off at step 0 is known to switch on: by its peak, or by some of its steps."""
    if isinstance(schedule, Schedule):
        return schedule.peak > 0
    try:
        return any(schedule(2**power) > 0 for power in range(24))
    except Exception:  # a function that knows the steps of its run alone: nothing is known, and nothing is refused
        return False


def _warn_of(named: list[Site], tuples: list[str]) -> None:
    if named:
        found = ", ".join(f"{_spelled(site)}={site.base_rate:g}" for site in named[:6]) + (", ..." if len(named) > 6 else "")
        patterns = sorted({_pattern(site) for site in named})
        warnings.warn(
            f"not driven, though it looks like a drop rate: {found}. sites= drives it by name, besides what is driven by default: "
            f"sites=[s.name for s in earlydrop.find_sites(model) if s.base_rate > 0] + {patterns!r}; "
            "earlydrop.audit(model, inputs) shows whether it drops",
            stacklevel=3,
        )
    if tuples:
        warnings.warn(
            f"not driven, since a rate in a tuple or a list cannot be: {', '.join(tuples[:6])}{', ...' if len(tuples) > 6 else ''}. "
            "Hold each rate in a float attribute of the layer that it is for, or build the model with rates of 0 there",
            stacklevel=3,
        )


def _spelled(site: Site) -> str:
    """A site's name with its attribute."""
    named = site.plain or f".{site.name}".endswith(f".{site.attribute}")
    return site.name if named else f"{site.name}.{site.attribute}"


def _pattern(site: Site) -> str:
    """What drives a site that has to be named: a plain rate together with those like it, a layer alone."""
    return f"*.{site.attribute}" if site.plain and "." in site.name else site.name
