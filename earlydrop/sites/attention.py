"""Attention whose fused kernel takes the dropout rate as a float."""

from __future__ import annotations

from typing import Any

import torch

from earlydrop.sites.layers import released
from earlydrop.sites.link import LINK, Link, Scheduled, check_recomputation, compiler_watches, outside_the_graph


class Attention(Scheduled):
    """A timm attention module whose attention dropout is driven.

    Its fused kernel takes the rate as a float. While training with the dropout on, it gives way to the plain path under
    torch.compile, and wherever fast masks were asked for; otherwise it is used as the model was built.
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
        if self.training and bank.on and (bank.fast_masks or torch.compiler.is_compiling()):
            return False
        return bool(self.__dict__["fused_attn"])

    @fused_attn.setter
    def fused_attn(self, value: bool) -> None:
        self.__dict__["fused_attn"] = value

    @property
    def attn_drop_p(self) -> float:
        """The copy of the dropout's rate that timm's differential attention keeps beside it: the live one."""
        return float(self.get_submodule("attn_drop").p)  # type: ignore[attr-defined]
