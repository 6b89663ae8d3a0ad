"""Monte Carlo dropout: predictions with dropout on at test time.

Gal and Ghahramani 2016, arXiv:1506.02142. Shape legend: B inputs, K classes, T passes.
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
from earlydrop.sites.audit.watch import watch
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.sites.unwrap import unwrap


@dataclass(frozen=True)
class MonteCarloPrediction:
    """Statistics of T passes with dropout.

    Attributes:
        mean: Predictive mean of the class probabilities, or of the outputs, (B, ...).
        variance: Variance over the passes (the sum divided by T), (B, ...).
        entropy: Entropy of the predictive mean in nats, (B,); None for outputs that are not
            probabilities.
        mutual_information: Entropy of the mean minus the mean entropy, in nats, (B,): the
            disagreement of the passes (Houlsby et al. 2011, arXiv:1112.5745). None for outputs
            that are not probabilities.
        passes: T.
    """

    mean: Tensor
    variance: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None
    passes: int


@contextmanager
def _only_dropout_on(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Context in which only the modules that drop are in training mode."""
    inner = unwrap(model)
    # The fast path of nn.TransformerEncoderLayer would skip its dropouts.
    fast_path = torch.backends.mha.get_fastpath_enabled()
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
    """The modules that drop at the present rates, found as `earlydrop.audit` finds them.

    Normalisation layers stay in evaluation mode.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, (_BatchNorm, _InstanceNorm)):
            module.eval()
    with leave_no_trace(model, inputs), watch(model) as seen:
        outputs = call(model, inputs)
    draws = seen.draws_with_effect(outputs)
    dropping = {id(draw.module): draw.module for draw in draws if draw.module is not None}
    if not dropping:
        raise ValueError(
            f"{type(model).__name__} has no dropout with a rate above 0 now, so every pass would "
            "be the same: build it with dropout, or measure before the schedule switches it off"
        )
    return list(dropping.values())


def _logits(output: Any) -> Tensor:
    """The output of a model as a tensor: the output itself, or its ``logits``."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    else:
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model returns a {type(output).__name__} without logits: "
            "give select=, a function from the output to a tensor"
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
    """Predict T times with dropout left on, and summarise the outputs.

    Dropout is on in the modules that `earlydrop.audit` would list; BatchNorm and all other modules
    are in evaluation mode. One more forward, in training mode, finds these modules. Modes and
    random state are put back. Memory does not grow with T.

    Args:
        model: The model, with its dropout at the present rates.
        inputs: Its inputs: a tensor, a tuple of arguments, or a dictionary of keywords.
        passes: T, at least 1.
        seed: Seed of the masks. The same seed gives the same prediction.
        probabilities: Whether the outputs are logits, (B, K), to be turned into probabilities. With
            False they are taken as they are (regression).
        select: A function from the output of the model to the tensor to summarise. Default: the
            output itself, or its ``logits``.

    Returns:
        The prediction. Class probabilities are in float32, other outputs in float32 or better.

    Raises:
        ValueError: ``passes`` is below 1, no dropout of the model is on, or the output has no
            logits and ``select`` is missing.

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
            value = _value(output, probabilities)
            if i == 0:
                mean, squares = torch.zeros_like(value), torch.zeros_like(value)
                entropies = torch.zeros(value.shape[:-1], dtype=value.dtype, device=value.device)
            change = value - mean  # Welford's update: no difference of large sums
            mean += change / (i + 1)
            squares += change * (value - mean)
            if probabilities:
                entropies += _entropy(value)
    if not probabilities:
        return MonteCarloPrediction(
            mean=mean,
            variance=squares / passes,
            entropy=None,
            mutual_information=None,
            passes=passes,
        )
    entropy = _entropy(mean)
    information = (entropy - entropies / passes).clamp_min(0.0)
    return MonteCarloPrediction(
        mean=mean.float().to(output.device),
        variance=(squares / passes).float().to(output.device),
        entropy=entropy.float().to(output.device),
        mutual_information=information.float().to(output.device),
        passes=passes,
    )


def _value(output: Tensor, probabilities: bool) -> Tensor:
    """The class probabilities in float64, or the output in float32 or better."""
    if probabilities:
        return exact(output).softmax(-1)
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy
