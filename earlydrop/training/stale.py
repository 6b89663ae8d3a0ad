"""Whether an imported module still matches its file.

If a file is edited after its import, Python runs the old code, but a digest of the file would be
that of the new code.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

CACHED = type(functools.lru_cache(lambda: None))
"""The type of what ``functools.cache`` and ``functools.lru_cache`` return."""

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, tuple)
_MISSING = object()


def differs_from_file(name: str, path: Path) -> bool:
    """Whether the functions or constants of an imported module differ from those of its file.

    The code of the module's functions and methods is compared, with its line numbers. Constants are
    compared too: the defaults of arguments, and the constants of the module and of its classes that
    the file assigns only once. Functions that only the file has are not noticed, and neither are
    other statements at the top level.

    The result is True if the file cannot be compiled. It is False if the module is not imported, or
    if its loader is not Python's own, as with an import hook that rewrites it.

    Args:
        name: The module's name.
        path: Its source file.
    """
    path = path.resolve()
    module = sys.modules.get(name)
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    if module is None or type(loader) is not SourceFileLoader:
        return False
    source = path.read_bytes()
    try:
        whole = loader.source_to_code(source, str(path))  # type: ignore[attr-defined]
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return True
    codes = set(_codes(whole))
    defaults = _defaults(tree)
    for function in _functions(module, path):
        code = function.__code__
        if code not in codes:
            return True
        expected = defaults.get((code.co_name, code.co_firstlineno), {})
        if _are_other_values(_defaults_of(function), expected):
            return True
    if _are_other_values(vars(module), _constants(tree.body, _reassigned(tree))):
        return True
    return _has_other_attributes(module, tree)


def _are_other_values(values: Mapping[str, Any], constants: Mapping[str, Any]) -> bool:
    """Whether a constant is missing among the values, or is another value there."""
    for key, constant in constants.items():
        value = values.get(key, _MISSING)
        if type(value) is not type(constant) or repr(value) != repr(constant):
            return True
    return False


def _has_other_attributes(module: types.ModuleType, tree: ast.Module) -> bool:
    """Whether a class at the top level of a module has other constants than in the file.

    Constants that a class turns into something else, such as members of an enum, are left out. So
    are the names of attributes that the file sets, such as ``calls`` in ``Net.calls += 1``.
    """
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    attributes_set = {node.attr for node in nodes if not isinstance(node.ctx, ast.Load)}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        attributes = vars(getattr(module, node.name, object))
        constants = _constants(node.body, _reassigned(node) | attributes_set)
        for key, constant in constants.items():
            is_constant = type(attributes.get(key, _MISSING)) in _IMMUTABLE
            if is_constant and _are_other_values(attributes, {key: constant}):
                return True
    return False


def _defaults(tree: ast.Module) -> dict[tuple[str, int], dict[str, Any]]:
    """The immutable defaults of each function's arguments, by its name and first line."""
    defaults = {}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first_line = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
        positional = [*node.args.posonlyargs, *node.args.args]
        with_default = positional[len(positional) - len(node.args.defaults) :]
        arguments = [*with_default, *node.args.kwonlyargs]
        values = [*node.args.defaults, *node.args.kw_defaults]
        of_function = {}
        for argument, value in zip(arguments, values, strict=True):
            is_renamed = argument.arg.startswith("__")  # in a class Python renames it
            constant = _MISSING if value is None or is_renamed else _literal(value)
            if constant is not _MISSING:
                of_function[argument.arg] = constant
        defaults[node.name, first_line] = of_function
    return defaults


def _defaults_of(function: types.FunctionType) -> dict[str, Any]:
    """The defaults of a function's arguments, by name."""
    values = function.__defaults__ or ()
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    defaults = dict(zip(names[len(names) - len(values) :], values, strict=True))
    return defaults | (function.__kwdefaults__ or {})


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
        elif isinstance(value, functools.cached_property):
            waiting.append(value.func)
        elif isinstance(value, (classmethod, staticmethod)):
            waiting.append(value.__func__)
        elif isinstance(value, (types.FunctionType, CACHED)):
            function = inspect.unwrap(value)  # may be a class
            code = getattr(function, "__code__", None)
            if code is not None and Path(code.co_filename).resolve() == path:
                yield function


def _literal(node: ast.expr) -> Any:
    """The value of an immutable literal; `_MISSING` for any other expression."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return _MISSING
    return value if isinstance(value, _IMMUTABLE) else _MISSING


def _constants(body: Iterable[ast.stmt], reassigned: set[str]) -> dict[str, Any]:
    """The immutable constants that the statements of a file or a class assign, by name.

    Args:
        body: The statements.
        reassigned: Names that are left out.
    """
    constants = {}
    for node in body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if not isinstance(target, ast.Name) or target.id in reassigned:
            continue
        value = _literal(node.value)
        if value is not _MISSING:
            constants[target.id] = value
    return constants


def _reassigned(tree: ast.AST) -> set[str]:
    """Names that a file or class assigns more than once, defines, imports or declares global."""
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
