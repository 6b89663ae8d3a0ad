"""What a class's code reads from ``self``: ``dropout`` in ``F.dropout(x, self.dropout)``, ``attn_drop.p`` in ``self.attn_drop.p``.

A module may hold a rate that it only passed on when it was built; this tells the rates that a forward uses from those.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

_FRAMEWORK = ("torch.nn.modules.module", "transformers.modeling_utils")  # bases whose code is no forward
_BUILDING = ("__init__", "extra_repr", "__repr__", "__setstate__", "__getstate__")
_BUILDING_PREFIXES = ("init_", "_init", "reset_", "_reset", "set_", "_make", "make_", "build", "_build", "get_config", "from_")


def reads(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes, and attributes of attributes, that the methods of a class read from ``self`` other than to build it.

    Args:
        cls: A module's own class.

    Returns:
        Dotted chains, such as ``"dropout"`` and ``"attn_drop.p"``, and the names that the code holds as strings (for ``getattr``).
    """
    return _reads(cls)  # type: ignore[arg-type]  # a module's class is hashable


@cache
def _reads(cls: type[Any]) -> frozenset[str]:
    methods: dict[str, frozenset[str]] = {}
    for base in cls.__mro__:
        if base is object or base.__module__ in _FRAMEWORK:
            break
        for name, member in vars(base).items():
            if name not in methods:
                methods[name] = frozenset(chain for code in _codes(member) for chain in _chains(code))
    used = _reached("forward", methods) | _reached("__call__", methods)
    built = _reached("__init__", methods) - used
    kept = (chains for name, chains in methods.items() if name in used or not (name in built or _builds(name)))
    return frozenset().union(*kept)


def _builds(name: str) -> bool:
    return name in _BUILDING or name.startswith(_BUILDING_PREFIXES)


def _reached(start: str, methods: dict[str, frozenset[str]]) -> set[str]:
    """The methods that one calls through ``self``, itself included."""
    reached: set[str] = set()
    waiting = {start} & methods.keys()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= (methods[name] & methods.keys()) - reached
    return reached


def _codes(member: object) -> Iterator[types.CodeType]:
    """The code of a method, whatever it is wrapped in, with that of the functions inside."""
    waiting: list[object] = [member]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or len(seen) > 60:
            continue
        seen.add(id(item))
        if isinstance(item, types.CodeType):
            yield item
            waiting += [const for const in item.co_consts if isinstance(const, types.CodeType)]
        elif isinstance(item, (staticmethod, classmethod)):
            waiting.append(item.__func__)
        elif isinstance(item, property):
            waiting.append(item.fget)
        elif isinstance(item, types.FunctionType):
            wrapped = inspect.unwrap(item)
            waiting += [item.__code__, wrapped] if wrapped is not item else [item.__code__]
            waiting += [cell for cell in _cells(item) if isinstance(cell, types.FunctionType)]


def _cells(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue


def _chains(code: types.CodeType) -> Iterator[str]:
    """The chains of attributes loaded from ``self``, or from the first argument, and the strings that could be an attribute's name."""
    me = {"self", code.co_varnames[0]} if code.co_argcount else {"self"}
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name.startswith(("LOAD_FAST", "LOAD_DEREF")):
            chain = [] if (value[-1] if isinstance(value, tuple) else value) in me else None
        elif name in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
            chain.append(value)
            yield ".".join(chain)
        elif name not in ("CACHE", "EXTENDED_ARG", "NOP"):
            chain = None
            if name in ("LOAD_CONST", "RETURN_CONST") and isinstance(value, str) and value.isidentifier():
                yield value
