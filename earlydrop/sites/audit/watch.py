"""Watch the random draws of a model at torch's dispatcher, which every call of a dropout passes.

A drawn number may have no effect. The LayerDrop of OmniASR (transformers) draws ``torch.rand([])``
at every layer, also at rate 0, and skips the layer if the number is below the rate. So each draw of
plain random numbers is followed: each operation on them is repeated with extreme values in their
place (`earlydrop.sites.audit.extremes`). If all results are equal (``rand < 0`` is False for each),
the draw drops nothing. Without this, the audit would list drops of OmniASR at rate 0, and `probe`
would refuse the model.

The module and the line of a draw are read from the Python stack, the only place that has the line.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from earlydrop.sites.audit.extremes import extremes
from earlydrop.sites.audit.python_draws import Drawn, noted, random_states

_TORCH = str(Path(torch.__file__).parent) + os.sep  # without torchvision
_PACKAGE = Path(__file__).parents[2]
# Files of ours between a draw and the line that calls it.
_BETWEEN = tuple(
    str(_PACKAGE / "sites" / file)
    for file in ("layers.py", "guards.py", "masks.py", "audit/watch.py", "audit/python_draws.py")
)
# Files of ours that call the model.
_CALLERS = tuple(
    str(_PACKAGE / file)
    for file in ("sites/audit/report.py", "gradients/probe.py", "classic/monte_carlo.py")
)
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass
class Draw:
    """One draw of random numbers.

    Attributes:
        module: The innermost module that was running; None if no module of the model was.
        operation: The function of torch, ``random`` or ``numpy.random`` that drew, or the kernel.
        where: The line outside torch that called the operation; if there is none, the line in
            torch.nn.
        rate: The rate given to the operation; None if there was none.
        matters: Whether a result depends on the numbers.
        used: Whether an operation used the numbers.
        per_unit: Whether the numbers differ within a sample, so that units and not whole samples
            are dropped.
    """

    module: nn.Module | None
    operation: str
    where: str
    rate: float | None = None
    matters: bool = False
    used: bool = False
    per_unit: bool = False


class _Call(NamedTuple):
    """A call of an operation, with its result."""

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any


@dataclass
class _Extremes:
    """The extreme values in the place of a tensor, and the draws behind it."""

    values: list[Tensor]
    draws: list[Draw] = field(default_factory=list)


class Watch(TorchDispatchMode):
    """Context that notes each random draw in torch's dispatcher in this thread.

    A draw that drops nothing by its rate, such as a bernoulli draw with p = 1, is left out.

    Draws of scripted and C++ code pass the dispatcher too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self.sources: set[str] = set()  # libraries whose random operations were seen
        self._modules = {id(module): module for module in model.modules()}
        self._extremes_of: Any = WeakTensorKeyDictionary()
        self._enabled = True

    @contextmanager
    def unfollowed(self) -> Iterator[None]:
        """Within it, operations on drawn numbers are not followed."""
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, which takes seconds.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        drawn = []
        if self._enabled and len(self._extremes_of):
            drawn = [tensor for tensor in _tensors((args, kwargs)) if tensor in self._extremes_of]
        result = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.sources.add("torch")
            for tensor in drawn:  # drawn numbers that are arguments of another draw matter
                self._mark_as_mattering(tensor)
            self._note_operation(func, args, kwargs, result)
        elif drawn:
            self._follow(_Call(func, args, kwargs, result), drawn)
        return result

    def _note_operation(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Note a random operation, and follow its numbers if it was given no rate."""
        name = func._schema.name.rpartition("::")[2]
        values = _arguments(func, args, kwargs)
        drops, rate = _drops_and_rate(name, values)
        if not drops:
            return
        draw = self.note(name.strip("_"), rate)
        draw.per_unit = any(max(tensor.shape[1:], default=1) > 1 for tensor in _tensors(result))
        extreme_values = extremes(name, values, result) if rate is None else None
        if extreme_values is None:
            draw.matters = True
        else:
            self._extremes_of[result] = _Extremes(extreme_values, [draw])

    def note(self, operation: str, rate: float | None = None, source: str = "torch") -> Draw:
        """Note a draw that happens now.

        It counts as without effect until an effect is seen.
        """
        self.sources.add(source)
        module, function, where = self._place(sys._getframe(1))
        draw = Draw(module, function or operation, where, rate)
        self.draws.append(draw)
        return draw

    def _follow(self, call: _Call, drawn: list[Tensor]) -> None:
        """Repeat an operation on the extreme values in the place of drawn numbers."""
        draws: dict[int, Draw] = {}
        for tensor in drawn:
            draws |= {id(draw): draw for draw in self._extremes_of[tensor].draws}
        for draw in draws.values():
            draw.used = True
        if self._writes_to_other_numbers(call):
            # Repeated on the same tensor, the operation would change the numbers of the model.
            for draw in draws.values():
                draw.matters = True
            return
        count = min(len(self._extremes_of[tensor].values) for tensor in drawn)
        results = self._repeat(call, count)
        mixed = self._mixes_with_data(call)
        compares = call.func._schema.name.rpartition("::")[2].strip("_") in _COMPARISONS
        is_constant = bool(results) and all(_same(result, results[0]) for result in results)
        if is_constant and (compares or not mixed):
            # Every extreme value gives the same result: the numbers have no effect here.
            for tensor in _tensors(call.result):
                self._extremes_of.pop(tensor, None)
            return
        parts = None if mixed or not results else _by_part(call.result, results)
        if parts is None:
            # The numbers meet the data of the model.
            for draw in draws.values():
                draw.matters = True
            return
        for part, values in parts:
            self._extremes_of[part] = _Extremes(values, list(draws.values()))

    def _mixes_with_data(self, call: _Call) -> bool:
        """Whether an operation combines drawn numbers with the data of the model.

        A tensor of one element, such as a rate, does not count as data.
        """
        operands = _tensors((call.args, call.kwargs))
        return any(tensor.numel() > 1 and tensor not in self._extremes_of for tensor in operands)

    def _repeat(self, call: _Call, count: int) -> list[Any]:
        """The results of an operation on each extreme value; none if a value is not allowed."""
        results = []
        for index in range(count):
            args = self._with_extreme(call.args, index)
            kwargs = self._with_extreme(dict(call.kwargs), index)
            try:
                results.append(call.func(*args, **kwargs))
            except Exception:  # the operation refuses one of the values, so it depends on them
                return []
        return results

    def _writes_to_other_numbers(self, call: _Call) -> bool:
        """Whether an operation writes to a tensor whose numbers are not drawn."""
        values = _arguments(call.func, call.args, call.kwargs)
        written = [values.get(a.name) for a in call.func._schema.arguments if a.is_write]
        return any(tensor not in self._extremes_of for tensor in _tensors(written))

    def _with_extreme(self, tree: Any, index: int) -> Any:
        """A tree of arguments with an extreme value in the place of each drawn tensor."""

        def replaced(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf in self._extremes_of:
                return self._extremes_of[leaf].values[index]
            return leaf

        return tree_map(replaced, tree)

    def read(self, tensor: Tensor, value: object) -> object:
        """The value that Python reads from a tensor.

        For a drawn float it is a `Drawn`, which reports its use.
        """
        if tensor not in self._extremes_of:
            return value
        if type(value) is not float:
            self._mark_as_mattering(tensor)
            return value
        extreme = self._extremes_of[tensor]
        ends = [float(end) for end in extreme.values]
        for draw in extreme.draws:
            draw.used = True
        above = math.nextafter(max(ends), math.inf)
        return Drawn.of(
            value, low=min(ends), high=above, used=lambda: self._mark_as_mattering(tensor)
        )

    def _mark_as_mattering(self, tensor: Tensor) -> None:
        for draw in self._extremes_of[tensor].draws:
            draw.matters = True
            draw.used = True

    def draws_with_effect(self, outputs: object) -> list[Draw]:
        """The draws that have an effect, and those that no followed operation used.

        Args:
            outputs: The outputs of the model.

        Returns:
            The draws, in their order.
        """
        for tensor in _tensors(outputs):
            if tensor in self._extremes_of:
                self._mark_as_mattering(tensor)
        return [draw for draw in self.draws if draw.matters or not draw.used]

    def _place(self, frame: FrameType | None) -> tuple[nn.Module | None, str, str]:
        """The module, torch's function and the source line of a draw, from the stack."""
        module: nn.Module | None = None
        function = where = inner = ""
        while frame is not None and not frame.f_code.co_filename.startswith(_CALLERS):
            file = frame.f_code.co_filename
            if file.startswith(_TORCH):
                if not function and file.endswith(("nn/functional.py", "torch/functional.py")):
                    function = frame.f_code.co_name.strip("_")
                if not inner and "/nn/modules/" in file and not file.endswith("module.py"):
                    inner = _line(frame)
            elif not where and not file.startswith((*_BETWEEN, "<")):
                where = _line(frame)
            if module is None:
                module = self._modules.get(id(frame.f_locals.get("self")))
            if module is not None and where:
                break
            frame = frame.f_back
        return module, function, where or inner


class _Reading(TorchFunctionMode):
    """Within it, values that Python reads from tensors pass `Watch.read`.

    The dispatcher does not see operations of Python on these values. A drawn float that is an
    argument of a torch function matters: torch reads its value in C.
    """

    def __init__(self, seen: Watch) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_flatten((args, kwargs))[0]:
            if isinstance(leaf, Drawn):
                leaf.report_use()
        if func not in (Tensor.item, Tensor.tolist, Tensor.numpy):
            return func(*args, **(kwargs or {}))
        with self._seen.unfollowed():
            value = func(*args, **(kwargs or {}))
        return self._seen.read(args[0], value)


def _line(frame: FrameType) -> str:
    """The file and the line of a frame, as ``file:line``."""
    file = frame.f_code.co_filename
    installed = "site-packages/" in file
    name = file.rpartition("site-packages/")[2] if installed else Path(file).name
    return f"{name}:{frame.f_lineno}"


def _tensors(tree: object) -> list[Tensor]:
    """The tensors in a tree of containers."""
    return [leaf for leaf in tree_flatten(_plain(tree))[0] if isinstance(leaf, Tensor)]


def _plain(value: Any) -> Any:
    """A structured output as dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name, None)) for name in value.__dataclass_fields__}
    return value


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by name, with its defaults."""
    arguments = func._schema.arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    values |= zip((a.name for a in arguments), args, strict=False)
    return values | dict(kwargs)


def _same(a: Any, b: Any) -> bool:
    """Whether two results are equal in all entries."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _drops_and_rate(name: str, values: Mapping[str, Any]) -> tuple[bool, float | None]:
    """Whether a random operation may drop something at random, and the rate given to it.

    ``torch.rand`` and others without a rate may.
    """
    if values.get("train") is False or values.get("training") is False:
        return False, None
    if name.startswith("bernoulli"):
        p = values["self"] if values.get("p") is None else values["p"]
        if isinstance(p, Tensor):
            rate = 1.0 - float(p) if p.numel() == 1 else None
            return bool(((p > 0) & (p < 1)).any()), rate
        return 0 < p < 1, 1.0 - p
    for key in ("dropout_p", "dropout"):
        if isinstance(values.get(key), float):
            return values[key] > 0, values[key]
    if "dropout" in name and isinstance(values.get("p"), float):
        rate = 1.0 - values["p"] if name == "_fused_dropout" else values["p"]
        return rate > 0, rate
    return True, None


@contextmanager
def watch(model: nn.Module) -> Iterator[Watch]:
    """Context that notes random draws of torch, of Python's ``random`` and of NumPy.

    A generator whose state changed although no draw was noted gets one draw at an unknown place.
    Call `Watch.draws_with_effect` of the result afterwards.
    """
    watching = Watch(model)
    numpy_random = sys.modules.get("numpy.random")
    readers = list(random_states())  # the model may import NumPy while it runs
    states_before = [read() for _, read in readers]
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # compiled parts run in eager mode
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        of_python: Any = random
        stack.enter_context(noted(random, of_python._inst, watching.note))
        if numpy_random is not None:
            stack.enter_context(noted(numpy_random, numpy_random.mtrand._rand, watching.note))
        stack.enter_context(watching)
        stack.enter_context(_Reading(watching))
        yield watching
    for (source, read), state in zip(readers, states_before, strict=True):
        if source not in watching.sources and not _same(read(), state):
            watching.draws.append(Draw(None, f"{source} (unseen)", "somewhere", matters=True))


def _by_part(result: Any, results: list[Any]) -> list[tuple[Tensor, list[Any]]] | None:
    """The tensors of a result, each with its values in the repeated results.

    A result may be several tensors, as when Python loops over one. None if it holds anything else.
    """
    if isinstance(result, Tensor):
        return [(result, results)]
    if not isinstance(result, (list, tuple)) or len(_tensors(result)) != len(result):
        return None
    return [(part, [values[i] for values in results]) for i, part in enumerate(result)]
