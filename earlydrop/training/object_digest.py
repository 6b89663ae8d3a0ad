"""The digest of a Python object: of its code, its attributes and its weights."""

from __future__ import annotations

import copyreg
import dataclasses
import dis
import functools
import hashlib
import inspect
import sys
import types
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.plugins import is_installed, sources_from_here
from earlydrop.training.stale import CACHED, differs_from_file

_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
# Members that C code makes, such as those of ``__slots__``.
_C_MEMBER_TYPES = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
)
_HOOK_ATTRIBUTES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
# The attributes that every module has.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
# Members of a class that Python makes: an abstract class's cache, and the annotations.
_SKIPPED_MEMBERS = ("_abc_impl", "__annotate__", "__annotate_func__")
# Attributes that differ between processes. Every language model of transformers has a
# GenerationConfig, and that stores its own ``hash``.
_PROCESS_DEPENDENT = ("_original_object_hash",)


def _is_plain(value: Any) -> bool:
    """Whether the ``repr`` of a value describes it completely."""
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return type(value) in _PLAIN_TYPES  # a subclass, such as an enum, has code of its own


def _is_internal(module: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute is internal to an installed module class, and is left out.

    Such an attribute is private and holds neither a plain value nor a tensor. For example,
    ``torch.nn.LSTM`` has weak references to its weights.
    """
    is_private = key.startswith("_") and is_installed(type(module).__module__)
    return is_private and not isinstance(value, (*_PLAIN_TYPES, Tensor))


def digest_of(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


def digest_of_tensor(value: Tensor) -> str:
    try:
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        content = b""
        if tensor.numel():
            content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"a tensor of layout {value.layout} on the device {value.device} cannot be hashed "
            f"({error}): use a dense tensor with values"
        ) from error
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content).hexdigest()


def digest_of_weights(module: nn.Module) -> str:
    """Hash the state dict of a module, with what ``get_extra_state`` adds to it.

    Raises:
        ConfigError: An extra state cannot be hashed.
    """
    digests = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            digests[name] = digest_of_tensor(value)
        else:
            reader = Reader("model")
            reader.add(value, name)
            digests[name] = digest_of(reader.found)
    return digest_of(digests)


class Reader:
    """Collects digests of everything that an object is made of, by name.

    Each value is recorded under the place where it was found. If an object is found again, only the
    name of its first place is recorded, so that the record shows which places share the object.

    Args:
        what: ``model`` or ``data``, for messages.

    Attributes:
        found: The record. It maps a name to a SHA-256, the ``repr`` of a plain value, the name of
            a class or function, ``installed`` for code of an installed package, or a few words
            such as ``list of 2``, ``frozen``, ``cached`` or ``the same as ...``.
        paths: The source files.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.found: dict[str, str] = {}
        self.paths: set[Path] = set()
        # The objects read so far and their names, by id. A reference to each object is kept, so
        # that Python does not reuse its id.
        self._seen: dict[int, tuple[Any, str]] = {}
        self._modules: set[str] = set()

    def add_structure(self, model: nn.Module, where: str = "") -> None:
        """Add everything of a module that its state dict does not hold.

        It adds the classes, the attributes, the hooks, the buffers that are not saved, and which
        parameters are frozen or shared.

        Raises:
            ConfigError: A part of the module cannot be hashed.
        """
        for name, module in model.named_modules(prefix=where):
            self._record(f"module {name}", qualified(type(module)))
            self.add(type(module))
            for key, value in vars(module).items():
                if key not in _MODULE_ATTRIBUTES and not _is_internal(module, key, value):
                    self.add(value, f"{name}.{key}")
            for key in sorted(module._non_persistent_buffers_set):
                self.add(module._buffers[key], f"{name}.{key}")
            for hooks in _HOOK_ATTRIBUTES:
                for index, hook in enumerate(vars(module)[hooks].values()):
                    self.add(hook, f"{name}.{hooks}[{index}]")
        names: dict[int, str] = {}
        for name, parameter in model.named_parameters(prefix=where, remove_duplicate=False):
            first = names.setdefault(id(parameter), name)
            if first != name:
                self._record(f"{name} is", first)
            elif not parameter.requires_grad:
                self._record(f"{name} is", "frozen")

    def add(self, value: Any, where: str = "") -> None:
        """Add a value, and its parts.

        Raises:
            ConfigError: The value cannot be hashed.
        """
        if _is_plain(value):
            self._record(where, repr(value))
            return
        if id(value) in self._seen:
            self._record(where, f"the same as {self._seen[id(value)][1]}")
            return
        self._seen[id(value)] = (value, where or qualified(value))
        if isinstance(value, types.ModuleType):
            self._record(where, value.__name__)
            self._add_module(value.__name__)
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            self._add_class_or_function(value, where)
        elif isinstance(value, CACHED):
            self._record(where, "cached")
            self.add(value.__wrapped__, f"{where}.cached")
        elif isinstance(value, functools.partial):
            parts = [value.func, *value.args, *value.keywords.items()]
            self._add_all(parts, f"{where}.partial")
        elif isinstance(value, weakref.ReferenceType):  # an LSTM has them to its weights
            self.add(value(), f"{where}.referent")
        elif isinstance(value, types.MethodType):
            self._add_all([value.__func__, value.__self__], f"{where}.method")
        elif isinstance(value, (Mapping, list, tuple)):
            self._add_container(value, where)
        elif isinstance(value, (set, frozenset)):
            self._add_set(value, where)
        elif isinstance(value, nn.Module):
            self.add_structure(value, where)
            self._record(f"{where} weights", digest_of_weights(value))
        elif isinstance(value, Tensor):
            self._record(where, digest_of_tensor(value))
        else:
            self._add_instance(value, where)

    def _record(self, name: str, value: str) -> None:
        """Record a value. A name that is taken gets a number."""
        if not name:
            return
        free, count = name, 1
        while free in self.found:
            count += 1
            free = f"{name} ({count})"
        self.found[free] = value

    def _add_all(self, values: Iterable[Any], where: str) -> None:
        for index, value in enumerate(values):
            self.add(value, f"{where}[{index}]")

    def _add_class_or_function(self, value: Any, where: str) -> None:
        """Add a class or function, and the object of a built-in method."""
        self._record(where, qualified(value))
        self._add_code(value)
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (type, types.ModuleType)):
            self.add(owner, f"{where}.method")

    def _add_container(self, values: Mapping[Any, Any] | Sequence[Any], where: str) -> None:
        """Add a mapping or sequence: its type, its entries and its attributes."""
        self._record(where, f"{type(values).__name__} of {len(values)}")
        self._add_entries(values, where)
        self.add(type(values))
        if hasattr(values, "__dict__"):
            self.add(vars(values), f"{where}.__dict__")

    def _add_entries(self, values: Mapping[Any, Any] | Sequence[Any], where: str) -> None:
        """Add the entries of a mapping, by key where the keys are text, or of a sequence."""
        if not isinstance(values, Mapping):
            self._add_all(values, where)
        elif all(isinstance(key, str) for key in values):
            self._record(f"{where} keys", repr(list(values)))
            for key, value in values.items():
                self.add(value, f"{where}[{key!r}]")
        else:
            self._add_all(values.items(), where)

    def _add_set(self, values: Iterable[Any], where: str) -> None:
        """Add a set, whose order differs between processes."""
        for value in values:
            if not isinstance(value, _PLAIN_TYPES):
                raise ConfigError(
                    f"{self.what} uses {where or 'a set'}, a set that holds a "
                    f"{type(value).__name__}, which cannot be hashed in a fixed order; use a list"
                )
        self._record(where, repr(sorted(values, key=repr)))

    def _add_instance(self, value: Any, where: str) -> None:
        """Add any other object: the parts that pickle would save.

        The parts are hashed one by one. The bytes of a pickle differ between processes where it
        holds a tensor or a set.
        """
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise ConfigError(
                f"{self.what} uses {where or 'an object'}, a {type(value).__name__}, which cannot "
                f"be hashed ({error}), so a change to it would go unnoticed; use plain values "
                f"instead, or name the {self.what} as module:function"
            ) from error
        self._record(where, qualified(type(value)))
        self.add(type(value))
        if not isinstance(parts, tuple):
            self.add(parts, f"{where}.state")
            return
        make, arguments, state, items, pairs = (*parts, None, None, None)[:5]
        self._add_all([make, arguments], f"{where}.made")
        if isinstance(state, dict):
            for key, attribute in state.items():
                if key not in _PROCESS_DEPENDENT:
                    self.add(attribute, f"{where}.{key}")
        else:
            self.add(state, f"{where}.state")
        self._add_all([*(items or ()), *(pairs or ())], f"{where}.items")

    def _add_module(self, name: str) -> None:
        if name in self._modules:
            return
        self._modules.add(name)
        if is_installed(name):
            self.found[name] = "installed"
            return
        files = sources_from_here(name)
        file = getattr(sys.modules.get(name), "__file__", None)
        if not files and file is not None:
            files = {name: Path(file)}
        if not files:
            raise ConfigError(
                f"{self.what} uses the module {name}, which has no source file: put it into one"
            )
        for file_module, path in files.items():
            if differs_from_file(file_module, path):
                raise ConfigError(
                    f"{self.what} uses the module {file_module}, which differs from its file "
                    f"{path.name}: one of them was changed after the import; reload the module "
                    f"with importlib.reload({file_module}) and make the {self.what} again, or "
                    "start Python again"
                )
            self.found[file_module] = hashlib.sha256(path.read_bytes()).hexdigest()
        self.paths |= set(files.values())

    def _add_code(self, value: Any) -> None:
        """Add the code of a function or class.

        The code is its whole source file. In a notebook or script, it is the text and the global
        names of a function, or the bases and members of a class. The defaults of a function and
        the variables that it captures are added too.
        """
        module = getattr(value, "__module__", None) or "builtins"
        # functools.wraps gives a wrapper the module of the function that it wraps.
        globals_module = getattr(value, "__globals__", {}).get("__name__") or module
        if is_installed(globals_module):
            self.found[qualified(value)] = "installed"
        elif globals_module != "__main__":
            self._refuse_class_of_reloaded_module(value)
            self._add_module(globals_module)
        elif isinstance(value, type):
            self._add_members(value)
        else:
            self._add_text(value)
        if not isinstance(value, types.FunctionType):
            return
        is_global = "<locals>" not in value.__qualname__
        if is_global and is_installed(globals_module) and is_installed(module):
            return
        self._add_captured(value)

    def _refuse_class_of_reloaded_module(self, value: Any) -> None:
        """Refuse a class if its module now holds another class of the same name."""
        if not isinstance(value, type):
            return
        present: Any = sys.modules.get(value.__module__)
        for part in value.__qualname__.split("."):
            present = getattr(present, part, None)
        is_other = isinstance(present, type) and present is not value
        if is_other and qualified(present) == qualified(value):
            raise ConfigError(
                f"{self.what} uses {qualified(value)} as it was before its module was reloaded: "
                f"make the {self.what} again"
            )

    def _add_captured(self, value: types.FunctionType) -> None:
        """Add the variables that a function captures, and its defaults."""
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        for name, cell in cells.items():
            try:
                captured = cell.cell_contents
            except ValueError:  # the function around it has not assigned the name yet
                captured = None
            self.add(captured, f"{value.__qualname__}: {name}")
        self.add(value.__defaults__, f"{value.__qualname__}: defaults")
        self.add(value.__kwdefaults__, f"{value.__qualname__}: keyword defaults")

    def _add_members(self, cls: type) -> None:
        """Add the bases and the members of a class of a notebook or script."""
        for base in cls.__mro__[1:]:
            self.add(base)
        for name, member in sorted(vars(cls).items()):
            is_read = callable(member) or not name.startswith("__")
            if is_read and name not in _SKIPPED_MEMBERS:
                self._add_member(member, f"{qualified(cls)}.{name}", cls)
        for name, field in vars(cls).get("__dataclass_fields__", {}).items():
            if field.default_factory is not dataclasses.MISSING:
                self.add(field.default_factory, f"{qualified(cls)}.{name}: default_factory")

    def _add_member(self, member: Any, where: str, cls: type) -> None:
        """Add a member of a class, or the functions of a property.

        Methods that Python generates for a dataclass or a named tuple are left out, because they
        follow from its fields.
        """
        inner = getattr(member, "__func__", member)
        functions = [inner]
        if isinstance(inner, property):
            functions = [inner.fget, inner.fset, inner.fdel]
        elif isinstance(inner, functools.cached_property):
            functions = [inner.func]
        has_written_methods = hasattr(cls, "__dataclass_fields__") or hasattr(cls, "_fields")
        for function in functions:
            written = has_written_methods and _is_made_by_exec(function)
            if not isinstance(function, _C_MEMBER_TYPES) and not written:
                self.add(function, where)

    def _add_text(self, function: Any) -> None:
        """Add the text of a function of a notebook or script, and the global names that it uses."""
        try:
            text = inspect.getsource(function.__code__)
        except (OSError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.what} uses {qualified(function)}, whose source cannot be found, so a "
                "change to it would go unnoticed; write it in a file or in a cell of a notebook"
            ) from error
        self._record(qualified(function), hashlib.sha256(text.encode()).hexdigest())
        for name in filter(None, _names_in(function.__code__, ("IMPORT_NAME",))):
            self._add_module(name)
        for name in _names_in(function.__code__, ("LOAD_GLOBAL", "LOAD_NAME")):
            if name in function.__globals__:
                self.add(function.__globals__[name], f"{function.__qualname__}: {name}")


def _is_made_by_exec(function: Any) -> bool:
    """Whether a function was made by ``exec`` of a string. Wrappers are removed first."""
    if not isinstance(function, types.FunctionType):
        return False
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and code.co_filename.startswith("<string>")


def _names_in(code: types.CodeType, operations: tuple[str, ...]) -> list[str]:
    """The names that some operations of code have, including those of functions inside it."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in operations}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_names_in(constant, operations))
    return sorted(names)


def qualified(value: Any) -> str:
    module = getattr(value, "__module__", None) or "builtins"
    name = getattr(value, "__qualname__", type(value).__name__)
    return f"{module}.{name}"
