"""Watching what a model draws at random, at torch's dispatcher: whatever calls a dropout, and from wherever, passes there.

A drawn number need not matter: LayerDrop draws at rate 0 too. So each draw of plain random numbers is followed as extreme values in its
place: where every operation on them comes to the same result (``rand < 0`` is False for all of them), the draw drops nothing.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from earlydrop.sites.extremes import Drawn, extremes

_TORCH = str(Path(torch.__file__).parent)
_HERE = Path(__file__).parent
_DRIVERS = tuple(str(_HERE / name) for name in ("layers.py", "attention.py", "masks.py", "watch.py", "extremes.py"))
_CALLERS = tuple(str(_HERE.parent / name) for name in ("sites/audit.py", "gradients/probe.py", "classic/monte_carlo.py"))
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass
class Draw:
    """One draw of random numbers.

    Attributes:
        module: The innermost module that was running; None if no module of the model was.
        operation: The function that drew: of torch.nn.functional, or the kernel.
        where: The line outside torch that called it.
        rate: The rate that the operation was given, if it was given one.
        matters: Whether the result depends on what was drawn.
        followed: Whether something was computed from the numbers.
        elements: Whether the numbers of one sample differ, so that units are dropped and not the whole sample.
    """

    module: nn.Module | None
    operation: str
    where: str
    rate: float | None = None
    matters: bool = False
    followed: bool = False
    elements: bool = False


@dataclass
class _Followed:
    values: list[Tensor]
    draws: list[Draw] = field(default_factory=list)


class Watch(TorchDispatchMode):
    """Within it every draw of random numbers that passes torch's dispatcher in this thread is noted, scripted and C++ code included.

    Args:
        model: The model whose modules are told apart.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self.sources: set[str] = set()  # of random numbers, that something was seen to draw from
        self._modules = {id(module): module for module in model.modules()}
        self._followed: Any = WeakTensorKeyDictionary()
        self._following = True

    @contextmanager
    def unfollowed(self) -> Iterator[None]:
        """Within it operations on drawn numbers are not followed."""
        self._following = False
        try:
            yield
        finally:
            self._following = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # or torch imports its compiler to keep it out of here, which takes seconds
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        following = self._following and len(self._followed)
        followed = [tensor for tensor in _tensors((args, kwargs)) if tensor in self._followed] if following else []
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.sources.add("torch")
            for tensor in followed:
                self._matters(tensor)
            self._note(func, args, kwargs, result)
        elif followed:
            self._follow(func, args, kwargs, result, followed)
        return result

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        values = {argument.name: argument.default_value for argument in func._schema.arguments if argument.has_default_value()}
        values |= dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
        name = func._schema.name.rpartition("::")[2]
        drops, rate = _rate(name, values)
        if not drops:
            return
        draw = self.note(name.strip("_"), rate)
        draw.elements = any(size > 1 for tensor in _tensors(result) for size in tensor.shape[1:])
        values_of = extremes(name, values, result) if rate is None else None
        if values_of is None:
            draw.matters = True
        else:
            self._followed[result] = _Followed(values_of, [draw])

    def note(self, operation: str, rate: float | None = None) -> Draw:
        """Note a draw that happens now.

        Args:
            operation: What drew.
            rate: The rate that it was given.

        Returns:
            The draw, said to be without effect so far.
        """
        module, function, where = self._place(sys._getframe(1))
        draw = Draw(module, function or operation, where, rate)
        self.draws.append(draw)
        return draw

    def _follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, followed: list[Tensor]) -> None:
        """Do to the extreme values what was done to the numbers drawn."""
        draws = {id(draw): draw for tensor in followed for draw in self._followed[tensor].draws}.values()
        for draw in draws:
            draw.followed = True
        count = min(len(self._followed[tensor].values) for tensor in followed)

        def instead(index: int) -> Callable[[Any], Any]:
            return lambda x: self._followed[x].values[index] if isinstance(x, Tensor) and x in self._followed else x

        others = any(t.numel() > 1 and t not in self._followed for t in _tensors((args, kwargs)))
        comparison = func._schema.name.rpartition("::")[2].strip("_") in _COMPARISONS
        try:
            results = [func(*tree_map(instead(i), args), **tree_map(instead(i), dict(kwargs))) for i in range(count)]
        except Exception:  # an operation that some of the values do not allow: so they are told apart
            results = []
        if results and (comparison or not others) and all(_same(each, results[0]) for each in results):
            for tensor in _tensors(result):
                self._followed.pop(tensor, None)
        elif results and not others and isinstance(result, Tensor):
            self._followed[result] = _Followed(results, list(draws))
        elif results and not others and isinstance(result, (list, tuple)) and len(_tensors(result)) == len(result):
            # taken apart, as by a loop over them
            for each, values in zip(result, zip(*results, strict=True), strict=True):
                self._followed[each] = _Followed(list(values), list(draws))
        else:
            for draw in draws:
                draw.matters = True

    def read(self, tensor: Tensor, value: object) -> object:
        """What Python gets of a number drawn by torch: one that says when something depends on it.

        Args:
            tensor: The tensor that is read.
            value: What was read from it.

        Returns:
            The value, or a `Drawn` in its place.
        """
        if tensor not in self._followed:
            return value
        if type(value) is not float:
            self._matters(tensor)
            return value
        followed = self._followed[tensor]
        ends = [float(each) for each in followed.values]
        for draw in followed.draws:
            draw.followed = True
        return Drawn.of(value, min(ends), math.nextafter(max(ends), math.inf), lambda: self._matters(tensor))

    def _matters(self, tensor: Tensor) -> None:
        for draw in self._followed[tensor].draws:
            draw.matters = draw.followed = True

    def finish(self, outputs: object) -> list[Draw]:
        """What was drawn and made a difference.

        Args:
            outputs: What the model returned.

        Returns:
            The draws, in their order.
        """
        for tensor in _tensors(outputs):
            if tensor in self._followed:
                self._matters(tensor)
        return [draw for draw in self.draws if draw.matters or not draw.followed]

    def _place(self, frame: FrameType | None) -> tuple[nn.Module | None, str, str]:
        """The innermost module, torch's function and the line outside torch that a draw comes from."""
        module: nn.Module | None = None
        function = where = inner = ""
        while frame is not None and not frame.f_code.co_filename.startswith(_CALLERS):
            file = frame.f_code.co_filename
            if file.startswith(_TORCH):
                if not function and file.endswith(("nn/functional.py", "torch/functional.py")):
                    function = frame.f_code.co_name.strip("_")
                if not inner and "/nn/modules/" in file and not file.endswith("module.py"):
                    inner = _line(frame)
            elif not where and not file.startswith((*_DRIVERS, "<")):
                where = _line(frame)
            if module is None:
                module = self._modules.get(id(frame.f_locals.get("self")))
            if module is not None and where:
                break
            frame = frame.f_back
        return module, function, where or inner


