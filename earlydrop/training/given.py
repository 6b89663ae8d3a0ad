"""Models and data that are given as Python objects: their names and digests.

A model's digest is made of its code and, if it is a module, of its weights; a dataset's digest is
made of its content. The code of a file is hashed as the whole file, as for ``module:function``. In
a notebook or a script, the functions and everything that they use are hashed. An object that cannot
be hashed is refused, because a change to it would go unnoticed.
"""

from __future__ import annotations

import copy
import dis
import functools
import hashlib
import inspect
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from earlydrop.scheduler import DropoutScheduler
from earlydrop.schedules import none
from earlydrop.sites import Kind, find_sites
from earlydrop.training.data.own import digest_of_images, pair_of, read_images
from earlydrop.training.data.source import Source
from earlydrop.training.fields import ConfigError
from earlydrop.training.models.build import Task
from earlydrop.training.plugins import OBJECT, Code, is_installed, raised, sources_from_here

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)
_SHORT = 6  # hexadecimal digits of a digest in a name


def given_model(model: Any) -> Code:
    """Name and hash a model given as an object: a module, or a function that builds one.

    The function is called with the `Task`, or with nothing.

    Raises:
        ConfigError: It is neither, a scheduler drives it already, or it holds an object that
            cannot be hashed.
    """
    if isinstance(model, nn.Module):
        if any(site.driven for site in find_sites(model)):
            raise ConfigError(
                f"model is a {type(model).__name__} whose dropout is driven already: restore() its "
                "scheduler first"
            )
        reader = _Reader("model")
        reader.add_structure(model)
        weights = {name: _digest_of_tensor(value) for name, value in model.state_dict().items()}
        name = _name(type(model).__name__, reader.found)
        return _make_code(
            name,
            functools.partial(_as_given, model),
            reader.found | {"weights": _hash(weights)},
            reader.paths,
        )
    if isinstance(model, str):
        raise ConfigError(f"model is {model!r}: a name is given as an override, model.name={model}")
    if not callable(model):
        raise ConfigError(
            f"model is a {type(model).__name__}: expected a torch.nn.Module, or a function that "
            "builds one"
        )
    module = getattr(model, "__module__", None) or ""
    first = _parameters(model)[:1]
    takes_task = first in ([], ["task"])
    if is_installed(module) and not takes_task:
        raise ConfigError(
            f"model is {_qualified(model)}: a builder is called with the Task, which this does not "
            "take: pass lambda task: ..., or name the model with the override model.name="
        )
    reader = _Reader("model")
    reader.add(model)
    build = model if _parameters(model) else functools.partial(_without_task, model)
    return _make_code(
        _name(getattr(model, "__name__", type(model).__name__), reader.found),
        build,
        reader.found,
        reader.paths,
    )


def reference_of(value: Any) -> str | None:
    """``module:function`` of a builder in a source file; None for any other object.

    Also None for a builder without parameters, because a builder that is named by its reference is
    called with the `Task`.
    """
    module = getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", "")
    in_file = module != "__main__" and not is_installed(module)
    if not isinstance(value, (types.FunctionType, type)) or "<" in name or not in_file:
        return None
    found: Any = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    for part in name.split("."):
        found = getattr(found, part, None)
    files = sources_from_here(module)
    same = found is value and file is not None and files.get(module) == Path(file).resolve()
    return f"{module}:{name}" if same and _parameters(value) else None


def given_data(data: Any) -> Code:
    """Name and hash data given as an object.

    The data is one of:

    - a pair (training, test), or a mapping with ``train`` and ``test``, each a dataset or (images,
      labels);
    - a `Source`;
    - a function without arguments that returns one of these.

    Raises:
        ConfigError: It is none of these, it is a DataLoader, calling it raised an error, or images
            and labels differ in number.
    """
    if isinstance(data, str):
        raise ConfigError(f"data is {data!r}: a name is given as an override, data.name={data}")
    if callable(data) and not hasattr(data, "__getitem__") and not hasattr(data, "batches"):
        try:
            data = data()
        except Exception as error:
            raise ConfigError(
                f"data is a {type(data).__name__}: calling it raised {raised(error)}"
            ) from error
    if Source in type(data).__mro__:
        reader = _Reader("data")
        reader.add(type(data))
        digests = reader.found | {"content": str(getattr(data, "digest", ""))}
        name = _name(type(data).__name__, digests)
        return _make_code(name, functools.partial(_return_value, data), digests, reader.paths)
    if isinstance(data, DataLoader):
        raise ConfigError(
            "data is a DataLoader: expected a pair of datasets, for training and for test, such as "
            "(loader.dataset, ...)"
        )
    splits = pair_of("data", _datasets(data))
    read = {split: read_images("data", split, dataset) for split, dataset in splits.items()}
    digests = {"content": digest_of_images(read)}
    pair = {split: TensorDataset(*tensors) for split, tensors in read.items()}
    name = _name(type(splits["train"]).__name__, digests)
    return _make_code(name, functools.partial(_return_value, pair), digests, set())


