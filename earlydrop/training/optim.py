"""Optimizers with the released exclusions from weight decay, and the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.training.config import OptimConfig

NOT_DECAYED, DECAYED = 0, 1
"""The parameter groups of an optimizer: without weight decay, and with it."""

_RHO = 0.9  # RMSprop's smoothing constant, as in the Keras example


def learning_rate(
    step: int, base: float, minimum: float, warmup_steps: int, total_steps: int
) -> float:
    """The released schedule: a linear warm-up from 0 to base, then a cosine to the minimum.

    The warm-up is numpy's ``linspace(0, base, warmup)``. With M = total − warmup and i = step −
    warmup, the cosine is min + ½ (base − min) (1 + cos(π i / M)). So base occurs twice if the
    warm-up has at least two steps.

    Args:
        step: Optimizer step, from 0.
        base: Peak learning rate.
        minimum: Learning rate at the end of the cosine.
        warmup_steps: Optimizer steps of the warm-up.
        total_steps: Optimizer steps of the run.

    Returns:
        The learning rate of that step.

    >>> [learning_rate(step, 1.0, 0.0, warmup_steps=5, total_steps=9) for step in range(5)]
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> [round(learning_rate(step, 1.0, 0.0, 5, 9), 3) for step in range(5, 9)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        if step == warmup_steps - 1 and warmup_steps > 1:
            return base
        return step * (base / max(warmup_steps - 1, 1))
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return minimum + 0.5 * (base - minimum) * (1.0 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Make AdamW, SGD or RMSprop, without weight decay on biases, 1-D parameters and exceptions.

    The exceptions are parameters that the model names, such as ``pos_embed`` and ``cls_token`` of a
    ViT and the tables of relative position biases of a Swin. The group `NOT_DECAYED` is before the
    group `DECAYED`. The learning rate is set at every step.
    """
    from timm.optim import param_groups_weight_decay

    no_decay: Any = getattr(model, "no_weight_decay", tuple)
    # A decay of 1 at first: at 0 timm would return a single group.
    groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=no_decay())
    for group in groups:
        group["weight_decay"] *= config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=_RHO, eps=config.eps)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def clip_gradients(model: nn.Module, largest: float | None) -> Tensor:
    """Clip the gradient of a model to the norm ``largest`` if given; return its norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


@torch.no_grad()
def add_penalties(optimizer: torch.optim.Optimizer, l1: float | None, l2: float | None) -> None:
    """Add the gradient of the penalty l1 · Σ|w| + l2 · Σw² to the gradients of decayed weights."""
    decayed = optimizer.param_groups[DECAYED]["params"]
    weights = [p for p in decayed if p.grad is not None]
    gradients = [p.grad for p in weights]
    if l1 is not None:
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=l1)
    if l2 is not None:
        torch._foreach_add_(gradients, weights, alpha=2 * l2)
