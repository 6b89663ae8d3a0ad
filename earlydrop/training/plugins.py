"""A user's code by name: ``module:function``, or a name that an installed package offers.

Only `load` imports such code, and it is called only while a run is planned or built. The commands
that read runs (report, cite, findings, list) never call it, so reading a run from elsewhere never
runs its code.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from earlydrop.training.fields import ConfigError
from earlydrop.training.names import first_line
from earlydrop.training.stale import differs_from_file

GROUPS = {
    "model": "earlydrop.models",
    "data": "earlydrop.data",
    "schedule": "earlydrop.schedules",
    "measure": "earlydrop.measures",
}
"""The entry-point group through which an installed package offers names of each kind."""

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PACKAGES = {"site-packages", "dist-packages"}  # folders of installed packages

OBJECT = "__main__:"
"""The prefix of the name of an object given in Python. `load` never imports such a name."""

_loaded: dict[str, str] = {}
"""The modules that `load` imported, each with the digest of its local sources at that moment."""


class Code(NamedTuple):
    """Code from outside earlydrop.

    Attributes:
        name: ``module:function``, or the name that an installed package offers.
        value: The function or class.
        files: The SHA-256 of each source file that it is made of, by the name of its module.
        digest: SHA-256 of them all.
        paths: The files themselves.
    """

    name: str
    value: Callable[..., Any]
    files: Mapping[str, str]
    digest: str
    paths: tuple[Path, ...]

    @property
    def label(self) -> str:
        """The function's own name."""
        return getattr(self.value, "__name__", self.name)


_given: dict[str, Code] = {}
"""The objects that are given in Python at the moment, by name."""


def installed(kind: str) -> dict[str, str]:
    """Names that installed packages offer for a kind, with ``module:function``. Imports nothing."""
    points = importlib.metadata.entry_points(group=GROUPS[kind])
    return {point.name: point.value.partition(" ")[0] for point in points}


def is_reference(name: str) -> bool:
    """Whether a name is meant as ``module:function``."""
    return ":" in name


def is_own(kind: str, name: str) -> bool:
    """Whether a name is ``module:function`` or offered by an installed package. Imports nothing."""
    return is_reference(name) or name in installed(kind)


def load(key: str, kind: str, name: str) -> Code:
    """Import code that the user named.

    An object of `given` is returned as it is. A module is looked for in the folder where the
    command runs, then on the Python path. It is imported again if its source has changed since its
    import, or that of a local module that it imports.

    Raises:
        ConfigError: The name is not well formed, there is no such module or name in it, its import
            fails, another module of this name is imported, or the value is not callable.
    """
    prefix = f"{key} is {name!r}"
    if name in _given:
        return _given[name]
    if name.startswith(OBJECT):
        raise ConfigError(
            f"{prefix}: it was given as an object in Python, which cannot be loaded by name; give "
            "it to train() again"
        )
    reference = name if is_reference(name) else installed(kind).get(name, "")
    if not _REFERENCE.fullmatch(reference):
        example = (
            "expected module:function, such as mymodels:build for the function build of mymodels.py"
        )
        raise ConfigError(f"{prefix}: {example}")
    module_name, _, attribute = reference.partition(":")
    with _from_here():
        files = source_files(module_name)
        if module_name not in files:
            raise ConfigError(
                f"{prefix}: there is no module {module_name!r} in this folder ({Path.cwd()}) or on "
                "the Python path; "
                "give its name without .py, or run the command where it is"
            )
        module = _imported(prefix, module_name, files)
        value: Any = module
        for part in attribute.split("."):
            if not hasattr(value, part):
                raise ConfigError(
                    f"{prefix}: {files[module_name].name} has no "
                    f"{attribute!r}{nearest(attribute, _names(module))}"
                )
            value = getattr(value, part)
    if not callable(value):
        raise ConfigError(
            f"{prefix}: {attribute} is a {type(value).__name__}, expected a function or a class"
        )
    return Code(
        name=name,
        value=value,
        files=_digests(files),
        digest=_digest(files),
        paths=tuple(files.values()),
    )


def registered(name: str, value: Callable[..., Any]) -> Code | None:
    """The code behind a function that a user registered; None if it is earlydrop's own.

    Raises:
        ConfigError: Its source cannot be found, so that a change of it would not be noticed.
    """
    inner = getattr(value, "func", value)  # the function of a functools.partial
    module_name = getattr(inner, "__module__", None) or type(inner).__module__
    if module_name.partition(".")[0] == "earlydrop":
        return None
    with _from_here():
        files = source_files(module_name)
    if not files:
        file = getattr(sys.modules.get(module_name), "__file__", None)
        if file is None or not Path(file).is_file():
            raise ConfigError(
                f"{name!r} is registered from {module_name}, which has no source file: put it into "
                "a module"
            )
        files = {module_name: Path(file)}
    return Code(
        name=f"{module_name}:{getattr(inner, '__qualname__', name)}",
        value=value,
        files=_digests(files),
        digest=_digest(files),
        paths=tuple(files.values()),
    )


