"""Watch the first training forward of a scheduled model for drops that no scheduler drives.

`find_sites` recognises a drop rate by the class and the attribute that hold it. A rate elsewhere
(``self.amount``, a number in the forward) shows only when a forward uses it. So the first training
forward of a scheduled model is watched, unless the scheduler was given ``sites=`` or the model is
compiled. A warning names the drops that no scheduler drives. `earlydrop.audit` sees more (custom
kernels, draws of plain random numbers), but needs inputs.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import warnings
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from earlydrop.sites.driven import COPIED_HOOKS, LINK, Link, is_scheduled
from earlydrop.sites.find import all_rates
from earlydrop.sites.unwrap import named_modules, unwrap

_TORCH = str(Path(torch.__file__).parent) + os.sep  # ends so that torchvision's does not match
# Parameters of built-in functions, which have no signature.
_PARAMETERS = {
    **dict.fromkeys(
        (
            "dropout",
            "dropout_",
            "feature_dropout",
            "feature_dropout_",
            "alpha_dropout",
            "alpha_dropout_",
            "feature_alpha_dropout",
            "feature_alpha_dropout_",
            "native_dropout",
        ),
        ("input", "p", "train"),
    ),
    "bernoulli": ("input", "p"),
    "bernoulli_": ("input", "p"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p"),
}
_DROPPING = {*_PARAMETERS, "dropout1d", "dropout2d", "dropout3d", "multi_head_attention_forward"}
"""The names of the functions that drop."""
_MOST_NAMED = 6  # drops that one warning names


def _sentence(module: str, operation: str, rate: float | None, where: str) -> str:
    """A drop in words; ``rate`` is None where the keep probabilities were a tensor."""
    at = "" if rate is None else f" at rate {rate:g}"
    if rate is not None and operation.startswith("bernoulli"):
        at = f" with probability {1 - rate:g}"
    caller = f"module {module}" if module else "the model itself"
    return f"{caller} calls {operation}{at} ({where})"


class FirstForward:
    """Watch the first training forward of a model and warn of drops that no scheduler drives.

    Args:
        model: A model with driven sites.
        kind: ``"unit"``, ``"path"`` or ``"all"``. Drops of the other kind are not warned of; drops
            of an unknown kind are.
        already_warned: Modules that the scheduler has already warned of.
    """

    def __init__(
        self, model: nn.Module, kind: str, already_warned: Sequence[nn.Module] = ()
    ) -> None:
        root = unwrap(model)
        self._kind = kind
        self._already_warned = {id(module) for module in already_warned}
        self.root = weakref.ref(root)
        # Whether a forward was watched. The hooks are removed at the next forward: torch is still
        # going through them at the end of this one.
        self._done = False
        self._watching: _Watching | None = None
        self._hooks = [
            root.register_forward_pre_hook(_Hook(self, "begin")),
            root.register_forward_hook(_Hook(self, "end"), always_call=True),
        ]

    def remove(self) -> None:
        """Stop waiting for the first training forward. Calling it again does nothing."""
        _end_interrupted()
        while self._hooks:
            self._hooks.pop().remove()

    def begin(self, module: nn.Module) -> None:
        """Start watching before the first training forward of the model."""
        if module is not self.root():
            return  # a replica of DataParallel
        _end_interrupted()
        if self._watching is not None and self._watching.is_running():
            return  # a forward inside the forward
        if self._done or not any(map(is_scheduled, module.modules())):
            self.remove()
        elif module.training and not _is_traced_or_compiled(module):
            # 2: the function of torch that calls this hook and then the forward
            self._watching = _Watching(module, sys._getframe(2))
            self._watching.__enter__()

    def end(self, module: nn.Module) -> None:
        """Stop watching after the forward, even if it raised an `Exception`.

        torch calls no hook after Ctrl-C. Then the next watched forward or `remove` stops it.
        """
        if self._watching is None or module is not self.root():
            return
        watching, self._watching = self._watching, None
        watching.__exit__(None, None, None)
        self._done = True
        undriven = []
        for drop, drop_module, kind in watching.drops:
            if id(drop_module) in self._already_warned:
                continue
            if self._kind in ("all", kind) or kind == "":
                undriven.append(drop)
        if undriven:
            _warn(list(dict.fromkeys(undriven)))


class _Hook:
    """A hook on the model.

    A copy of the model does not get it. A pickle gets a function that does nothing.
    """

    def __init__(self, check: FirstForward, event: str) -> None:
        self._check = check
        self._event = event

    def __call__(self, module: nn.Module, *inputs_and_outputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        getattr(self._check, self._event)(module)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        root = self._check.root()
        if root is not None:
            for hooks in (root._forward_pre_hooks, root._forward_hooks):
                copied = memo.get(id(hooks), {})
                keys = [key for key, hook in hooks.items() if hook is self]
                memo.setdefault(COPIED_HOOKS, []).extend((copied, key) for key in keys)
        # The copy gets this placeholder. The `__deepcopy__` of a driven module, which is copied
        # later, removes the placeholder.
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> Any:  # standard library only: the pickle loads without earlydrop
        return getattr, (contextlib.nullcontext(), "__exit__")


class _Watching(TorchFunctionMode):
    """Context that records the drops that Python calls during a forward at a rate above 0.

    Args:
        model: The model.
        call: The frame of the forward's call.
    """

    def __init__(self, model: nn.Module, call: FrameType) -> None:
        super().__init__()
        self._call = call
        self.drops: list[tuple[str, nn.Module, str]] = []  # in words, its module and kind
        self._names = {id(module): name for name, module in named_modules(model)}
        self._modules = {id(module): module for module in model.modules()}
        sites = [site for site in all_rates(model) if site.driven and not site.plain]
        self._driven_layers = {id(site.module) for site in sites}

    def is_running(self) -> bool:
        """Whether the forward has not ended yet."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame is not self._call:
            frame = frame.f_back
        return frame is not None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DROPPING:
            drops, rate = _drops(func, args, kwargs)
            if drops:
                self._note(func, rate, args[0] if args else None, sys._getframe(1))
        return func(*args, **kwargs)

    def _note(self, func: Any, rate: float | None, values: object, frame: FrameType) -> None:
        module, where = self._place(frame)
        if module is None or id(module) in self._driven_layers or _is_driven_at(module, rate):
            return
        # The probability of bernoulli can be that of dropping.
        is_mask = func.__name__.startswith("bernoulli")
        if is_mask and rate is not None and _is_driven_at(module, 1.0 - rate):
            return
        name = self._names.get(id(module), "")
        sentence = _sentence(name, func.__name__.strip("_"), rate, where)
        self.drops.append((sentence, module, _kind(func, values)))

    def _place(self, start: FrameType) -> tuple[nn.Module | None, str]:
        """The innermost module that is running, and the line outside torch that made the call."""
        frame: FrameType | None = start
        module: nn.Module | None = None
        where = ""
        while frame is not None and (module is None or not where):
            file = frame.f_code.co_filename
            # "<eval_with_key>": code that torch.fx generated
            if not where and not file.startswith((_TORCH, "<eval_with_key>", __file__)):
                where = f"{Path(file).name}:{frame.f_lineno}"
            if module is None:  # a method of a module has the module as `self`
                module = self._modules.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        return module, where or "inside torch"


