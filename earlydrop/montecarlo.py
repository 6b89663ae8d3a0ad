"""Monte Carlo dropout: predictions with dropout left on at test (Gal and Ghahramani 2016, arXiv:1506.02142).

Shape legend: B inputs, K classes, T passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.probing import leave_no_trace
from earlydrop.sites import find_sites, unwrap


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
def _only_dropout_on(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but for the sites with a rate above 0 and the attention modules that read one."""
    sites = [site for site in find_sites(model) if site.rate > 0]
    if not sites:
        raise ValueError(
            f"{type(unwrap(model)).__name__} has no dropout with a rate above 0 now, so every pass would be the same: build it with "
            "dropout, or measure before the schedule switches it off"
        )
    dropping = {id(site.module) for site in sites}
    fast_path = torch.backends.mha.get_fastpath_enabled()  # of nn.TransformerEncoderLayer, which would skip its dropouts
    with leave_no_trace(model):
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        for module in unwrap(model).modules():
            attention = module._modules.get("attn_drop")
            if id(module) in dropping or (id(attention) in dropping and "fused_attn" in module.__dict__):
                module.training = True  # not train(): the modules inside stay in evaluation mode
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


@torch.no_grad()
def mc_dropout(model: nn.Module, inputs: Any, passes: int, *, seed: int = 0, probabilities: bool = True) -> MonteCarloPrediction:
    """Predict with dropout left on, T times, and summarise: running sums, so memory does not grow with T.

    Only dropout is on: BatchNorm and everything else is in evaluation mode. Modes and random state are put back.

    Args:
        model: The model, its dropout at the rates it has now.
        inputs: What the model takes: a tensor, or a tuple of arguments.
        passes: T, at least 1.
        seed: Of the masks; the same seed gives the same prediction.
        probabilities: Whether the outputs are logits, (B, K), to be turned into probabilities first. False takes them as they are
            (regression).

    Returns:
        The prediction, in float32 or better.

    Raises:
        ValueError: Fewer than one pass, or a model without a dropout that is on.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    >>> prediction = mc_dropout(model, torch.randn(5, 4), passes=10)
    >>> prediction.mean.shape, bool((prediction.mutual_information >= 0).all())
    (torch.Size([5, 3]), True)
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise ValueError(f"passes is {passes!r}: expected a number of forward passes, at least 1")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    mean = squares = entropies = torch.empty(0)
    with _only_dropout_on(model):
        torch.manual_seed(seed)
        for i in range(passes):
            output = model(*arguments).double() if probabilities else model(*arguments)
            value = output.softmax(-1) if probabilities else output.to(torch.promote_types(output.dtype, torch.float32))
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
    return MonteCarloPrediction(mean.float(), (squares / passes).float(), entropy.float(), information.float(), passes)


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy
