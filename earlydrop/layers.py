"""The layers that a scheduler drives: a subclass for each kind of drop layer, swapped in place for a module's class.

Each class here is a mixin in front of the module's own class. In training, a layer whose scheduler is off returns its input; on, it
runs the module's own code with the rate as a Python float (eager mode, bit for bit what setting the attribute by hand gives), or the
arithmetic of `earlydrop.masks` with the rate as a tensor (under torch.compile, so that a new rate needs no new graph). What can not
work with a tensor raises under torch.compile and says what to do.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from earlydrop import masks

if TYPE_CHECKING:
    from earlydrop.sites import RateBank

LINK = "_earlydrop_link"  # in the __dict__ of a driven module: what drives it
RATE = "_earlydrop_rate"  # beside it: the rate as a 0-d tensor, a view of the bank's vector
COPIED_BASE = "_earlydrop_base"  # in the __dict__ of a copy of a driven module: {attribute: (rate when copied, base rate)}


@dataclass(frozen=True)
class Link:
    """What a driven module knows of its scheduler."""

    bank: RateBank
    indices: dict[str, int]  # attribute -> position in the bank
    index: int  # of the first attribute
    original: type[nn.Module]


def _refuse(name: str, layer: str) -> NoReturn:
    raise RuntimeError(
        f"site {name!r} ({layer}) cannot have a changing rate under torch.compile: it hands its rate to a kernel as a Python float, "
        "so every new rate would compile a new graph. Leave it out of the compiled part (module.forward = "
        "torch.compiler.disable(module.forward)), choose other sites with sites=, replace it by a layer that holds an nn.Dropout, "
        "or train without torch.compile"
    )


# What torch.compiler.disable() would set, without importing the compiler for it: tracing stops here, so that the error is raised.
_refuse._torchdynamo_disable = True  # type: ignore[attr-defined]
_refuse._torchdynamo_disable_msg = "earlydrop: this drop rate cannot change inside a compiled graph"  # type: ignore[attr-defined]


class Scheduled:
    """What every driven module shares: moving with the model, and being copied as the plain module that it is."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        result: nn.Module = super()._apply(fn, recurse)  # type: ignore[misc]
        old = self.__dict__[RATE]
        device = fn(torch.empty(0, device=old.device)).device  # where fn moves things; the rate's dtype stays
        if device != old.device:
            link: Link = self.__dict__[LINK]
            self.__dict__[RATE] = link.bank.view(link.index, device)
        return result

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles are plain modules with the rate of this moment, free of the scheduler."""
        link: Link = self.__dict__[LINK]
        state = {key: value for key, value in self.__dict__.items() if key not in (LINK, RATE)}
        for attribute, index in link.indices.items():
            state[attribute] = link.bank.rates[index]
        state[COPIED_BASE] = {a: (link.bank.rates[i], link.bank.base_rates[i]) for a, i in link.indices.items()}
        return copyreg._reconstructor, (link.original, object, None), state  # type: ignore[attr-defined]


def _check_recomputation(bank: RateBank, index: int) -> None:
    """Activation checkpointing runs a forward again during the backward: refuse if the rate has changed in between."""
    if torch._C._current_graph_task_id() == -1:
        bank.forward_rates[index] = bank.rates[index]
    elif bank.forward_rates[index] != bank.rates[index]:
        raise RuntimeError(
            f"the rate of site {bank.names[index]!r} changed from {bank.forward_rates[index]:g} to {bank.rates[index]:g} between a "
            "forward and its recomputation in the backward: call scheduler.step() after the backward, once per optimizer step"
        )


class MaskLayer(Scheduled):
    """A layer that multiplies its input by a random mask in training and returns it as it is otherwise."""

    training: bool

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # first: evaluation then needs no guard on the rest
            return x
        link: Link = self.__dict__[LINK]
        bank = link.bank
        if not bank.on:
            return x
        if torch.compiler.is_compiling():
            return self._masked(x, self.__dict__[RATE])
        _check_recomputation(bank, link.index)
        return self._eager(x, bank, bank.rates[link.index])

    def _eager(self, x: Tensor, bank: RateBank, rate: float) -> Tensor:
        return super().forward(x)  # type: ignore[misc,no-any-return]

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no tensor arithmetic")

    def _in_place(self, x: Tensor, result: Tensor) -> Tensor:
        return x.copy_(result) if getattr(self, "inplace", False) else result


class ElementDropout(MaskLayer):
    """nn.Dropout."""

    def _eager(self, x: Tensor, bank: RateBank, rate: float) -> Tensor:
        if bank.fast_masks:
            return self._in_place(x, masks.fast_dropout(x, rate))
        return super()._eager(x, bank, rate)

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return self._in_place(x, masks.inverted(x, rate, x.shape))


class FeatureDropout(MaskLayer):
    """nn.Dropout1d, Dropout2d and Dropout3d: whole channels."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        unbatched = (isinstance(self, nn.Dropout1d) and x.dim() == 2) or (isinstance(self, nn.Dropout3d) and x.dim() == 4)
        return self._in_place(x, masks.inverted(x, rate, _feature_shape(x, 1 if unbatched else 2)))