@cache
def _parameters(func: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # a built-in function
        return _PARAMETERS.get(func.__name__, ())


def _drops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bool, float | None]:
    """Whether a call drops anything, and its rate; None if the rate is not a single number."""
    names = _parameters(func)
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if func.__name__.startswith("bernoulli"):
        return _bernoulli(func, given)
    if given.get("training") is False or given.get("train") is False:
        return False, None
    try:  # a tensor with one number is a rate, too
        rate = float(given.get("dropout_p" if "dropout_p" in names else "p", 0.0))
    except (TypeError, ValueError, RuntimeError):  # the call itself raises an error for it
        return False, None
    return rate > 0, rate


def _bernoulli(func: Any, given: Mapping[str, Any]) -> tuple[bool, float | None]:
    """`_drops` for ``bernoulli(tensor)`` and ``bernoulli_(p)``.

    The probability of a 1 is taken as that of keeping.
    """
    if "p" in given:
        keep = given["p"]
    elif func.__name__ == "bernoulli_":
        keep = 0.5
    else:
        keep = given.get("input")
    if isinstance(keep, int | float):
        return 0 < keep < 1, 1.0 - keep
    if isinstance(keep, Tensor) and type(keep) in (Tensor, nn.Parameter):
        return bool(((keep > 0) & (keep < 1)).any()), None
    return False, None


def _is_driven_at(module: nn.Module, rate: float | None) -> bool:
    """Whether a call at this rate is driven: the rate is one of the module's driven rates.

    A call whose rate is not a single number counts as driven in every driven module.
    """
    link: Link | None = module.__dict__.get(LINK)
    if link is None:
        return False
    if rate is None:
        return True
    return any(abs(driven.bank.rate(driven.place) - rate) < 1e-6 for driven in link.all_rates)


def _kind(func: Any, values: object) -> str:
    """``"unit"``, or ``"path"`` for one draw per sample; ``""`` if the kind is unknown."""
    is_mask = func.__name__.startswith("bernoulli")
    if not isinstance(values, Tensor) or values.dim() == 0:
        return "" if is_mask else "unit"
    if values.numel() != values.shape[0]:
        return "unit"
    # One draw per sample. A dropout layer of one feature draws as many.
    return "path" if is_mask else ""


def _end_interrupted() -> None:
    """End each watch whose forward ended without a hook, as after Ctrl-C."""
    while isinstance(watching := _get_current_function_mode(), _Watching):
        if watching.is_running():
            return
        watching.__exit__(None, None, None)


def _is_traced_or_compiled(model: nn.Module) -> bool:
    """Whether this forward is traced, transformed or compiled, so that no watch may be added."""
    if torch._C._is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch._C._len_torch_dispatch_stack() > 0:  # fake tensors, counters
        return True
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return True
    return any(_compiled(module) for module in model.modules())


def _compiled(module: nn.Module) -> bool:
    return hasattr(module, "_torchdynamo_orig_callable") or (
        module.__dict__.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules
    )


def _warn(undriven: list[str]) -> None:
    more = "; ..." if len(undriven) > _MOST_NAMED else ""
    listed = "; ".join(undriven[:_MOST_NAMED]) + more
    warnings.warn(
        f"the model has drops that no scheduler drives: {listed}. The schedule does not change "
        "their rates. Use a drop layer there (nn.Dropout, or DropPath of timm for stochastic "
        "depth), or hold the rate in an attribute called dropout or drop_rate and name it in "
        "sites=. earlydrop.audit(model, inputs) lists every drop",
        # Above: end, the hook, and three functions of torch.nn.Module.
        stacklevel=7,
    )
