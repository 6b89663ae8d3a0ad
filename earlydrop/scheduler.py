"""`DropoutScheduler`: set the drop rates of a model by a schedule, step by step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

from torch import nn
from torch.optim import Optimizer

from earlydrop.schedules import Schedule, check_rate, check_step
from earlydrop.sites.audit.first_forward import FirstForward
from earlydrop.sites.bank import RateBank
from earlydrop.sites.choose import Kind, SiteChoice, choose_sites, doubtful_left_out
from earlydrop.sites.drive import drive, is_driven_by, release_all
from earlydrop.sites.find import Site, find_sites, tuples_of_rates
from earlydrop.sites.unwrap import renamed

Masks = Literal["native", "fast"]
MASKS: tuple[str, ...] = get_args(Masks)
STATE_KEY = "earlydrop"
"""The key of the attached schedulers' states in an optimizer's ``state_dict``."""


class DropoutScheduler:
    """Drive the drop rates of a model by a schedule.

    The rate of step 0 is set at once. Call `step` once after each optimizer step to set the rate of
    the next one; or `attach` an optimizer once, and its steps are counted.

    The base rate of a site is the rate that it was built with. Among the driven sites of a kind,
    one with the largest base rate gets the schedule's rate. Each other one gets
    schedule(step) · (its base rate / that largest base rate), so a profile over depth keeps its
    shape (Liu et al. 2023).
    The last value holds past the end of the schedule. For two peaks (dropout 0.1, stochastic depth
    0.5) put two schedulers on one model, one of each kind.

    Args:
        model: Any model. Its drop layers are driven in place; `restore` undoes that.
        schedule: A schedule in steps (see `earlydrop.early` and the others), or any function from
            the step to a rate in [0, 1).
        kind: ``"unit"`` (dropout), ``"path"`` (stochastic depth) or ``"all"``.
        sites: The sites of that kind to drive: None for those built with a rate above 0, or names,
            globs, sites of `earlydrop.find_sites` or a predicate ``(name, module) -> bool``. With
            None, up to three warnings may follow. The first names attributes that only look like a
            rate above 0 (see `earlydrop.find_sites`); they are not driven. The second names rates
            in tuples and lists, which cannot be driven. The third comes after the first training
            forward and names drops beside the driven sites; a compiled model is not watched.
            `earlydrop.audit` lists every drop.
        masks: ``"native"`` draws masks with torch's own kernels. ``"fast"`` draws the masks of
            nn.Dropout layers from 16-bit numbers, about three times as fast on a CPU. The
            distribution is the same, with the rate rounded to a multiple of 1/65,536; the random
            numbers differ. Use it in eager mode, or in compiled graphs on a CPU (torch 2.14 and
            later). With it, timm's attention uses its plain path instead of the fused kernel while
            its dropout is on.

    Raises:
        ValueError: The model is not a module, the schedule is unresolved or cannot be called, a
            rate is outside [0, 1), the kind or the masks are unknown, there is no site to drive,
            the sites mix base rates of 0 with others, or another scheduler drives a site. The model
            is left as it was.

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
            example = "earlydrop.early(0.1, cutoff=1_000)"
            raise ValueError(f"schedule is {schedule!r}: expected a schedule such as {example}")
        if masks not in MASKS:
            raise ValueError(f"masks is {masks!r}: expected 'native' or 'fast'")
        first = check_rate(schedule(0), "the schedule's rate at step 0")
        self.schedule = schedule
        self.sites = choose_sites(model, kind, sites)
        doubtful = doubtful_left_out(model, kind, self.sites) if sites is None else []
        _warn_of_doubtful(
            doubtful, model, kind
        )  # before the model is changed: a warning may be an error
        _warn_of_tuples(tuples_of_rates(model, kind) if sites is None else [])
        self._bank: RateBank | None = drive(model, self.sites, fast_masks=masks == "fast")
        self._bank.rises = first == 0 and _rises(schedule)
        self._model = model
        self._step = 0
        self._handles: list[Any] = []  # handles of the hooks on an attached optimizer
        self._bank.set(first)
        self._first_forward: FirstForward | None = None
        if sites is None:
            self._first_forward = FirstForward(
                model, kind, already_warned=[site.module for site in doubtful]
            )

    @property
    def last_rate(self) -> float:
        """The present rate of the schedule. The sites with the largest base rate have it."""
        return self._active_bank().value

    @property
    def rates(self) -> dict[str, float]:
        """The present rate of each driven site by name, read from the modules."""
        return {site.name: site.rate for site in self.sites}

    @property
    def last_step(self) -> int:
        """The optimizer step whose rate is set now, from 0."""
        return self._step

    def step(self) -> None:
        """Set the rate of the next optimizer step. Call it once after each ``optimizer.step()``.

        Raises:
            RuntimeError: After `restore`; or after `attach`, which counts the steps itself.
            ValueError: The schedule's rate is outside [0, 1). The rates stay as they were.
        """
        self._active_bank()
        if self._handles:
            raise RuntimeError(
                "this DropoutScheduler is attached to an optimizer, so it counts the steps itself: "
                "step() would count them twice. Remove the call of step(), or do not call attach()"
            )
        self.set_step(self._step + 1)

    def attach(self, optimizer: Optimizer) -> None:
        """Set the next rate after each step of an optimizer; the loop need not call `step`.

        A step that a ``GradScaler`` skips is not counted. The optimizer's ``state_dict`` carries
        the state of this scheduler, so a loop that saves and loads its optimizer resumes the rate
        too; `state_dict` works as before. Some wrappers call no hooks (timm's Lookahead,
        Accelerate's); then the steps of the optimizer inside the wrapper are counted. `restore`
        detaches.

        Args:
            optimizer: The optimizer. Of several, give the one that steps once per schedule step.

        Raises:
            RuntimeError: After `restore`, or when an optimizer is attached already.
            ValueError: ``optimizer`` is not a torch optimizer, or it calls no hooks and does not
                hold exactly one optimizer.

        >>> import earlydrop, torch
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> DropoutScheduler(model, earlydrop.late(rate=0.2, cutoff=1)).attach(optimizer)
        >>> optimizer.step()
        >>> model[1].p
        0.2
        """
        self._active_bank()
        if self._handles:
            raise RuntimeError(
                "this DropoutScheduler is attached to an optimizer already: "
                "its steps would be counted twice. Call attach() once, with the optimizer that "
                "steps once per schedule step"
            )
        self._handles = _register(optimizer, self._save_with, self._load_with, self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._drives() and not _skipped(optimizer):
            self.set_step(self._step + 1)

    # torch.compiler.disable() sets this attribute: the schedule is not compiled into a compiled
    # optimizer step.
    _after_step._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _save_with(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self._drives():
            state.setdefault(STATE_KEY, []).append(self.state_dict())

    def _load_with(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        saved = state.get(STATE_KEY)
        if not saved or not self._drives():
            return
        here = self._base_rates()
        matching = [entry for entry in saved if renamed(entry.get("base_rates", {}), here) == here]
        # A state of other sites is refused by load_state_dict, which names the site that differs.
        state_of_this = matching[0] if matching else saved[0]
        self.load_state_dict(state_of_this)

    def set_step(self, step: int) -> None:
        """Set the rate of a given optimizer step, for loops that count their steps.

        Args:
            step: The next optimizer step, from 0.

        Raises:
            RuntimeError: After `restore`.
            ValueError: The step is negative or not whole, or the schedule's rate is outside [0, 1).
                The rates stay as they were.
        """
        bank = self._active_bank()
        step = check_step(step)
        bank.set(check_rate(self.schedule(step), f"the schedule's rate at step {step}"))
        self._step = step

    def _drives(self) -> bool:
        return self._bank is not None and is_driven_by(self.sites[0], self._bank)

    def _active_bank(self) -> RateBank:
        if not self._drives():
            raise RuntimeError(
                "this DropoutScheduler was restored, or is a copy, and drives nothing: "
                "make a new one"
            )
        return cast(RateBank, self._bank)

    def _base_rates(self) -> dict[str, float]:
        bank = self._active_bank()
        return dict(zip(bank.names, bank.base_rates, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The state of the scheduler, for `load_state_dict`.

        Returns:
            Plain values, ``{"step": int, "base_rates": {name: rate}}``. The base rates of the sites
            identify the model.

        Raises:
            RuntimeError: After `restore`.
        """
        return {"step": self._step, "base_rates": self._base_rates()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: set its step and the rates of that step.

        Args:
            state: A state from `state_dict`.

        Raises:
            RuntimeError: After `restore`.
            ValueError: The state is malformed, or was saved for other sites or base rates.
        """
        try:
            step = state["step"]
            base_rates = dict(state["base_rates"])
        except (KeyError, TypeError, ValueError):
            expected = "expected what DropoutScheduler.state_dict() returned"
            raise ValueError(f"state is {state!r}: {expected}") from None
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            expected = "expected a number of optimizer steps, 0 or more"
            raise ValueError(f"step in the state is {step!r}: {expected}")
        own = self._base_rates()
        saved = renamed(base_rates, own)
        differing = sorted(
            name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name)
        )
        if differing:
            name = differing[0]
            raise ValueError(
                f"the state was saved for another model or choice of sites: site {name!r} had "
                f"{_base_rate(saved.get(name))} when it was saved and has "
                f"{_base_rate(own.get(name))} now ({len(differing)} sites differ). Build the model "
                "and the scheduler as they were when it was saved"
            )
        self.set_step(step)

    def restore(self) -> None:
        """Give each driven module its own class and base rate back, and detach the optimizer.

        Calling it again does nothing.
        """
        if self._bank is None:
            return
        while self._handles:
            self._handles.pop().remove()
        if self._first_forward is not None:
            self._first_forward.remove()
        bank, self._bank = self._bank, None
        release_all(self._model, bank)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy. A copy of a driven model is not driven, nor watched."""
        return self.__dict__ | {"_first_forward": None}

    def __repr__(self) -> str:
        return f"DropoutScheduler({self.schedule!r}, {len(self.sites)} sites, step {self._step})"


def _register(optimizer: object, save: Any, load: Any, step: Any) -> list[Any]:
    """Register hooks on an optimizer and return their handles.

    A wrapper that skips the constructor of torch's Optimizer calls no hooks. Then the optimizer
    inside it gets them.
    """
    current = optimizer
    while isinstance(current, Optimizer):
        try:
            saving = current.register_state_dict_post_hook(save)
        except AttributeError:  # the constructor of torch's Optimizer makes the lists of hooks
            inside = [value for value in vars(current).values() if isinstance(value, Optimizer)]
            if len(inside) != 1:
                raise ValueError(
                    f"optimizer is {type(optimizer).__name__}: its step() calls no hooks, so it "
                    "cannot be followed. Attach the optimizer that it holds, or call "
                    "scheduler.step() after each of its steps"
                ) from None
            current = inside[0]
        else:
            loading = current.register_load_state_dict_pre_hook(load)
            return [saving, loading, current.register_step_post_hook(step)]
    expected = "a torch.optim.Optimizer, such as torch.optim.AdamW(model.parameters())"
    raise ValueError(f"optimizer is {optimizer!r}: expected {expected}")


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler made a fused optimizer skip this step.

    A fused optimizer checks for overflow in its own kernel, so its ``step`` is called in any case.
    A GradScaler does not call ``step`` of any other optimizer after an overflow.
    """
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is not None and bool(overflow)


def _base_rate(rate: float | None) -> str:
    return "no base rate" if rate is None else f"base rate {rate}"


def _rises(schedule: Schedule | Callable[[int], float]) -> bool:
    """Whether a schedule with rate 0 at step 0 may rise.

    A `Schedule` may rise if its peak is above 0. Any other function is called at powers of 2.
    """
    if isinstance(schedule, Schedule):
        return schedule.peak > 0
    try:
        return any(schedule(2**power) > 0 for power in range(24))
    except Exception:  # the function fails at steps outside its run: treat it as not rising
        return False


_MOST_NAMED = 6  # sites that one warning names


def _warn_of_doubtful(sites: list[Site], model: nn.Module, kind: Kind) -> None:
    """Warn of attributes that look like a rate and are not driven."""
    if not sites:
        return
    named = sites[:_MOST_NAMED]
    listed = ", ".join(f"{_with_attribute(site)}={site.base_rate:g}" for site in named)
    more = ", ..." if len(sites) > _MOST_NAMED else ""
    warnings.warn(
        f"not driven, though it looks like a drop rate: {listed}{more}. To drive it together with "
        f"the default sites, give {_arguments_for(sites, model, kind)}. "
        "earlydrop.audit(model, inputs) shows whether it drops",
        stacklevel=3,
    )


def _arguments_for(doubtful: list[Site], model: nn.Module, kind: Kind) -> str:
    """The arguments of a scheduler that drives some doubtful sites and the default ones."""
    others = [site for site in find_sites(model) if site.base_rate > 0]
    of_kind = [site.name for site in others if kind in ("all", site.kind)]
    condition = "s.base_rate > 0"
    if len(of_kind) < len(others):
        condition += f" and s.kind == {kind!r}"
    same_kind = all(kind in ("all", site.kind) for site in doubtful)
    names = sorted({_pattern(site) for site in doubtful})
    try:
        choose_sites(model, kind if same_kind else "all", of_kind + names)
    except ValueError:  # a pattern also matches a rate of 0
        names = [site.name for site in doubtful]
    default = f"[s.name for s in earlydrop.find_sites(model) if {condition}]"
    return ("" if same_kind else "kind='all', ") + f"sites={default} + {names!r}"


def _warn_of_tuples(tuples: list[str]) -> None:
    """Warn of rates in tuples and lists, which cannot be driven."""
    if not tuples:
        return
    more = ", ..." if len(tuples) > _MOST_NAMED else ""
    warnings.warn(
        "rates in a tuple or a list cannot be driven: "
        f"{', '.join(tuples[:_MOST_NAMED])}{more}. Hold each rate in a float attribute of the "
        "layer that it is for, or build the model with rates of 0 there",
        stacklevel=3,
    )


def _with_attribute(site: Site) -> str:
    """The name of a site with its attribute."""
    has_attribute = site.plain or f".{site.name}".endswith(f".{site.attribute}")
    return site.name if has_attribute else f"{site.name}.{site.attribute}"


def _pattern(site: Site) -> str:
    """The pattern in ``sites=`` that drives a doubtful site.

    For a plain rate of a submodule, the pattern matches every attribute of that name. For any other
    site, the pattern is the name of the site.
    """
    if site.plain and "." in site.name:
        return f"*.{site.attribute}"
    return site.name
