"""Find the modules inside wrappers (torch.compile, DDP, FSDP, ...), and names without wrappers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from torch import nn

_T = TypeVar("_T")

# Keys of the module inside a wrapper: of torch.compile, of activation checkpointing, of FSDP.
_INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# Wrapper classes with the module inside under the key "module".
_WRAPPER_CLASSES = ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine")


def _key_inside(module: nn.Module) -> str | None:
    """The key of the module inside a wrapper; None for a module that is no wrapper."""
    held = module._modules  # the _modules of a scripted module has no get()
    for key in _INSIDE:
        if key in held:
            return key
    names = [cls.__name__ for cls in type(module).__mro__]
    holds = "module" in held and any(name in _WRAPPER_CLASSES for name in names)
    return "module" if holds else None


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside the innermost wrapper; the model itself if it has none.

    It knows the wrappers of torch.compile, DistributedDataParallel, DataParallel, DeepSpeed, FSDP
    and checkpointing.
    """
    while (key := _key_inside(model)) is not None:
        model = model.get_submodule(key)
    return model


def clean(name: str) -> str:
    """A dotted name without the keys of wrappers.

    The key ``module`` (DistributedDataParallel, DataParallel, DeepSpeed) stays, since a model may
    use it too.
    """
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def named_modules(
    model: nn.Module, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with their names in the model as it was built, without wrappers.

    The order is that of ``model.named_modules()``. A wrapper has the name of the module inside.
    """
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if remove_duplicate:
            if id(module) in seen:
                return
            seen.add(id(module))
        yield name, module
        inside = _key_inside(module)
        for key, child in module._modules.items():
            if child is not None:
                child_name = f"{name}.{key}" if name else key
                yield from visit(name if key == inside else child_name, child)

    yield from visit("", model)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a model with their names in the model as it was built, each once.

    The order is that of ``model.named_parameters()``.
    """
    seen: set[int] = set()
    for name, module in named_modules(model):
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{key}" if name else key, parameter


def renamed(saved: Mapping[str, _T], here: Collection[str]) -> dict[str, _T]:
    """Rename saved values to the names in this model.

    The values may have been saved while the model had other wrappers. A name stays if it has no
    counterpart here, or if another saved name has the same counterpart.
    """
    counterpart = {name: name if name in here else _without_wrappers(name, here) for name in saved}
    taken = list(counterpart.values())
    return {(new if taken.count(new) == 1 else old): saved[old] for old, new in counterpart.items()}


def _without_wrappers(name: str, here: Collection[str]) -> str:
    """The counterpart of a name among the names here; the name itself if there is none."""
    cleaned = clean(name)
    unwrapped = ".".join(part for part in cleaned.split(".") if part != "module")
    for candidate in (cleaned, unwrapped):
        if candidate in here:
            return candidate
    return name
