"""The drivers: one mixin for each sort of drop layer (see `earlydrop.sites.driven`).

In training, a driven drop layer returns its input while all rates are 0. Otherwise:

- in eager mode the layer runs its own code with the rate as a Python float, so the result is bit
  for bit that of the layer with its rate set by hand. With fast masks, nn.Dropout and timm's
  attention run other code;
- under torch.compile the layer runs the arithmetic of `earlydrop.sites.masks` with the rate as a
  tensor, so a new rate needs no new graph. A layer that cannot take a tensor runs outside of the
  graph, or raises an error that says what to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.sites import attention, masks
from earlydrop.sites.bank import RateBank
from earlydrop.sites.driven import LINK, RATE, Link, Scheduled, original_class
from earlydrop.sites.guards import check_recomputation, compiler_watches, outside_the_graph


def released(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a released module's own forward.

    A driver's forward may still be called after the release, for example where
    ``m.forward = torch.compiler.disable(m.forward)`` has stored it.
    """
    return original_class(module).forward(module, *args, **kwargs)


def only_input(x: Tensor | None, by_name: dict[str, Tensor]) -> Tensor:
    """The single input of a layer, passed by position or by keyword of any name."""
    inputs = list(by_name.values()) if x is None else [x, *by_name.values()]
    if len(inputs) != 1:
        raise TypeError(f"forward() got {len(inputs)} inputs: expected one")
    return inputs[0]


# Each ``forward`` below handles these cases, where they apply to its layer:
#
# - released: there is no link any more, and the layer's own forward runs;
# - evaluation;
# - inside a graph of torch.compile: the rate is a tensor, or the module runs outside the graph;
# - outside a graph, while the compiler watches calls: the module runs outside the graph;
# - eager training: activations must be recomputed at the rate of the first forward.


class MaskDriver(Scheduled):
    """Driver of a layer that applies a random mask to its input in training.

    In evaluation mode such a layer returns its input.
    """

    training: bool

    def forward(self, x: Tensor | None = None, **by_name: Tensor) -> Tensor:
        if x is None or by_name:
            x = only_input(x, by_name)
        if not self.training:  # first: compiled evaluation needs no guard on the rest
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


class DropoutDriver(MaskDriver):
    """Driver of nn.Dropout."""

    def _eager(self, x: Tensor, bank: RateBank, rate: float) -> Tensor:
        if bank.fast_masks:
            return self._in_place(x, masks.fast_dropout(x, rate))
        return super()._eager(x, bank, rate)

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        link: Link = self.__dict__[LINK]
        if x.is_nested:
            if link.bank.fast_masks:
                masks.refuse_nested(x)  # raises
            return self._in_place(x, masks.nested(x, rate))
        if link.bank.fast_masks and masks.COMPILED and x.device.type == "cpu":
            return self._in_place(x, masks.fast_inverted(x, rate))
        return self._in_place(x, masks.inverted(x, rate, x.shape))


class FeatureDropoutDriver(MaskDriver):
    """Driver of nn.Dropout1d, Dropout2d and Dropout3d, which drop whole channels."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        # A 3-D input of nn.Dropout2d is a batch, (N, C, L), as torch reads it.
        unbatched_1d = isinstance(self, nn.Dropout1d) and x.dim() == 2
        unbatched_3d = isinstance(self, nn.Dropout3d) and x.dim() == 4
        leading = 1 if unbatched_1d or unbatched_3d else 2
        return self._in_place(x, masks.inverted(x, rate, _mask_shape(x, leading)))


class AlphaDropoutDriver(MaskDriver):
    """Driver of nn.AlphaDropout. Like torch, it ignores ``inplace``."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.alpha(x, rate, x.shape)


class FeatureAlphaDropoutDriver(MaskDriver):
    """Driver of nn.FeatureAlphaDropout. Like torch, it ignores ``inplace``."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.alpha(x, rate, _mask_shape(x, 2))


def _mask_shape(x: Tensor, leading: int) -> tuple[int, ...]:
    """The shape of a mask: the ``leading`` sizes of x, then ones."""
    return (*x.shape[:leading], *[1] * (x.dim() - leading))


class DropPathDriver(MaskDriver):
    """Driver of DropPath of timm and transformers: stochastic depth per sample."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        scale = getattr(self, "scale_by_keep", True)
        return masks.inverted(x, rate, _mask_shape(x, 1), scale=scale)


class StochasticDepthDriver(MaskDriver):
    """Driver of torchvision's StochasticDepth, per sample (``mode="row"``) or per batch."""

    mode: str

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.inverted(x, rate, _mask_shape(x, 1 if self.mode == "row" else 0))


