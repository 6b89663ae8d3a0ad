"""Curvature of the training loss at a probe, in units of 1 / learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from earlydrop.gradients.curvature import (
    adam_direction,
    adam_preconditioner,
    critical_sharpness,
    preconditioned_sharpness,
)
from earlydrop.sites import find_sites
from earlydrop.sites.drive import driven_at_base, driven_off
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.data.objective import Objective
from earlydrop.training.distributed import Group
from earlydrop.training.evaluate import autocast
from earlydrop.training.plan import Plan
from earlydrop.training.probes import first_part, probe_gradients
from earlydrop.training.streams import seed_device, stream_seed

_ITERATIONS = 50
_TOLERANCE = 0.01


def probe_all(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    plan: Plan,
    step: int,
    group: Group,
) -> dict[str, float]:
    """Measure the gradients at a probe and, with ``probe.curvature``, the curvature too."""
    metrics = probe_gradients(model, objective, plan=plan, step=step, group=group)
    if plan.config.probe.curvature:
        metrics |= probe_curvature(model, optimizer, objective=objective, plan=plan, step=step)
    return metrics


def probe_curvature(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    plan: Plan,
    step: int,
) -> dict[str, float]:
    """Measure the curvature on the first part of the probe's first mini-batch, in training mode.

    Every worker measures the same part. With ``probe.compare`` it is measured with dropout on and
    off too.

    Args:
        model: The model, uncompiled.
        optimizer: Adam or AdamW, as it stands after this step.
        objective: The training objective.
        plan: The run.
        step: Optimizer steps done.

    Returns:
        ``probe/critical_sharpness`` along Adam's next update, whose gradient is that of this part
        (clipped as in training), and ``probe/preconditioned_sharpness``. Values that are not finite
        are left out. The result is empty before the first step.
    """
    if step == 0:
        return {}
    present = _measure(model, optimizer, objective, plan, step)
    metrics = {f"probe/{name}": value for name, value in present.items()}
    if plan.config.probe.compare:
        is_on = any(site.rate > 0 for site in find_sites(model) if site.driven)
        with driven_off(model) if is_on else driven_at_base(model):
            opposite = _measure(model, optimizer, objective, plan, step)
        on, off = (present, opposite) if is_on else (opposite, present)
        metrics |= {f"probe_on/{name}": value for name, value in on.items()}
        metrics |= {f"probe_off/{name}": value for name, value in off.items()}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _measure(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    plan: Plan,
    step: int,
) -> dict[str, float]:
    batch = first_part(objective, plan, step)
    parameters = [p for p in model.parameters() if p in optimizer.state]
    seed = stream_seed(plan.config.seed, "probe-curvature", step)

    def loss() -> Tensor:
        seed_device(plan.device, seed)  # the same masks each time
        with autocast(plan):
            logits = model(batch[0])
        return objective.loss(logits, batch[1], plan.config.probe.clean)

    # Fused attention cannot be differentiated twice.
    with leave_no_trace(model, objective), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        model.train()
        gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
        return {
            "critical_sharpness": critical_sharpness(
                loss,
                parameters,
                direction=adam_direction(
                    optimizer, parameters, _clipped(gradients, plan.config.optim.clip)
                ),
                start=plan.config.optim.lr,
            ),
            "preconditioned_sharpness": preconditioned_sharpness(
                loss(),
                parameters,
                preconditioner=adam_preconditioner(optimizer, parameters),
                iterations=_ITERATIONS,
                tolerance=_TOLERANCE,
            ),
        }


def _clipped(gradients: Sequence[Tensor], largest: float | None) -> Sequence[Tensor]:
    """The gradients, scaled to the norm ``largest`` if theirs is larger, as in training."""
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest is None or norm <= largest:
        return gradients
    return [gradient * (largest / norm) for gradient in gradients]
