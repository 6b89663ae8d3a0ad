import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import earlydrop
from earlydrop import DropoutScheduler, early
from earlydrop.sites.traceless import leave_no_trace
from tests.gradients.conv_net import loss_fn, make_model


class Augmented(Dataset):
    """Images with noise from four different random generators."""

    def __init__(self, n=48):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 1, 6, 6, generator=g), torch.randint(3, (n,), generator=g)
        self.own = np.random.default_rng(7)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + self.own.random() + torch.rand(()).item()
        return self.x[i] + 0.1 * noise, self.y[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_probe_leaves_no_trace(workers):
    def train(probing):
        random.seed(1)
        np.random.seed(1)
        model = make_model()
        scheduler = DropoutScheduler(model, early(0.4, cutoff=8))
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        options = (
            {"generator": torch.Generator().manual_seed(3)}
            if workers == 0
            else {"num_workers": 2, "persistent_workers": True}
        )
        loader = DataLoader(Augmented(), batch_size=16, shuffle=True, **options)
        model[1].eval()  # a frozen BatchNorm stays frozen
        if probing:
            model[1].num_batches_tracked = model[
                1
            ].num_batches_tracked  # a buffer keeps its identity
        losses = []
        for _ in range(2):
            for i, batch in enumerate(loader):
                loss = loss_fn(model, batch)
                loss.backward()
                if probing and i == 1:
                    grads, modes = (
                        [p.grad for p in model.parameters()],
                        [m.training for m in model.modules()],
                    )
                    kept = [g.clone() for g in grads]
                    report = earlydrop.probe(model, loss_fn, loader, dataset=loader)
                    assert report.gradients == 3
                    assert report.dataset_images == report.images == 48
                    assert all(
                        p.grad is g and torch.equal(g, k)
                        for p, g, k in zip(model.parameters(), grads, kept, strict=True)
                    )
                    assert modes == [m.training for m in model.modules()]
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                losses.append(loss.item())
        return losses, model.state_dict()

    (losses, state), (losses_probed, state_probed) = train(False), train(True)
    assert losses == losses_probed
    assert all(torch.equal(state[name], state_probed[name]) for name in state)


def test_a_backward_inside_adds_to_no_gradient_of_training():
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad
    with leave_no_trace(model):
        assert model.weight.grad is None
        model(2 * torch.ones(1, 2)).sum().backward()
        assert model.weight.grad.tolist() == [[2.0, 2.0]]
    assert model.weight.grad is gradient
    assert gradient.tolist() == [[1.0, 1.0]]
