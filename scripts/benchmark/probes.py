"""The probe: its time against bare gradients, and its memory."""

import torch
import torch.nn.functional as F
from torch import nn

import earlydrop
from benchmark.measure import DEVICE, Measured, Row, compare, peak_memory, vit


def row_probe(quick: bool) -> list[Row]:
    model = vit(0.1)
    earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), masks="fast")
    many = 16 if quick else 64
    batches = [
        (torch.randn(64, 1, 28, 28, device=DEVICE), torch.randint(10, (64,), device=DEVICE))
        for _ in range(many)
    ]
    parameters = list(model.parameters())

    def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def bare() -> None:
        with earlydrop.sites.sites_off(model):
            for batch in batches:
                torch.autograd.grad(loss_fn(model, batch), parameters)
        for batch in batches:
            torch.autograd.grad(loss_fn(model, batch), parameters)

    measured = compare(
        lambda: earlydrop.probe(model, loss_fn, batches, dataset=batches),
        bare,
        5 if quick else 12,
        warm_up=1,
    )
    what = (
        f"{many} gradients and a whole-dataset gradient, against as many bare forward-backward "
        "passes"
    )
    return [measured.row("probe", what, at_most=1.05)]


def row_probe_memory(quick: bool) -> list[Row]:
    """The probe's peak memory. One large layer and tiny batches make it almost all gradients."""
    many = 16 if quick else 64
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(4_096, 4_096, bias=False)).to(DEVICE)
    gradient_bytes = 4 * sum(p.numel() for p in model.parameters())
    batches = [torch.randn(1, 4_096, device=DEVICE) for _ in range(many)]

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    def stacked() -> None:
        gradients = torch.stack(
            [
                torch.autograd.grad(loss_fn(model, batch), model[1].weight)[0].flatten()
                for batch in batches
            ]
        )
        directions = F.normalize(gradients)
        (directions @ directions.T).sum().item()

    acts = (lambda: earlydrop.probe(model, loss_fn, batches, dataset=batches), stacked)
    peaks = [
        min(peak_memory(act) for _ in range(3)) / gradient_bytes for act in acts
    ]  # the first call also fills the allocator's caches
    what = (
        f"peak extra memory of the probe with {many} gradients, in gradient-sized vectors "
        "(device memory with CUDA, else resident memory; with about 0.1 vectors of temporaries)"
    )
    return [
        Measured(peaks[0], note=f"stack and matrix: {peaks[1]:.1f}").row(
            "probe memory", what, at_most=4
        )
    ]
