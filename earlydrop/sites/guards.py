"""Guards of driven modules against outdated rates.

- torch.compile stores a Python float as a constant in its graph. `outside_the_graph` runs a module
  in eager mode, and `refuse` raises where that is not possible.
- Activation checkpointing runs a forward again during the backward. `check_recomputation` refuses
  a rate that changed in between.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch._compile
import torch.utils.checkpoint

from earlydrop.sites.bank import RateBank


def refuse(site: str, module: str, reader: str) -> NoReturn:
    """Raise, because a rate cannot change inside a compiled graph.

    ``module`` is the path of the module that holds the site, ``reader`` what reads the rate, in
    words.
    """
    path = f"model.get_submodule({module!r})" if module else "model"
    raise RuntimeError(
        f"site {site!r} cannot have a changing rate under torch.compile: {reader} hands it to a "
        "kernel as a Python float, so every new rate would compile a new graph. Leave that module "
        f"out of the compiled part (m = {path}; m.forward = torch.compiler.disable(m.forward)), "
        "choose other sites with sites=, replace it by a layer that calls an nn.Dropout, or train "
        "without torch.compile"
    )


# torch.compiler.disable() sets these attributes, but it also imports the compiler, so they are set
# here by hand. Tracing stops at such a function. The function then runs in Python and raises.
refuse._torchdynamo_disable = True  # type: ignore[attr-defined]
refuse._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "earlydrop: this drop rate cannot change inside a compiled graph"
)


# Whether torch.compile watches the calls of a frame that runs in Python, as after a graph break. If
# so, it would compile each called function on its own, with the rate as a constant.
compiler_watches: Callable[[], object] = torch._C._dynamo.eval_frame.get_eval_frame_callback


# Like torch.compiler.disable(), but the compiler is imported at the first call, not at once.
@torch._compile._disable_dynamo
def outside_the_graph(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a driven module in eager mode. Tracing stops here."""
    return type(module).forward(module, *args, **kwargs)


outside_the_graph._torchdynamo_disable = True  # type: ignore[attr-defined]
outside_the_graph._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "earlydrop: this module hands a drop rate to a kernel as a Python float, so while the rate "
    "changes it runs outside of the graph: leave out fullgraph=True, choose other sites with "
    "sites=, or replace the module by one that calls an nn.Dropout"
)


def check_recomputation(bank: RateBank, index: int) -> None:
    """Note the rate of a site in a forward, and refuse another rate in its recomputation.

    Activation checkpointing runs a forward again during the backward.
    """
    rate = bank.rate(index)
    if torch._C._current_graph_task_id() == -1:  # no backward is running: an ordinary forward
        bank.last_forward_rates[index] = rate
        if threading.get_ident() != bank.thread:
            bank.other_thread = True
        return
    then = _rate_of_graph(bank, index)
    if then != rate:
        raise RuntimeError(
            f"the rate of site {bank.names[index]!r} changed from {then:g} to {rate:g} between a "
            "forward and its recomputation in the backward: call scheduler.step() after the "
            "backward, once per optimizer step"
        )


def _rate_of_graph(bank: RateBank, index: int) -> float:
    """The rate of a site in the forward that is now computed again.

    That forward made the autograd node that is running now. Autograd numbers nodes in the order in
    which they are made, so the number of the node gives the time of the forward.
    """
    node = torch._C._current_autograd_node()
    if bank.other_thread or node is None:  # numbers of another thread cannot be compared
        return bank.last_forward_rates[index]
    then = bank.rate_at(index, node._sequence_nr())
    # In nested checkpoints, the outer recomputation made the node of the inner one, not the first
    # forward. Its number says nothing then, but the outer recomputation has been checked.
    if then != bank.rate(index) and _recomputing_twice():
        return bank.rate(index)
    return then


def _recomputing_twice() -> bool:
    """Whether a reentrant checkpoint is recomputed inside the recomputation of another."""
    recomputations = 0
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and recomputations < 2:
        if frame.f_code is _RECOMPUTING:
            recomputations += 1
        frame = frame.f_back
    return recomputations == 2


_RECOMPUTING = torch.utils.checkpoint.CheckpointFunction.backward.__code__