@contextmanager
def given(codes: Iterable[Code]) -> Iterator[None]:
    """Context in which `load` returns these objects for their names."""
    before = dict(_given)
    _given.update({code.name: code for code in codes})
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def is_installed(module: str) -> bool:
    """Whether a module is part of Python, of earlydrop, or of an installed and imported package."""
    top = module.partition(".")[0]
    if top == "__main__":  # in a notebook its file is that of an installed package
        return False
    if top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    return top == "earlydrop" or (
        file is not None and bool(_PACKAGES & set(Path(file).resolve().parts))
    )


def sources_from_here(module: str) -> dict[str, Path]:
    """`source_files` of a module on the Python path or in the folder where the command runs."""
    with _from_here():
        return source_files(module)


def source_files(module: str) -> dict[str, Path]:
    """The sources of a module and of the local modules that it imports. Imports nothing.

    Imports are followed from file to file. A local module is in the same outermost package or, if
    the module is not installed, below the folder that holds this package or single file. Imports by
    a computed name are not seen.
    """
    first = _spec(module.partition(".")[0])
    if first is None:
        return {}
    root = _root(first)
    if root is None:
        return {}
    sources: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in sources or name.partition(".")[0] == "earlydrop":
            continue
        spec = _spec(name)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            continue
        path = Path(spec.origin).resolve()
        if not path.is_relative_to(root) or _PACKAGES & set(path.relative_to(root).parts):
            continue
        sources[name] = path
        parents = name.split(".")[:-1]
        waiting += [".".join(parents[:count]) for count in range(1, len(parents) + 1)]
        if path.suffix == ".py":
            waiting += _imports(path, name, is_package=spec.submodule_search_locations is not None)
    return sources


def nearest(word: str, known: Iterable[str]) -> str:
    """A question with the nearest known word; empty if none is near."""
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f": did you mean {close[0]}?" if close else ""


def raised(error: BaseException, files: Iterable[str | Path] = ()) -> str:
    """An error of a user's code on one line: type, first line of the text, place in ``files``."""
    name, line = type(error).__name__, first_line(error)
    text = name if line == name else f"{name}: {line}"
    ours = {str(file) for file in files}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if str(Path(frame.filename).resolve()) in ours:
            return f"{text} ({Path(frame.filename).name}, line {frame.lineno})"
    return text


def _names(module: Any) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


@contextmanager
def _from_here() -> Iterator[None]:
    """Put the working folder first on the path while a module is looked for.

    Afterwards it is last, unless it was on the path before.

    No bytecode is written, because Python would reuse it for a file that is changed again within
    the same second.
    """
    here, writes_none = os.getcwd(), sys.dont_write_bytecode
    sys.path.insert(0, here)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
        sys.dont_write_bytecode = writes_none
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)


def _spec(name: str) -> ModuleSpec | None:
    """The place of a module, without importing it or its packages."""
    path: Any = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        whole = ".".join(parts[:count])
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        specs = (finder.find_spec(whole, path) for finder in finders)
        spec = next((candidate for candidate in specs if candidate is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            return None
    return spec


def _root(spec: ModuleSpec) -> Path | None:
    """The folder or file below which a module's local sources are, from its outermost package.

    For an installed package it is the package's folder, or its only file. For code that is not
    installed it is the folder that holds the package or the file.
    """
    locations = list(spec.submodule_search_locations or [])
    if locations:
        folder = Path(locations[0]).resolve()
        return folder if _PACKAGES & set(folder.parts) else folder.parent
    if spec.origin is None or not Path(spec.origin).is_file():
        return None
    path = Path(spec.origin).resolve()
    return path if _PACKAGES & set(path.parts) else path.parent


def _imports(path: Path, module: str, is_package: bool) -> list[str]:
    """Modules that a file imports, and names after ``from x import``, which may be modules too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # its import will say so
        return []
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                names.append(base)
            taken = [alias.name for alias in node.names if alias.name != "*"]
            names += [f"{base}.{name}" if base else name for name in taken]
    return names


def _digests(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in sorted(files)}


def _digest(files: Mapping[str, Path]) -> str:
    return hashlib.sha256(repr(sorted(_digests(files).items())).encode()).hexdigest()


def _imported(prefix: str, name: str, files: Mapping[str, Path]) -> Any:
    """Import a module. If it is imported already and its source has not changed, it is reused."""
    digest = _digest(files)
    there = getattr(sys.modules.get(name), "__file__", None)
    if there is not None and name not in _loaded and Path(there).resolve() != files[name]:
        raise ConfigError(
            f"{prefix}: another module {name!r} is imported already ({there}); give yours another "
            "name"
        )
    if name in _loaded:
        is_stale = _loaded[name] != digest
    else:
        is_stale = any(differs_from_file(file_module, path) for file_module, path in files.items())
    if is_stale:
        for file_module in files:
            sys.modules.pop(file_module, None)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ConfigError(
            f"{prefix}: importing {name} raised {raised(error, files.values())}; fix it, then run "
            "the same command again"
        ) from error
    _loaded[name] = digest
    return module
