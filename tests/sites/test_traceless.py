import functools
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


GENERATORS = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda g: torch.rand((), generator=g)),
    "python": (lambda: random.Random(3), lambda g: g.random()),
    "numpy": (lambda: np.random.default_rng(3), lambda g: g.random()),
    "numpy, old": (lambda: np.random.RandomState(3), lambda g: g.rand()),
}


class Holder:
    def __init__(self, generator):
        self.generator = generator

    def method(self):
        return self.generator


def closure(generator):
    def function():
        return generator, never_assigned

    if generator is None:
        never_assigned = None  # its cell stays empty
    return function


HOLDERS = {
    "itself": lambda generator: generator,
    "a dictionary": lambda generator: {"g": generator},
    "a list of 100": lambda generator: [generator, *range(99)],
    "a dictionary of 100": lambda generator: {"g": generator} | dict.fromkeys(range(99)),
    "an argument of a partial": lambda generator: functools.partial(print, generator),
    "a keyword of a partial": lambda generator: functools.partial(print, g=generator),
    "an attribute": Holder,
    "a bound method": lambda generator: Holder(generator).method,
    "a closure": closure,
    "a default": lambda generator: lambda g=generator: g,
    "a keyword-only default": lambda generator: lambda *, g=generator: g,
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_are_restored_wherever_a_source_holds_them(kind, holder):
    make, draw = GENERATORS[kind]
    generator, expected = make(), draw(make())
    with leave_no_trace(torch.nn.Linear(1, 1), HOLDERS[holder](generator)):
        draw(generator)
        draw(generator)
    assert draw(generator) == expected


class OnlyKeys:
    """Raises KeyError for an unknown attribute, as some configuration classes do."""

    def __getattr__(self, name):
        raise KeyError(name)


def test_a_source_that_raises_for_unknown_attributes_or_has_no_state_is_left_alone():
    class Plain:
        system = random.SystemRandom()

        def __init__(self):
            self.random = random.SystemRandom()

    with leave_no_trace(torch.nn.Linear(1, 1), OnlyKeys(), Plain()):
        pass


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_buffer_is_restored(layout):
    model = torch.nn.Linear(2, 2)
    content = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    sparse = content.to_sparse() if layout == "coo" else content.to_sparse_csr()
    model.register_buffer("adjacency", sparse)
    with leave_no_trace(model):
        model.adjacency.values if layout == "csr" else model.adjacency.coalesce()
        sparse.mul_(2)
    assert torch.equal(model.adjacency.to_dense(), content)


def test_a_lazy_module_is_left_alone():
    with leave_no_trace(torch.nn.Sequential(torch.nn.LazyBatchNorm1d())):
        pass


def test_large_containers_are_not_searched():
    generators = [random.Random(3), random.Random(3)]
    expected = random.Random(3).random()
    large = [[generators[0], *range(100)], {"g": generators[1]} | dict.fromkeys(range(100))]
    with leave_no_trace(torch.nn.Linear(1, 1), *large):
        assert [generator.random() for generator in generators] == [expected] * 2
    assert expected not in [generator.random() for generator in generators]


def test_a_module_with_an_empty_buffer_and_one_on_the_meta_device():
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(2, track_running_stats=False),
        torch.nn.BatchNorm1d(2, device="meta"),
        torch.nn.BatchNorm1d(2),
    )
    before = model[2].running_mean.clone()
    with leave_no_trace(model):
        model[2](torch.randn(4, 2))
    assert model[0].running_mean is None
    assert model[1].running_mean.is_meta
    assert torch.equal(model[2].running_mean, before)
