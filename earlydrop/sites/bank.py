"""The rates of the sites that one scheduler drives: on the host, and as one float32 vector on each device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

_REMEMBERED = 1_024  # changes of the rate; a graph older than all of them is taken to be as old as the first


class _Change(NamedTuple):
    """A change of the rates, and when it was."""

    node: int  # the number that autograd gives to the first node made after it, in this thread
    value: float | None  # of the largest site; None: every site at its base rate


class RateBank:
    """What driven modules read their rates from.

    In eager mode a module reads its rate as a Python float; a compiled graph reads it from a vector that is updated in place, so that
    a new rate never means a new graph.

    Args:
        names: The sites' names.
        base_rates: The rates that they were built with.
        kinds: ``"unit"`` or ``"path"`` for each.
        fast_masks: Whether nn.Dropout layers draw 16-bit masks.
    """

    def __init__(self, names: Sequence[str], base_rates: Sequence[float], kinds: Sequence[str], fast_masks: bool = False) -> None:
        built = list(zip(kinds, base_rates, strict=True))
        largest = {kind: max(base for each, base in built if each == kind) for kind in set(kinds)}
        self.shares = [base / largest[kind] if largest[kind] > 0 else 1.0 for kind, base in built]
        self.names = list(names)
        self.base_rates = list(base_rates)
        self.rates = [0.0] * len(built)
        self.forward_rates = [0.0] * len(built)
        self.value = 0.0
        self.on = False
        self.silent = False
        self.rises = False  # off now, but a later rate is known to be above 0
        self.plain_path = [False] * len(built)  # whether the module that reads the rate needs none of it while it is on
        self.fast_masks = fast_masks
        self.thread = threading.get_ident()  # that changed the rates last: autograd numbers the nodes of each thread apart
        self.other_thread = False  # whether a forward ran in another one since
        self._at_base = False
        self._changes = deque([_Change(-1, None)], maxlen=_REMEMBERED)  # before this bank the sites had their base rates
        self._vectors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._remember()

    def set(self, value: float) -> None:
        """Set every site's rate to ``value``, that of the largest site, times the site's share of it."""
        if value == self.value:
            return
        self.value = value
        self._at_base = False
        self.rates[:] = [value * share for share in self.shares]
        self.on = value > 0 and not self.silent
        self._remember()
        for shares, vector in self._vectors.values():
            with torch.inference_mode(vector.is_inference()):
                torch.mul(shares, value, out=vector)  # in place: compiled graphs hold this memory

    def hold_base_rates(self) -> None:
        """Set every site to the rate that it was built with, whatever its kind."""
        self.rates[:] = self.base_rates
        self.on = any(rate > 0 for rate in self.rates) and not self.silent
        self._at_base = True
        self._remember()

    @contextmanager
    def at_base_rates(self) -> Iterator[None]:
        """Within it eager forwards drop at the rates that the sites were built with."""
        rates, on, forward_rates, at_base = list(self.rates), self.on, list(self.forward_rates), self._at_base
        self.hold_base_rates()
        try:
            yield
        finally:
            self.rates[:], self.on, self.forward_rates[:] = rates, on, forward_rates
            self._at_base = at_base
            self._remember()

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Within it nothing drops and every rate reads 0; the rates that are set stay known, for layers whose test arithmetic uses them."""
        before, forward_rates = self.silent, list(self.forward_rates)
        self.silent, self.on = True, False
        self._remember()
        try:
            yield
        finally:
            self.silent = before
            self.on = any(rate > 0 for rate in self.rates) and not before  # a rate may have been set in between
            self._remember()
            self.forward_rates[:] = forward_rates  # a backward may still be to come

    def rate(self, index: int) -> float:
        """The rate that a site drops at now."""
        return 0.0 if self.silent else self.rates[index]

    def _remember(self) -> None:
        """Note since which node of the autograd graph the present rates hold."""
        value = 0.0 if self.silent else None if self._at_base else self.value
        last = self._changes[-1].value
        thread = threading.get_ident()
        if thread != self.thread:
            self.thread, self.other_thread = thread, False
            self._changes = deque([_Change(-1, last)], maxlen=_REMEMBERED)
        if value != last:
            self._changes.append(_Change(torch._C._autograd._get_sequence_nr(), value))

    def rate_at(self, index: int, node: int) -> float:
        """The rate that a site had when a node of the autograd graph was made, by the thread that changes the rates.

        Args:
            index: The site's place.
            node: The node's sequence number.

        Returns:
            Its rate then.
        """
        value = next((change.value for change in reversed(self._changes) if change.node <= node), self._changes[0].value)
        if value is None:
            return float(self.base_rates[index])
        return value * self.shares[index]

    def view(self, index: int, device: torch.device) -> Tensor:
        """The rate of one site as a 0-d float32 tensor on a device; it follows `set`."""
        if device not in self._vectors:
            with torch.inference_mode(False), torch.no_grad():
                shares = torch.tensor(self.shares, dtype=torch.float32, device=device)
                self._vectors[device] = (shares, shares * self.value)
        return self._vectors[device][1][index]