class _Reading(TorchFunctionMode):
    """Within it what Python reads out of tensors passes by a `Watch`: the dispatcher does not see what becomes of it."""

    def __init__(self, seen: Watch) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.item, Tensor.tolist, Tensor.numpy):
            return func(*args, **(kwargs or {}))
        with self._seen.unfollowed():
            value = func(*args, **(kwargs or {}))
        return self._seen.read(args[0], value)


def _line(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    return f"{file.rpartition('site-packages/')[2] if 'site-packages/' in file else Path(file).name}:{frame.f_lineno}"


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(_plain(tree))[0] if isinstance(leaf, Tensor)]


def _plain(value: Any) -> Any:
    """Structured outputs that are no registered tree as dictionaries."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name, None)) for name in value.__dataclass_fields__}
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _rate(name: str, values: Mapping[str, Any]) -> tuple[bool, float | None]:
    """Whether a random operation draws anything, and the rate that it was given."""
    if values.get("train") is False or values.get("training") is False:
        return False, None
    if name.startswith("bernoulli"):
        p = values["self"] if values.get("p") is None else values["p"]
        if isinstance(p, Tensor):
            return bool(((p > 0) & (p < 1)).any()), None if p.numel() != 1 else 1.0 - float(p)
        return 0 < p < 1, 1.0 - p
    rate = next((values[key] for key in ("dropout_p", "dropout") if isinstance(values.get(key), float)), None)
    if rate is None and "dropout" in name and isinstance(values.get("p"), float):
        rate = 1.0 - values["p"] if name == "_fused_dropout" else values["p"]
    return rate is None or rate > 0, rate


@contextmanager
def watch(model: nn.Module) -> Iterator[Watch]:
    """Within it what the model draws at random is noted: by torch, by Python's ``random`` and by NumPy.

    Args:
        model: The model.

    Yields:
        The watch; ask its `Watch.finish` afterwards.
    """
    seen = Watch(model)
    numpy_random = sys.modules.get("numpy.random")
    before = [read() for _, read in _states()]
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # compiled parts run as they were written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_watched_functions(random, random._inst, seen))  # type: ignore[attr-defined]
        if numpy_random is not None:
            stack.enter_context(_watched_functions(numpy_random, numpy_random.mtrand._rand, seen))
        stack.enter_context(seen)
        stack.enter_context(_Reading(seen))
        yield seen
    for (source, read), state in zip(_states(), before, strict=True):
        if source not in seen.sources and not _same(read(), state):
            seen.draws.append(Draw(None, f"{source} (unseen)", "somewhere", matters=True))


def _states() -> list[tuple[str, Callable[[], Any]]]:
    states: list[tuple[str, Callable[[], Any]]] = [("torch", torch.get_rng_state), ("random", random.getstate)]
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        states.append(("numpy.random", lambda: [numpy_random.get_state()[1].tolist(), numpy_random.get_state()[2]]))
    return states


@contextmanager
def _watched_functions(library: Any, generator: object, seen: Watch) -> Iterator[None]:
    """Within it the functions of ``random`` or ``numpy.random`` note that they draw."""
    names = [name for name in dir(library) if getattr(getattr(library, name), "__self__", None) is generator]
    real = {
        name: getattr(library, name) for name in names if name not in ("seed", "getstate", "setstate", "get_state", "set_state")
    }

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            seen.sources.add(library.__name__)
            noted = seen.note(f"{library.__name__}.{name}")
            noted.followed = True
            if type(value) is float and name in ("random", "uniform", "rand", "random_sample"):
                low, high = (*args, 0.0, 1.0)[:2] if name == "uniform" and len(args) == 2 else (0.0, 1.0)
                return Drawn.of(value, float(low), float(high), lambda: setattr(noted, "matters", True))
            noted.matters = True
            return value

        return draw

    try:
        for name, function in real.items():
            setattr(library, name, watched(name, function))
        yield
    finally:
        for name, function in real.items():
            setattr(library, name, function)
