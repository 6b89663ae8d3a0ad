"""`DropoutScheduler`: a schedule driving the sites of a model, one call a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from earlydrop.schedules import Schedule, check_rate
from earlydrop.sites.bank import RateBank
from earlydrop.sites.choose import SiteChoice, choose_sites, undrivable, undriven
from earlydrop.sites.drive import drive, is_driven_by, unlink_all
from earlydrop.sites.find import Site
from earlydrop.sites.unwrap import renamed

MASKS = ("native", "fast")


class DropoutScheduler:
    """Drive the drop rates of a model by a schedule.

    The rate of step 0 is set at once. Call `step` once after each optimizer step; it sets the next step's rate. The largest site gets
    the schedule's rate; another gets schedule(step) · (its base rate / the largest base rate of its kind), so that a profile
    over depth keeps its shape (Liu et al. 2023). Past the schedule's end its last value holds.

    Args:
        model: Any model. Its drop layers are driven in place; `restore` undoes that.
        schedule: A schedule in steps (see `earlydrop.early` and the others), or any function from the step to a rate in [0, 1).
        kind: ``"unit"`` (dropout), ``"path"`` (stochastic depth) or ``"all"``.
        sites: Which sites of that kind: None for those that were built with a rate above 0, else names, globs or a predicate
            ``(name, module) -> bool``. What only looks like a rate above 0 (`earlydrop.find_sites` says what does) is not
            driven by default: a warning names it. `earlydrop.audit` tells what a model drops.
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
        kind: str = "unit",
        *,
        sites: SiteChoice | None = None,
        masks: str = "native",
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
        self._bank.set(first)
        if sites is None:
            _warn_of(undriven(model, kind, self.sites), undrivable(model, kind))

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
            RuntimeError: After `restore`.
            ValueError: The schedule's rate is outside [0, 1); the rates stay as they were.
        """
        self.set_step(self._step + 1)

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

    def _driving(self) -> RateBank:
        if self._bank is None or not is_driven_by(self.sites[0], self._bank):
            raise RuntimeError("this DropoutScheduler was restored and drives nothing any more: make a new one")
        return self._bank

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: the step, and the sites' base rates to recognise the model by.

        Returns:
            Plain values: ``{"step": int, "base_rates": {name: rate}}``.
        """
        bank = self._driving()
        return {"step": self._step, "base_rates": dict(zip(bank.names, bank.base_rates, strict=True))}

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
        bank = self._driving()
        here = dict(zip(bank.names, bank.base_rates, strict=True))
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
        """Give the driven modules back: their own classes, with the rates that they were built with. Calling it again does nothing."""
        if self._bank is None:
            return
        bank, self._bank = self._bank, None
        unlink_all(self._model, bank)

    def __repr__(self) -> str:
        return f"DropoutScheduler({self.schedule!r}, {len(self.sites)} sites, step {self._step})"


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
