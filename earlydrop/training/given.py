"""Models and data that are given as Python objects: their names and digests.

A model's digest is made of its code and, if it is a module, of its weights. A dataset's digest is
made of its content, and a `Source`'s of its code and its ``digest``. For code from a source file,
the whole file is hashed, as for ``module:function``. In a notebook or a script, the functions and
everything that they use are hashed. An object that cannot be hashed is refused, because a change to
it would go unnoticed.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset

from earlydrop.scheduler import DropoutScheduler
from earlydrop.schedules import none
from earlydrop.sites import Kind, find_sites
from earlydrop.training.data.own import channels_last, digest_of_images, pair_of, read_images
from earlydrop.training.data.source import Source
from earlydrop.training.fields import ConfigError
from earlydrop.training.models.build import Task
from earlydrop.training.object_digest import Reader, digest_of, digest_of_weights, qualified
from earlydrop.training.plugins import OBJECT, Code, is_installed, raised, sources_from_here
from earlydrop.training.stale import differs_from_file

_SHORT = 6  # hexadecimal digits of a digest in a name


def given_model(model: Any) -> Code:
    """Name and hash a model given as an object: a module, or a function that builds one.

    The function is called with the `Task`, or with nothing.

    Raises:
        ConfigError: It is neither, a scheduler drives it already, it is a function of an installed
            package whose first parameter is not ``task``, it has lazy layers that have seen no
            batch, or it holds an object that cannot be hashed.
    """
    if isinstance(model, nn.Module):
        if any(site.driven for site in find_sites(model)):
            raise ConfigError(
                f"model is a {type(model).__name__} whose dropout is driven already: call "
                "restore() of its scheduler first"
            )
        lazy = [name for name, value in model.state_dict().items() if is_lazy(value)]
        if lazy:
            raise ConfigError(
                f"model has weights without a shape ({', '.join(lazy[:3])}), as lazy layers do "
                "before their first forward pass: pass one batch through the model first"
            )
        reader = Reader("model")
        reader.add_structure(model)
        # The name leaves the weights out: they differ between the seeds of one arm.
        name = _name(type(model).__name__, reader.found)
        return _make_code(
            name,
            functools.partial(_as_given, model),
            reader.found | {"weights": digest_of_weights(model)},
            reader.paths,
        )
    if isinstance(model, str):
        raise ConfigError(f"model is {model!r}: a name is given as an override, model.name={model}")
    if not callable(model):
        raise ConfigError(
            f"model is a {type(model).__name__}: expected a torch.nn.Module, or a function that "
            "builds one"
        )
    function = model.func if isinstance(model, functools.partial) else model
    module = getattr(function, "__module__", None) or ""
    parameters = _parameters(model)
    takes_task = parameters[:1] in ([], ["task"])
    if is_installed(module) and not takes_task:
        raise ConfigError(
            f"model is {qualified(function)}, a function of an installed package whose first "
            "parameter is not named task: pass lambda task: ..., or name the model with the "
            "override model.name="
        )
    reader = Reader("model")
    reader.add(model)
    build = model if parameters else functools.partial(_without_task, model)
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
    if file is None or files.get(module) != Path(file).resolve():
        return None
    if differs_from_file(module, files[module]):
        return None  # `given_model` then refuses it, and says what to do
    same = found is value
    return f"{module}:{name}" if same and _parameters(value) else None


def given_data(data: Any) -> Code:
    """Name and hash data given as an object.

    The data is one of:

    - a pair (training, test), or a mapping with ``train`` and ``test``, each a dataset or (images,
      labels);
    - a `Source`;
    - a function without arguments that returns one of these.

    Raises:
        ConfigError: It is none of these, it is a DataLoader, calling or reading it raised an
            error, images and labels differ in number, or an item is not an image with a label.
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
        reader = Reader("data")
        reader.add(type(data))
        digests = reader.found | {"content": str(getattr(data, "digest", ""))}
        name = _name(type(data).__name__, digests)
        return _make_code(name, functools.partial(_return_value, data), digests, reader.paths)
    if isinstance(data, DataLoader):
        raise ConfigError(
            "data is a DataLoader: expected a pair of datasets, for training and for test, such as "
            "(loader.dataset, ...)"
        )
    splits = pair_of("data", _datasets(data), verb="it is")
    try:
        read = {split: read_images("data", split, dataset) for split, dataset in splits.items()}
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"data: reading it raised {raised(error)}") from error
    digests = {"content": digest_of_images(read)}
    pair = {split: TensorDataset(*tensors) for split, tensors in read.items()}
    name = _name(type(splits["train"]).__name__, digests)
    return _make_code(name, functools.partial(_return_value, pair), digests, set())


def _as_given(model: nn.Module, task: Task) -> nn.Module:
    """Copy a module. Sites of a kind that the run does not schedule get rate 0."""
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
    if not isinstance(split, (tuple, list)) or len(split) != 2:
        return split
    is_array = [isinstance(part, (Tensor, np.ndarray)) for part in split]
    if is_array[0] and not is_array[1] and len(split[0]) > 2:
        raise ConfigError(
            f"data has an array of images and labels of type {type(split[1]).__name__}: expected "
            "an array or a tensor of labels"
        )
    if not all(is_array):
        return split
    images, labels = (_as_tensor(array) for array in split)
    if isinstance(split[0], np.ndarray) and images.dim() == 4 and channels_last(images.shape[1:]):
        images = images.permute(0, 3, 1, 2)  # from N H W C to N C H W
    if len(images) != len(labels):
        raise ConfigError(
            f"data has {len(images)} images and {len(labels)} labels: expected as many of each"
        )
    return TensorDataset(images, labels)


def _as_tensor(array: Any) -> Tensor:
    """A tensor of an array. The array may be a reversed view, or of another byte order."""
    if isinstance(array, Tensor):
        return array
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.as_tensor(np.ascontiguousarray(native))
    except TypeError as error:
        raise ConfigError(
            f"data has an array of {array.dtype}: expected numbers; number the classes from 0"
        ) from error


def _make_code(
    name: str, value: Callable[..., Any], digests: dict[str, str], paths: Iterable[Path]
) -> Code:
    return Code(
        name=name,
        value=value,
        files=dict(sorted(digests.items())),
        digest=digest_of(digests),
        paths=tuple(sorted(paths)),
    )


def _name(label: str, digests: Mapping[str, str]) -> str:
    """Make a name that no module has: a prefix, the object's own name, digits of its digest."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "", label) or "object"
    digits = digest_of(digests)[:_SHORT]
    return f"{OBJECT}{plain}_{digits}"


def _parameters(value: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters; ``["task"]`` if they cannot be read."""
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return ["task"]