class TimmDropBlockDriver(MaskDriver):
    """Driver of timm's DropBlock2d."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        options = {
            name: self.__dict__[name] for name in ("block_size", "gamma_scale", "with_noise")
        }
        options["couple_channels"] = self.__dict__.get("couple_channels", False)  # timm >= 1.0.23
        options["scale_by_keep"] = self.__dict__.get("scale_by_keep", True)
        return self._in_place(x, masks.timm_drop_block(x, rate, **options))


class TorchvisionDropBlockDriver(MaskDriver):
    """Driver of torchvision's DropBlock2d and DropBlock3d."""

    block_size: int
    eps: float

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        dropped = masks.torchvision_drop_block(x, rate, self.block_size, self.eps)
        return self._in_place(x, dropped)


class StandardDropoutDriver(Scheduled):
    """Driver of earlydrop's StandardDropout, which uses its rate in evaluation mode too."""

    training: bool

    def forward(self, x: Tensor | None = None, **by_name: Tensor) -> Tensor:
        if x is None or by_name:
            x = only_input(x, by_name)
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, x)  # type: ignore[no-any-return]
        bank = link.bank
        testing = not self.training or bank.silent
        if torch.compiler.is_compiling():
            rate: Tensor = self.__dict__[RATE]
            if testing:
                # This branch does not read bank.on, so one graph serves all evaluations.
                return (x * (1.0 - rate)).to(x.dtype)
            return masks.inverted(x, rate, x.shape, scale=False) if bank.on else x
        if compiler_watches():
            return outside_the_graph(self, x)  # type: ignore[no-any-return]
        if testing:
            return x * (1.0 - bank.rates[link.index])
        check_recomputation(bank, link.index)
        return super().forward(x) if bank.on else x  # type: ignore[misc,no-any-return]


class SharedMaskDropoutDriver(MaskDriver):
    """Driver of earlydrop's SharedMaskDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.inverted(x, rate, (1, *x.shape[1:]))


class GaussianDropoutDriver(MaskDriver):
    """Driver of earlydrop's GaussianDropout."""

    def _masked(self, x: Tensor, rate: Tensor) -> Tensor:
        return masks.gaussian(x, rate)


class EagerOnlyDriver(Scheduled):
    """Driver of a module that passes rates to kernels as Python floats.

    The rates are those of the module or of its submodules. Every new rate would compile a new
    graph. So torch.compile runs the module in eager mode, with a graph break, in training while a
    rate is above 0 or is known to rise later. Under ``fullgraph=True`` torch raises an error with
    the reason instead.
    """

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, *args, **kwargs)
        if not self.training:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            if any(rate.bank.on or rate.bank.rises for rate in link.all_rates):
                return outside_the_graph(self, *args, **kwargs)
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if compiler_watches():
            return outside_the_graph(self, *args, **kwargs)
        for rate in link.all_rates:
            check_recomputation(rate.bank, rate.place)
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class RecurrentDriver(Scheduled):
    """Driver of nn.LSTM, nn.GRU and nn.RNN.

    torch.compile runs these in eager mode, where they read ``dropout`` at each call.
    """

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


class AttentionDriver(Scheduled):
    """Driver of a timm attention whose attention dropout is driven.

    In training, while the dropout is on:

    - with fast masks, the module takes its plain path (``fused_attn=False``), in eager mode too;
    - under torch.compile, the module calls an operator that takes the rate as a tensor, if
      `attention.available` allows it. Otherwise it takes its plain path.

    In all other cases the module runs as it was built.
    """

    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        link: Link | None = self.__dict__.get(LINK)
        if link is None:
            return released(self, *args, **kwargs)
        if self.training and not torch.compiler.is_compiling():
            if compiler_watches():
                return outside_the_graph(self, *args, **kwargs)
            for rate in link.reads:
                check_recomputation(rate.bank, rate.place)
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    @property
    def fused_attn(self) -> bool:
        link: Link = self.__dict__[LINK]
        bank = link.reads[0].bank if link.reads else link.bank
        if self.training and bank.on:
            by_operator = attention.available(self.__dict__[RATE].device)
            if bank.fast_masks or (torch.compiler.is_compiling() and not by_operator):
                return False
        return bool(self.__dict__["fused_attn"])

    @fused_attn.setter
    def fused_attn(self, value: bool) -> None:
        self.__dict__["fused_attn"] = value

    @property
    def attn_drop_p(self) -> Any:
        """The present rate of the dropout. timm's differential attention reads it here."""
        return self.get_submodule("attn_drop").p  # type: ignore[attr-defined]