def _as_given(model: nn.Module, task: Task) -> nn.Module:
    """Copy a module. Set all sites of a kind that the run does not schedule to rate 0."""
    built = copy.deepcopy(model)
    kinds: tuple[tuple[Kind, float], ...] = (("unit", task.unit), ("path", task.path))
    for kind, peak in kinds:
        if peak > 0:
            continue
        sites = [site for site in find_sites(built) if site.kind == kind]
        if any(site.base_rate > 0 for site in sites):
            DropoutScheduler(built, none(), kind=kind)  # stays on the model and holds them at 0
    return built


def _without_task(build: Callable[[], Any], task: Task) -> Any:
    return build()


def _return_value(value: Any) -> Any:
    return value


def _datasets(data: Any) -> Any:
    """Turn each (images, labels) of a pair into a dataset."""
    if isinstance(data, Mapping) and {"train", "test"} <= data.keys():
        data = (data["train"], data["test"])
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return data
    return tuple(_dataset(split) for split in data)


def _dataset(split: Any) -> Any:
    held = (
        isinstance(split, (tuple, list))
        and len(split) == 2
        and all(isinstance(array, (Tensor, np.ndarray)) for array in split)
    )
    if not held:
        return split
    images, labels = (torch.as_tensor(array) for array in split)
    channels = (1, 3, 4)
    if (
        isinstance(split[0], np.ndarray)
        and images.dim() == 4
        and images.shape[3] in channels
        and images.shape[1] not in channels
    ):
        images = images.permute(0, 3, 1, 2)  # the channels are last, as in a single picture
    if len(images) != len(labels):
        raise ConfigError(
            f"data has {len(images)} images and {len(labels)} labels: expected as many of each"
        )
    return TensorDataset(images, labels)


def _make_code(
    name: str, value: Callable[..., Any], digests: dict[str, str], paths: Iterable[Path]
) -> Code:
    return Code(
        name=name,
        value=value,
        files=dict(sorted(digests.items())),
        digest=_hash(digests),
        paths=tuple(sorted(paths)),
    )


def _name(label: str, digests: Mapping[str, str]) -> str:
    """Make a name that no module has: a prefix, the object's own name, digits of its digest."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "", label) or "object"
    digits = _hash(digests)[:_SHORT]
    return f"{OBJECT}{plain}_{digits}"


def _hash(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


def _digest_of_tensor(value: Tensor) -> str:
    tensor = value.detach().cpu().contiguous()
    content = b""
    if tensor.numel():
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content).hexdigest()


def _parameters(value: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters; ``["task"]`` if they cannot be read."""
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return ["task"]


class _Reader:
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
        self._seen: dict[
            int, Any
        ] = {}  # by id; holding the objects keeps their ids from being reused

    def add_structure(self, model: nn.Module) -> None:
        """Add a module without its registered weights: its classes and its public attributes."""
        for name, module in model.named_modules():
            self.found[f"module {name}"] = _qualified(type(module))
            self.add(type(module))
            for key, value in vars(module).items():
                if not key.startswith("_") and key != "training":
                    self.add(value, f"{name}.{key}")

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
        elif isinstance(value, nn.Module):
            self.add_structure(value)
            self.found[f"{where} weights"] = _hash(
                {name: _digest_of_tensor(each) for name, each in value.state_dict().items()}
            )
        elif isinstance(value, Tensor):
            self.found[where] = _digest_of_tensor(value)
        else:
            self._add_instance(value, where)

    def _add_all(self, values: Iterable[Any], where: str) -> None:
        for index, value in enumerate(values):
            self.add(value, f"{where}[{index}]")

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
        """Add a function or class: its whole file or, in a notebook or script, its text and uses.

        The defaults of a function and the variables that it captures are added too.
        """
        module = getattr(value, "__module__", None) or "builtins"
        if is_installed(module):
            self.found[_qualified(value)] = "installed"
        elif module != "__main__":
            self._add_module(module)
        elif isinstance(value, type):
            for base in value.__mro__[1:]:
                self.add(base)
            for name, member in sorted(vars(value).items()):
                if callable(member) or not name.startswith("__"):
                    self._add_member(member, f"{_qualified(value)}.{name}")
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
                f"{self.what} uses {_qualified(function)}, whose source cannot be found, so a "
                "change to it would go unnoticed; write it in a file or in a cell of a notebook"
            ) from error
        self.found[_qualified(function)] = hashlib.sha256(text.encode()).hexdigest()
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


def _qualified(value: Any) -> str:
    module = getattr(value, "__module__", None) or "builtins"
    name = getattr(value, "__qualname__", type(value).__name__)
    return f"{module}.{name}"
