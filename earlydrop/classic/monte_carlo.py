"""Monte Carlo dropout: predictions with dropout left on at test (Gal and Ghahramani 2016, arXiv:1506.02142).

Shape legend: B inputs, K classes, T passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from earlydrop.exact import exact
from earlydrop.sites.audit import call
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.sites.unwrap import unwrap
from earlydrop.sites.watch import watch


@dataclass(frozen=True)
class MonteCarloPrediction:
    """What T passes with dropout say.

    Attributes:
        mean: Predictive mean: of the class probabilities, or of the outputs, (B, ...).
        variance: Variance over the passes (1/T), likewise.
        entropy: Entropy of the predictive mean in nats, (B,); None for outputs that are not probabilities.
        mutual_information: Entropy of the mean minus the mean entropy, in nats, (B,): what the passes disagree about (Houlsby et al.
            2011, arXiv:1112.5745); None likewise.
        passes: T.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None
    passes: int


@contextmanager
def _only_dropout_on(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Evaluation mode, but for the modules that drop in a forward in training mode."""
    inner = unwrap(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()  # of nn.TransformerEncoderLayer, which would skip its dropouts
    with leave_no_trace(model):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            dropping = _dropping(inner, inputs)
            model.eval()
            for module in dropping:
                module.training = True  # not train(): the modules inside stay in evaluation mode
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _dropping(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The modules that drop now, found as `earlydrop.audit` finds them; normalisation stays in evaluation mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, (_BatchNorm, _InstanceNorm)):
            module.eval()
    with leave_no_trace(model, inputs), watch(model) as seen:
        outputs = call(model, inputs)
    dropping = {id(draw.module): draw.module for draw in seen.finish(outputs) if draw.module is not None}
    if not dropping:
        raise ValueError(
            f"{type(model).__name__} has no dropout with a rate above 0 now, so every pass would be the same: build it with "
            "dropout, or measure before the schedule switches it off"
        )
    return list(dropping.values())


def _logits(output: Any) -> Tensor:
    """The tensor among what a model returns: itself, or its ``logits``."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model returns a {type(output).__name__} without logits: give select=, a function from it to a tensor"
        )
    return logits


@torch.no_grad()
def mc_dropout(
    model: nn.Module,
    inputs: Any,
    passes: int,
    *,
    seed: int = 0,
    probabilities: bool = True,
    select: Callable[[Any], Tensor] | None = None,
) -> MonteCarloPrediction:
    """Predict with dropout left on, T times, and summarise: running sums, so memory does not grow with T.

    Only what `earlydrop.audit` would find is on: BatchNorm and everything else is in evaluation mode. One more forward, in training mode,
    finds it. Modes and random state are put back.

    Args:
        model: The model, its dropout at the rates it has now.
        inputs: What the model takes: a tensor, a tuple of arguments, or a dictionary of keywords.
        passes: T, at least 1.
        seed: Of the masks; the same seed gives the same prediction.
        probabilities: Whether the outputs are logits, (B, K), to be turned into probabilities first. False takes them as they are
            (regression).
        select: From what the model returns to the tensor to summarise. Default: that itself, or its ``logits``.

    Returns:
        The prediction, in float32 or better.

    Raises:
        ValueError: Fewer than one pass, a model without a dropout that is on, or outputs without logits and no ``select``.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    >>> prediction = mc_dropout(model, torch.randn(5, 4), passes=10)
    >>> prediction.mean.shape, bool((prediction.mutual_information >= 0).all())
    (torch.Size([5, 3]), True)
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ValueError(f"passes is {passes!r}: expected a number of forward passes, at least 1")
    select = select or _logits
    mean = squares = entropies = torch.empty(0)
    with _only_dropout_on(model, inputs):
        torch.manual_seed(seed)
        for i in range(passes):
            output = select(call(model, inputs))
            value = exact(output).softmax(-1) if probabilities else output.to(torch.promote_types(output.dtype, torch.float32))
            if i == 0:
                mean, squares = torch.zeros_like(value), torch.zeros_like(value)
                entropies = torch.zeros(value.shape[:-1], dtype=value.dtype, device=value.device)
            change = value - mean  # Welford's update: no difference of large sums
            mean += change / (i + 1)
            squares += change * (value - mean)
            if probabilities:
                entropies += _entropy(value)
    if not probabilities:
        return MonteCarloPrediction(mean, squares / passes, None, None, passes)
    entropy = _entropy(mean)
    information = (entropy - entropies / passes).clamp_min(0.0)
    return MonteCarloPrediction(
        mean=mean.float().to(output.device),
        variance=(squares / passes).float().to(output.device),
        entropy=entropy.float().to(output.device),
        mutual_information=information.float().to(output.device),
        passes=passes,
    )


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy
