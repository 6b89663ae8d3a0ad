"""`RateBank`: the rates of all sites of one scheduler.

The rates are floats on the host, and one float32 vector on each device. The operator of compiled
attention reads a float64 vector on the host.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# How many changes of the rate are kept. An autograd graph that is older than all of them gets the
# rate of the oldest change.
_REMEMBERED = 1_024


class _Change(NamedTuple):
    """A change of the rates, and its time."""

    node: int  # autograd's number of the first node made after the change, in this thread
    value: float | None  # rate of the sites with share 1; None: every site has its base rate


class RateBank:
    """The rates that driven modules read.

    In eager mode a module reads its rate as a Python float. A compiled graph reads it from a vector
    that is updated in place, so a new rate needs no new graph.

    Args:
        names: Names of the sites.
        base_rates: Base rate of each site.
        kinds: Kind of each site, ``"unit"`` or ``"path"``.
        fast_masks: Whether nn.Dropout layers draw 16-bit masks.
    """

    def __init__(
        self,
        names: Sequence[str],
        base_rates: Sequence[float],
        kinds: Sequence[str],
        fast_masks: bool = False,
    ) -> None:
        largest: dict[str, float] = {}
        for kind, base in zip(kinds, base_rates, strict=True):
            largest[kind] = max(base, largest.get(kind, base))
        self.shares = [
            base / largest[kind] if largest[kind] > 0 else 1.0
            for kind, base in zip(kinds, base_rates, strict=True)
        ]
        self.names = list(names)
        self.base_rates = list(base_rates)
        self.rates = [0.0] * len(self.shares)
        # The rate of each site in its last forward (see `guards`).
        self.last_forward_rates = [0.0] * len(self.shares)
        self.value = 0.0
        self.on = False
        self.silent = False
        self.rises = False  # the first rate is 0, and a later one is known to be above 0
        # Rates of the sites inside an attention of timm, (1,) float64 on the host; None for other
        # sites. The operator of `attention` reads them. They are not 0-d, since torch.compile
        # treats a 0-d float64 tensor on the host as a Python number.
        self.attention_rates: list[Tensor | None] = [None] * len(self.shares)
        self.fast_masks = fast_masks
        # The thread that changed the rates last. autograd counts the nodes of each thread
        # separately.
        self.thread = threading.get_ident()
        self.other_thread = False  # whether a forward ever ran in another thread than this one
        self._at_base = False
        # Before this bank the sites had their base rates.
        self._changes = deque([_Change(-1, None)], maxlen=_REMEMBERED)
        self._vectors: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._remember()

    def set(self, value: float) -> None:
        """Set the rate of each site to ``value`` times its share.

        The sites with the largest base rate of their kind have share 1.
        """
        if value == self.value and not self._at_base:
            return
        self.value, self._at_base = value, False
        self._refresh()
        for shares, vector in self._vectors.values():
            torch.mul(shares, value, out=vector)  # in place: compiled graphs hold this memory

    def hold_base_rates(self) -> None:
        """Set every site of both kinds to its base rate, for eager forwards."""
        self._at_base = True
        self._refresh()

    def _refresh(self) -> None:
        """Update the rates and ``on``."""
        scaled = [self.value * share for share in self.shares]
        self.rates[:] = self.base_rates if self._at_base else scaled
        self.on = any(rate > 0 for rate in self.rates) and not self.silent
        self._remember()

    @contextmanager
    def at_base_rates(self) -> Iterator[None]:
        """Within it, eager forwards drop at the base rates."""
        was_at_base, last_forward_rates = self._at_base, list(self.last_forward_rates)
        self.hold_base_rates()
        try:
            yield
        finally:
            self._at_base = was_at_base
            self._refresh()
            self.last_forward_rates[:] = last_forward_rates

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Within it, nothing drops and every rate reads 0.

        The rates stay in ``rates``, for layers that use them at test.
        """
        was_silent, last_forward_rates = self.silent, list(self.last_forward_rates)
        self.silent = True
        self._refresh()
        try:
            yield
        finally:
            self.silent = was_silent
            self._refresh()
            self.last_forward_rates[:] = last_forward_rates  # for a backward that is still to come

    def rate(self, index: int) -> float:
        """The present drop rate of a site."""
        return 0.0 if self.silent else self.rates[index]

    def _remember(self) -> None:
        """Note the first node of the autograd graph for which the present rates hold."""
        value: float | None = self.value
        if self.silent:
            value = 0.0
        elif self._at_base:
            value = None
        last = self._changes[-1].value
        thread = threading.get_ident()
        if thread != self.thread:
            self.thread, self.other_thread = thread, False
            self._changes = deque([_Change(-1, last)], maxlen=_REMEMBERED)
        if value != last:
            self._changes.append(_Change(torch._C._autograd._get_sequence_nr(), value))

    def rate_at(self, index: int, node: int) -> float:
        """The rate of a site at the time when a node of the autograd graph was made.

        The node must be of the thread that changes the rates.
        """
        earlier = (change.value for change in reversed(self._changes) if change.node <= node)
        value = next(earlier, self._changes[0].value)
        if value is None:
            return float(self.base_rates[index])
        return value * self.shares[index]

    def view(self, index: int, device: torch.device) -> Tensor:
        """The rate of one site as a 0-d float32 tensor on a device. `set` updates it."""
        return self._vector(device, torch.float32)[index]

    def hold_for_attention(self, index: int) -> None:
        """Keep the rate of a site inside an attention in `attention_rates`."""
        vector = self._vector(torch.device("cpu"), torch.float64)
        self.attention_rates[index] = vector[index : index + 1]

    def _vector(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rates of all sites on a device. `set` updates them."""
        if (device, dtype) not in self._vectors:
            with torch.inference_mode(False):
                shares = torch.tensor(self.shares, dtype=dtype, device=device)
                self._vectors[device, dtype] = (shares, shares * self.value)
        return self._vectors[device, dtype][1]
