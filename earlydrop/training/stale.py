"""Whether an imported module still matches its file.

If a file is edited after its import, Python runs the old code, but the digest would be that of the
new code.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

CACHED = type(functools.lru_cache(lambda: None))
"""The type of a function behind ``functools.cache`` or ``functools.lru_cache``."""

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, tuple)


def differs_from_file(name: str, path: Path) -> bool:
    """Whether an imported module has other functions or constants than its file.

    The functions and methods of the module are compared, and the constants that the file assigns
    only once. The result is True if the file cannot be compiled. It is False if the module is not
    imported, or if its loader is not Python's own, as with an import hook that rewrites it.

    Args:
        name: The module's name.
        path: Its source file.
    """
    module = sys.modules.get(name)
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    if module is None or type(loader) is not SourceFileLoader:
        return False
    source = path.read_bytes()
    try:
        whole = loader.source_to_code(source, str(path))  # type: ignore[attr-defined]
        constants = _constants(ast.parse(source))
    except (SyntaxError, ValueError):
        return True
    codes = set(_codes(whole))
    if any(function.__code__ not in codes for function in _functions(module, path)):
        return True
    missing = object()
    for key, constant in constants.items():
        value = getattr(module, key, missing)
        if type(value) is not type(constant) or repr(value) != repr(constant):
            return True
    return False


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a file and of every function and class in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _functions(module: types.ModuleType, path: Path) -> Iterator[types.FunctionType]:
    """The functions and methods that the file of a module defines."""
    waiting: list[Any] = list(vars(module).values())
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, type) and value.__module__ == module.__name__:
            waiting += vars(value).values()
        elif isinstance(value, property):
            waiting += [value.fget, value.fset, value.fdel]
        elif isinstance(value, (classmethod, staticmethod)):
            waiting.append(value.__func__)
        elif isinstance(value, (types.FunctionType, CACHED)):
            function = inspect.unwrap(value)  # may be a class
            code = getattr(function, "__code__", None)
            if code is not None and Path(code.co_filename).resolve() == path:
                yield function


def _constants(tree: ast.Module) -> dict[str, Any]:
    """The immutable constants that a file assigns at its top level, by name.

    A name that is assigned more than once anywhere in the file is left out.
    """
    constants = {}
    reassigned = _reassigned(tree)
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if not isinstance(target, ast.Name) or target.id in reassigned:
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue
        if isinstance(value, _IMMUTABLE):
            constants[target.id] = value
    return constants


def _reassigned(tree: ast.Module) -> set[str]:
    """Names that a file assigns more than once, or by anything else than an assignment."""
    assigned: set[str] = set()
    reassigned: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            reassigned.update(node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            reassigned.add(node.name)
        elif isinstance(node, ast.alias):
            reassigned.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            if node.id in assigned:
                reassigned.add(node.id)
            assigned.add(node.id)
    return reassigned