class AlphaDropout(MaskLayer):
    """nn.AlphaDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return self._in_place(x, masks.alpha(x, rate, x.shape))


class FeatureAlphaDropout(MaskLayer):
    """nn.FeatureAlphaDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return self._in_place(x, masks.alpha(x, rate, _feature_shape(x, 2)))


def _feature_shape(x: Tensor, leading: int) -> tuple[int, ...]:
    return (*x.shape[:leading], *(1 for _ in range(x.dim() - leading)))


class DropPath(MaskLayer):
    """timm's and transformers' DropPath: stochastic depth by sample."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.inverted(x, rate, _feature_shape(x, 1), scale=getattr(self, "scale_by_keep", True))


class StochasticDepth(MaskLayer):
    """torchvision's StochasticDepth, by sample (``row``) or by batch."""

    mode: str

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.inverted(x, rate, _feature_shape(x, 1 if self.mode == "row" else 0))


class TimmDropBlock(MaskLayer):
    """timm's DropBlock2d."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        options = {name: self.__dict__[name] for name in ("block_size", "gamma_scale", "with_noise")}
        options |= {name: self.__dict__.get(name, True) for name in ("couple_channels", "scale_by_keep")}
        return self._in_place(x, masks.timm_drop_block(x, rate, **options))


class TorchvisionDropBlock(MaskLayer):
    """torchvision's DropBlock2d and DropBlock3d."""

    block_size: int
    eps: float

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return self._in_place(x, masks.torchvision_drop_block(x, rate, self.block_size, self.eps))


class StandardDropout(Scheduled):
    """earlydrop's StandardDropout, whose evaluation depends on the rate too."""

    training: bool

    def forward(self, x: Tensor) -> Tensor:
        link: Link = self.__dict__[LINK]
        bank = link.bank
        if torch.compiler.is_compiling():
            rate: Tensor = self.__dict__[RATE]
            if not self.training:
                return (x * (1.0 - rate)).to(x.dtype)  # not asking whether the bank is on: one graph for all evaluations
            return masks.inverted(x, rate, x.shape, scale=False) if bank.on else x
        if not bank.on:
            return x
        if self.training:
            _check_recomputation(bank, link.index)
        return super().forward(x)  # type: ignore[misc,no-any-return]


class SharedMaskDropout(MaskLayer):
    """earlydrop's SharedMaskDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.inverted(x, rate, (1, *x.shape[1:]))


class GaussianDropout(MaskLayer):
    """earlydrop's GaussianDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.gaussian(x, rate)


class EagerOnly(Scheduled):
    """A layer that hands its rate to a kernel as a Python float: live in eager mode, refused under torch.compile while on."""

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        link: Link = self.__dict__[LINK]
        if self.training and link.bank.on:
            if torch.compiler.is_compiling():
                _refuse(link.bank.names[link.index], link.original.__name__)
            _check_recomputation(link.bank, link.index)
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class Recurrent(Scheduled):
    """nn.LSTM, nn.GRU and nn.RNN: torch.compile runs them in eager mode, where they read ``dropout`` at each call."""


