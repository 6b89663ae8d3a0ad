"""The digest of a Python object: of its code, its attributes and its weights."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import pickle
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.plugins import is_installed, sources_from_here

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# The attributes that every module has.
_OF_TORCH = frozenset(vars(nn.Module()))


def _is_internal(module: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute is private to a library and no plain value.

    ``torch.nn.LSTM`` has weak references to its weights, for example.
    """
    is_private = key.startswith("_") and is_installed(type(module).__module__)
    return is_private and not isinstance(value, (*_PLAIN, Tensor))


def digest_of(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


def digest_of_tensor(value: Tensor) -> str:
    tensor = value.detach().cpu().contiguous()
    content = b""
    if tensor.numel():
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content).hexdigest()


class Reader:
    """Collects digests of everything that an object is made of, by name.

    Args:
        what: ``model`` or ``data``, for messages.

    Attributes:
        found: What was read, by name: a SHA-256, the ``repr`` of a plain value, the class of a
            module, or ``installed`` for code of an installed package.
        paths: The source files.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.found: dict[str, str] = {}
        self.paths: set[Path] = set()
        # By id. Holding the objects keeps their ids from being reused.
        self._seen: dict[int, Any] = {}

    def add_structure(self, model: nn.Module) -> None:
        """Add everything of a module that its state dict does not hold.

        It adds the classes, the attributes, the hooks, and the buffers that are not saved.
        """
        for name, module in model.named_modules():
            self.found[f"module {name}"] = qualified(type(module))
            self.add(type(module))
            for key, value in vars(module).items():
                if key not in _OF_TORCH and not _is_internal(module, key, value):
                    self.add(value, f"{name}.{key}")
            for key in sorted(module._non_persistent_buffers_set):
                self.add(module._buffers[key], f"{name}.{key}")
            for hooks in _HOOKS:
                for index, hook in enumerate(vars(module)[hooks].values()):
                    self.add(hook, f"{name}.{hooks}[{index}]")

    def add(self, value: Any, where: str = "") -> None:
        """Add a value, and its parts.

        Raises:
            ConfigError: The value cannot be hashed.
        """
        if isinstance(value, _PLAIN):
            self.found[where] = repr(value)
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, types.ModuleType):
            self._add_module(value.__name__)
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            self._add_code(value)
        elif isinstance(value, functools.partial):
            self._add_all([value.func, *value.args, *value.keywords.items()], f"{where}.partial")
        elif isinstance(value, types.MethodType):
            self._add_all([value.__func__, value.__self__], f"{where}.method")
        elif isinstance(value, Mapping):
            self._add_all(value.items(), where)
        elif isinstance(value, (list, tuple)):
            self._add_all(value, where)
        elif isinstance(value, (set, frozenset)):
            self._add_set(value, where)
        elif isinstance(value, nn.Module):
            self.add_structure(value)
            self.found[f"{where} weights"] = digest_of(
                {name: digest_of_tensor(each) for name, each in value.state_dict().items()}
            )
        elif isinstance(value, Tensor):
            self.found[where] = digest_of_tensor(value)
        else:
            self._add_instance(value, where)

    def _add_all(self, values: Iterable[Any], where: str) -> None:
        for index, value in enumerate(values):
            self.add(value, f"{where}[{index}]")

    def _add_set(self, values: Iterable[Any], where: str) -> None:
        """Add a set, whose order differs between processes."""
        for value in values:
            if not isinstance(value, _PLAIN):
                raise ConfigError(
                    f"{self.what} uses {where or 'a set'}, a set that holds a "
                    f"{type(value).__name__}, which cannot be hashed in a fixed order; use a list"
                )
        self.found[where] = repr(sorted(values, key=repr))

    def _add_instance(self, value: Any, where: str) -> None:
        """Add any other object: its class, and its pickle."""
        try:
            content = pickle.dumps(value)
        except Exception as error:
            raise ConfigError(
                f"{self.what} uses {where or 'an object'}, a {type(value).__name__}, which cannot "
                f"be hashed ({error}), so a change to it would go unnoticed; use plain values "
                "instead, or name the model as module:function"
            ) from error
        self.found[where] = hashlib.sha256(content).hexdigest()
        self.add(type(value))

    def _add_module(self, name: str) -> None:
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
        self.paths |= set(files.values())
        for file_module, path in files.items():
            self.found[file_module] = hashlib.sha256(path.read_bytes()).hexdigest()

    def _add_code(self, value: Any) -> None:
        """Add a function or class: its file or, in a notebook or script, its text and what it uses.

        The defaults of a function and the variables that it captures are added too.
        """
        module = getattr(value, "__module__", None) or "builtins"
        if is_installed(module):
            self.found[qualified(value)] = "installed"
        elif module != "__main__":
            self._add_module(module)
        elif isinstance(value, type):
            for base in value.__mro__[1:]:
                self.add(base)
            for name, member in sorted(vars(value).items()):
                if callable(member) or not name.startswith("__"):
                    self._add_member(member, f"{qualified(value)}.{name}")
        else:
            self._add_text(value)
        if isinstance(value, types.FunctionType) and not is_installed(module):
            cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
            for name, cell in cells.items():
                self.add(cell.cell_contents, f"{value.__qualname__}: {name}")
            self.add(value.__defaults__, f"{value.__qualname__}: defaults")
            self.add(value.__kwdefaults__, f"{value.__qualname__}: keyword defaults")

    def _add_member(self, member: Any, where: str) -> None:
        """Add a member of a class, and the functions of a property."""
        inner = getattr(member, "__func__", member)
        functions = [inner]
        if isinstance(inner, property):
            functions = [inner.fget, inner.fset, inner.fdel]
        for function in functions:
            if not isinstance(function, _SLOTS):
                self.add(function, where)

    def _add_text(self, function: Any) -> None:
        """Add the text of a function of a notebook or script, and the global names that it uses."""
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError) as error:
            raise ConfigError(
                f"{self.what} uses {qualified(function)}, whose source cannot be found, so a "
                "change to it would go unnoticed; write it in a file or in a cell of a notebook"
            ) from error
        self.found[qualified(function)] = hashlib.sha256(text.encode()).hexdigest()
        for name in _globals(function.__code__):
            if name in function.__globals__:
                self.add(function.__globals__[name], f"{function.__qualname__}: {name}")


def _globals(code: types.CodeType) -> Iterator[str]:
    """The global names that code reads, including those in functions inside it."""
    reads = ("LOAD_GLOBAL", "LOAD_NAME")
    yield from sorted({i.argval for i in dis.get_instructions(code) if i.opname in reads})
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


def qualified(value: Any) -> str:
    module = getattr(value, "__module__", None) or "builtins"
    name = getattr(value, "__qualname__", type(value).__name__)
    return f"{module}.{name}"
