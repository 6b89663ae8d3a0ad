"""Model FLOP utilisation: the operations that training needs, over the GPU's peak."""

from __future__ import annotations

import logging
import re

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.evaluate import autocast
from earlydrop.training.plan import Plan

log = logging.getLogger(__name__)

BF16_PEAKS = {
    r"H100 PCIe": 756e12,
    r"H100 80GB": 989e12,
    r"H200$": 989e12,
    r"A100": 312e12,
    r"L40S": 362e12,
    r"L4$": 121e12,
    r"RTX 4090$": 165e12,
}
"""Dense bfloat16 operations per second, by a pattern of the GPU's name (NVIDIA's data sheets)."""

_IMAGES = 2  # of a counted pass; BatchNorm needs more than one


def bf16_peak(device: torch.device) -> float | None:
    """Dense bfloat16 operations per second of a device; None if they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if " MIG " in name:  # a share of a GPU
        return None
    return next((peak for pattern, peak in BF16_PEAKS.items() if re.search(pattern, name)), None)


def training_flops(model: nn.Module, plan: Plan) -> float | None:
    """Operations of a forward and a backward pass per image; None if torch cannot count them.

    A multiplication and an addition count as two. The model, its gradients and all random state
    are left as they were.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    images = plan.source.blank(_IMAGES, plan.device)
    counter = FlopCounterMode(display=False)
    try:
        with leave_no_trace(model), counter:
            with autocast(plan):
                total = model.train()(images).float().sum()
            torch.autograd.grad(total, parameters, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        log.warning("timing.jsonl has no mfu: the model's operations cannot be counted (%s)", error)
        return None
    return float(counter.get_total_flops()) / _IMAGES


def utilisation_per_image(model: nn.Module, plan: Plan, workers: int) -> float | None:
    """The model FLOP utilisation at one image per second, over all workers.

    None without bfloat16, on a device whose peak is not known, or where operations cannot be
    counted.
    """
    peak = bf16_peak(plan.device) if plan.config.trainer.precision == "bf16" else None
    if peak is None:
        return None
    operations = training_flops(model, plan)
    return None if operations is None else operations / (peak * workers)
