"""The drivers: a mixin for each sort of drop layer, put in front of a module's own class (see `earlydrop.sites.link`).

In training, a layer whose scheduler is off returns its input; on, it runs the module's own code with the rate as a Python float (eager
mode, bit for bit what setting the attribute by hand gives), or the arithmetic of `earlydrop.sites.masks` with the rate as a tensor (under
torch.compile, so that a new rate needs no new graph). What can not work with a tensor raises under torch.compile and says what to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.sites import masks
from earlydrop.sites.bank import RateBank
from earlydrop.sites.link import (
    LINK,
    RATE,
    Link,
    Scheduled,
    check_recomputation,
    compiler_watches,
    original_class,
    outside_the_graph,
)


def released(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a module that was given back while someone holds its driver's: ``torch.compiler.disable(m.forward)`` does."""
    return original_class(module).forward(module, *args, **kwargs)


class MaskLayer(Scheduled):
    """A layer that multiplies its input by a random mask in training and returns it as it is otherwise."""

    training: bool

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:  # first: evaluation then needs no guard on the rest
            return x
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, x)  # type: ignore[no-any-return]
        bank = link.bank
        if torch.compiler.is_compiling():
            return self._masked(x, self.__dict__[RATE]) if bank.on else x
        if compiler_watches():
            return outside_the_graph(self, x)  # type: ignore[no-any-return]
        check_recomputation(bank, link.index)
        return self._eager(x, bank, bank.rates[link.index]) if bank.on else x

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
        link: Link = self.__dict__[LINK]
        if x.is_nested:
            if link.bank.fast_masks:
                masks.refuse_nested(x)
            return self._in_place(x, masks.nested(x, rate))
        if link.bank.fast_masks and masks.COMPILED and x.device.type == "cpu":
            return self._in_place(x, masks.fast_inverted(x, rate))
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
        options["couple_channels"] = self.__dict__.get("couple_channels", False)  # not before timm 1.0.23
        options["scale_by_keep"] = self.__dict__.get("scale_by_keep", True)
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
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, x)  # type: ignore[no-any-return]
        bank = link.bank
        testing = not self.training or bank.silent
        if torch.compiler.is_compiling():
            rate: Tensor = self.__dict__[RATE]
            if testing:
                return (x * (1.0 - rate)).to(x.dtype)  # not asking whether the bank is on: one graph for all evaluations
            return masks.inverted(x, rate, x.shape, scale=False) if bank.on else x
        if compiler_watches():
            return outside_the_graph(self, x)  # type: ignore[no-any-return]
        if testing:
            return x * (1.0 - bank.rates[link.index])
        check_recomputation(bank, link.index)
        return super().forward(x) if bank.on else x  # type: ignore[misc,no-any-return]


class SharedMaskDropout(MaskLayer):
    """earlydrop's SharedMaskDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.inverted(x, rate, (1, *x.shape[1:]))


class GaussianDropout(MaskLayer):
    """earlydrop's GaussianDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.gaussian(x, rate)


class EagerOnly(Scheduled):
    """A module that hands rates, its own or those of modules inside, to kernels as Python floats.

    Under torch.compile it runs in eager mode while they are on or will be: the graph breaks around it, since every new rate would
    otherwise compile a new graph. Under ``fullgraph=True`` torch refuses that, with the reason.
    """

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, *args, **kwargs)
        if not self.training:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return outside_the_graph(self, *args, **kwargs) if link.changing() else super().forward(*args, **kwargs)  # type: ignore[misc]
        if compiler_watches():
            return outside_the_graph(self, *args, **kwargs)
        for rate in link.all_rates:
            check_recomputation(rate.bank, rate.place)
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class Recurrent(Scheduled):
    """nn.LSTM, nn.GRU and nn.RNN: torch.compile runs them in eager mode, where they read ``dropout`` at each call."""

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, *args, **kwargs)
        if self.training and not torch.compiler.is_compiling():
            if compiler_watches():
                return outside_the_graph(self, *args, **kwargs)
            check_recomputation(link.bank, link.index)
        return super().forward(*args, **kwargs)  # type: ignore[misc]