class Attention(Scheduled):
    """A timm attention module whose attention dropout is driven.

    Its fused kernel takes the rate as a float. While training with the dropout on, it gives way to the plain path under
    torch.compile, and wherever fast masks were asked for; otherwise it is used as the model was built.
    """

    training: bool

    @property
    def fused_attn(self) -> bool:
        bank: RateBank = self.__dict__[LINK].bank
        if self.training and bank.on and (bank.fast_masks or torch.compiler.is_compiling()):
            return False
        return bool(self.__dict__["fused_attn"])

    @fused_attn.setter
    def fused_attn(self, value: bool) -> None:
        self.__dict__["fused_attn"] = value


def _copy_of_rate(self: nn.Module) -> float:
    """Timm's differential attention keeps a copy of its dropout's rate beside the dropout: read the live one."""
    return float(self.get_submodule("attn_drop").p)  # type: ignore[arg-type]


def _rate_property(attribute: str) -> property:
    def read(self: nn.Module) -> float:
        link: Link = self.__dict__[LINK]
        if torch.compiler.is_compiling():
            if self.training and link.bank.on:
                _refuse(link.bank.names[link.indices[attribute]], f"{link.original.__name__}.{attribute} read as a float")
            return 0.0  # not used: evaluating, or off
        return link.bank.rates[link.indices[attribute]]

    def write(self: nn.Module, value: float) -> None:
        link: Link = self.__dict__[LINK]
        raise AttributeError(
            f"{attribute} of site {link.bank.names[link.indices[attribute]]!r} is driven by a DropoutScheduler, so setting it to "
            f"{value!r} would have no effect: call the scheduler's restore() first"
        )

    return property(read, write)


@cache
def _scheduled_class(original: type[nn.Module], driver: type, attributes: tuple[str, ...]) -> type[nn.Module]:
    properties: dict[str, Any] = {attribute: _rate_property(attribute) for attribute in attributes}
    if driver is Attention:
        properties["attn_drop_p"] = property(_copy_of_rate)
    names = {key: getattr(original, key) for key in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (driver, original), names | properties)


def link(module: nn.Module, driver: type, bank: RateBank, indices: dict[str, int], device: torch.device) -> None:
    """Make a bank drive a module.

    Args:
        module: The module; its class is swapped in place.
        driver: The mixin to put in front of its class.
        bank: The rates.
        indices: Positions in the bank by attribute; empty for a module that only surrounds a site.
        device: Where the module computes.
    """
    original = type(module)
    index = next(iter(indices.values()), 0)
    module.__dict__.pop(COPIED_BASE, None)
    for attribute, position in indices.items():
        module.__dict__[attribute] = bank.base_rates[position]
    module.__dict__[LINK] = Link(bank, dict(indices), index, original)
    module.__dict__[RATE] = bank.view(index, device)
    module.__class__ = _scheduled_class(original, driver, tuple(indices))  # type: ignore[arg-type]


def unlink(module: nn.Module) -> None:
    """Undo `link`: the module has its own class and its base rate again.

    Args:
        module: A driven module.
    """
    link_of: Link = module.__dict__.pop(LINK)
    del module.__dict__[RATE]
    module.__class__ = link_of.original


def is_scheduled(module: nn.Module) -> bool:
    """Whether a module's class was swapped by `link`.

    Args:
        module: Any module.

    Returns:
        True if it is driven or surrounds a driven site.
    """
    return LINK in module.__dict__


def drives(module: nn.Module, attribute: str) -> bool:
    """Whether one rate of a module is driven.

    Args:
        module: Any module.
        attribute: The attribute that holds the rate.

    Returns:
        True if a bank drives it.
    """
    found: Link | None = module.__dict__.get(LINK)
    return found is not None and attribute in found.indices


def bank_of(module: nn.Module) -> RateBank | None:
    """The bank that drives a module.

    Args:
        module: Any module.

    Returns:
        The bank, or None if the module is not driven.
    """
    found: Link | None = module.__dict__.get(LINK)
    return found.bank if found is not None else None
