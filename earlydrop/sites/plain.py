"""Plain float rates: attributes that a forward reads, on its module or on the module's config.

A module may store a rate that only its ``__init__`` uses, to build submodules. `reads` finds the
rates that a forward uses, from the source code of the class.

transformers reads rates from a config (``self.config.layerdrop``). Modules share a config, so it is
never written. A driven module gets a view of it (`ConfigView`): the same object except for the
rates.
"""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from torch import nn

PREFIX = "config."

# Modules of base classes whose methods are not searched, by the beginning of their names.
_FRAMEWORK = (
    "torch.nn.modules.module",
    "transformers.generation",
    "transformers.integrations",
    "transformers.modeling_utils",
    "transformers.utils",
)
# Methods that build, print or pickle a module.
_BUILDING = ("__init__", "extra_repr", "__repr__", "__setstate__", "__getstate__")
_BUILDING_PREFIXES = (
    "init_", "_init", "reset_", "_reset", "set_", "make_", "_make", "build", "_build", "get_config",
    "from_",
)  # fmt: skip
_MOST = 60  # the largest number of functions searched in one method


def reads(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes that the methods of a class read from ``self``, except in building methods.

    Args:
        cls: A module's own class.

    Returns:
        Dotted chains: ``"dropout"`` for ``F.dropout(x, self.dropout)``, ``"attn_drop.p"`` for
        ``self.attn_drop.p``. The strings in the code are added, since ``getattr`` may take them.
    """
    return _reads(cls)  # type: ignore[arg-type]  # a module's class is hashable


@cache
def _reads(cls: type[Any]) -> frozenset[str]:
    methods: dict[str, set[str]] = {}
    overridden: set[str] = set()  # methods whose definition in a later base is never called
    for base in cls.__mro__:
        if base is object or base.__module__.startswith(_FRAMEWORK):
            continue
        for name, member in vars(base).items():
            if name in overridden:
                continue
            functions = list(_functions(member))
            chains = methods.setdefault(name, set())
            for function in functions:
                chains |= _chains(function)
            if not any("super" in function.__code__.co_names for function in functions):
                overridden.add(name)
    by_forward = _reached("forward", methods) | _reached("__call__", methods)
    by_init = _reached("__init__", methods)
    kept: set[str] = set()
    for name, chains in methods.items():
        # The names of methods that build or print the module.
        is_building = name in _BUILDING or name.startswith(_BUILDING_PREFIXES)
        only_builds = name in by_init or is_building
        if name in by_forward or not only_builds:
            kept |= chains
    return frozenset(kept)


def _reached(start: str, methods: Mapping[str, set[str]]) -> set[str]:
    """A method and the methods that it calls through ``self``, directly or indirectly."""
    reached: set[str] = set()
    waiting = {start} & methods.keys()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= (methods[name] & methods.keys()) - reached
    return reached


def _functions(member: object) -> Iterator[types.FunctionType]:
    """The function of a method and, where it is wrapped, the functions inside the wrappers."""
    waiting: list[object] = [member]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or len(seen) > _MOST:
            continue
        seen.add(id(item))
        if isinstance(item, (staticmethod, classmethod)):
            waiting.append(item.__func__)
        elif isinstance(item, property):
            waiting.append(item.fget)
        elif isinstance(item, types.FunctionType):
            yield item
            waiting.append(inspect.unwrap(item))
            waiting += _closed_over(item)


def _closed_over(function: types.FunctionType) -> Iterator[object]:
    """The functions in the closure of a function, such as a decorated one in its wrapper."""
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
        if isinstance(content, types.FunctionType):
            yield content


def _chains(function: types.FunctionType) -> set[str]:
    """The chains of attributes that a function reads from ``self`` or from its first argument.

    The strings that could be the name of an attribute are added.
    """
    tree = _source(function)
    if tree is None:
        return _names(function.__code__)
    owners = {"self"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = [*node.args.posonlyargs, *node.args.args]
            owners |= {argument.arg for argument in arguments[:1]}
    chains = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            chains |= _chain(node, owners)
        elif isinstance(node, ast.Constant) and _is_name(node.value):
            chains.add(str(node.value))
    return chains


def _chain(node: ast.expr, owners: set[str]) -> set[str]:
    """The attributes of an expression such as ``self.attn_drop.p``, as a set of one chain.

    The set is empty if the expression does not start with one of the owners.
    """
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return {".".join(attributes)} if isinstance(node, ast.Name) and node.id in owners else set()


def _is_name(value: object) -> bool:
    """Whether a value is a string that could be the name of an attribute."""
    return isinstance(value, str) and value.isidentifier()


def _source(function: types.FunctionType) -> ast.AST | None:
    """The syntax tree of a function; None where its source cannot be found.

    Code made by ``exec`` has no source. Where a file was changed after its import, another function
    may stand at the place of this one.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # SyntaxError: a lambda within a longer statement
        return None
    names = [getattr(node, "name", "<lambda>") for node in ast.walk(tree)]
    return tree if function.__code__.co_name in names else None


def _names(code: types.CodeType) -> set[str]:
    """All names and strings in code without source, and all pairs of names as chains.

    That is more than the code reads, so that no rate is missed.
    """
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
        elif _is_name(constant):
            names.add(constant)
    pairs = itertools.product(code.co_names, repeat=2)
    return names | {".".join(pair) for pair in pairs}


def stored_rate(module: nn.Module, attribute: str) -> Any:
    """The rate that a module stores in its ``__dict__`` or its config, as it was built.

    None if there is none. An attribute is ``"dropout"`` or ``"config.dropout"``.
    """
    if attribute.startswith(PREFIX):
        return getattr(module.__dict__.get("config"), attribute.removeprefix(PREFIX), None)
    return module.__dict__.get(attribute)


class ConfigView:
    """The view that a driven module has of its config.

    Args:
        config: The config. The view forwards every attribute and item except the rates to it.
        rates: Functions that read the rates, by attribute.
    """

    __slots__ = ("_config", "_rates")

    def __init__(self, config: Any, rates: Mapping[str, Callable[[], float]]) -> None:
        # Second names of attributes in transformers.
        aliases: Mapping[str, str] = getattr(config, "attribute_map", None) or {}
        aliased = {aliases[name]: read for name, read in rates.items() if name in aliases}
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_rates", dict(rates) | aliased)

    # It forwards __class__ too, so isinstance() and pickle see the config.
    def __getattribute__(self, name: str) -> Any:
        rates = object.__getattribute__(self, "_rates")
        if name in rates:
            return rates[name]()
        return getattr(object.__getattribute__(self, "_config"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_config"), name, value)

    def __repr__(self) -> str:
        return repr(object.__getattribute__(self, "_config"))

    def __eq__(self, other: object) -> bool:
        return bool(object.__getattribute__(self, "_config") == real_config(other))

    def __hash__(self) -> int:  # many configs have no hash of their own
        return id(object.__getattribute__(self, "_config"))

    def __bool__(self) -> bool:
        return bool(object.__getattribute__(self, "_config"))

    def __contains__(self, key: object) -> bool:
        return key in object.__getattribute__(self, "_config")

    def __getitem__(self, key: Any) -> Any:
        rates = object.__getattribute__(self, "_rates")
        if isinstance(key, str) and key in rates:
            return rates[key]()
        return object.__getattribute__(self, "_config")[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(object.__getattribute__(self, "_config"))

    def __len__(self) -> int:
        return len(object.__getattribute__(self, "_config"))

    def __setitem__(self, key: Any, value: Any) -> None:
        object.__getattribute__(self, "_config")[key] = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__getattribute__(self, "_config").__reduce_ex__(protocol)

    def __copy__(self) -> Any:
        return copy.copy(object.__getattribute__(self, "_config"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(object.__getattribute__(self, "_config"), memo)


def real_config(config: Any) -> Any:
    """The config behind a view."""
    if type(config) is ConfigView:
        return object.__getattribute__(config, "_config")
    return config
