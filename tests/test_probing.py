import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import earlydrop
from earlydrop import DropoutScheduler, early


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


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.4), nn.Linear(16, 3)
    )  # fmt: skip


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_probe_leaves_no_trace(workers):
    def train(probing):
        random.seed(1)
        np.random.seed(1)
        model = make_model()
        scheduler = DropoutScheduler(model, early(0.4, cutoff=8))
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        options = (
            {"generator": torch.Generator().manual_seed(3)} if workers == 0 else {"num_workers": 2, "persistent_workers": True}
        )
        loader = DataLoader(Augmented(), batch_size=16, shuffle=True, **options)
        model[1].eval()  # a frozen BatchNorm stays frozen
        if probing:
            model[1].num_batches_tracked = model[1].num_batches_tracked  # a buffer keeps its identity
        losses = []
        for _ in range(2):
            for i, batch in enumerate(loader):
                loss = loss_fn(model, batch)
                loss.backward()
                if probing and i == 1:
                    grads, modes = [p.grad for p in model.parameters()], [m.training for m in model.modules()]
                    kept = [g.clone() for g in grads]
                    report = earlydrop.probe(model, loss_fn, loader, dataset=loader)
                    assert report.gradients == 3
                    assert report.dataset_images == report.images == 48
                    assert all(p.grad is g and torch.equal(g, k) for p, g, k in zip(model.parameters(), grads, kept, strict=True))
                    assert modes == [m.training for m in model.modules()]
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                losses.append(loss.item())
        return losses, model.state_dict()

    (losses, state), (losses_probed, state_probed) = train(False), train(True)
    assert losses == losses_probed
    assert all(torch.equal(state[name], state_probed[name]) for name in state)


def batches_of(n, size=8):
    g = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 1, 6, 6, generator=g), torch.randint(3, (size,), generator=g)) for _ in range(n)]


@pytest.mark.oldest
def test_against_gradients_taken_by_hand():
    model = make_model()
    scheduler = DropoutScheduler(model, early(0.4, cutoff=8))
    batches, dataset = batches_of(5), [*batches_of(3), (torch.randn(3, 1, 6, 6), torch.tensor([0, 1, 2]))]
    torch.manual_seed(9)
    report = earlydrop.probe(model, loss_fn, batches, dataset=dataset)

    def flat(m, batch):
        m.zero_grad()
        loss_fn(m, batch).backward()
        return torch.cat([p.grad.flatten().double() for p in m.parameters()])

    torch.manual_seed(9)
    off = copy.deepcopy(model)
    off[3].p = off[6].p = 0.0
    whole = sum(len(batch[1]) * flat(off, batch) for batch in dataset) / sum(len(batch[1]) for batch in dataset)
    gradients = torch.stack([flat(model, batch) for batch in batches])
    u = gradients / gradients.norm(dim=1, keepdim=True)
    assert report.gde == pytest.approx((0.5 * (1 - u @ (whole / whole.norm()))).mean().item(), rel=1e-5)
    assert report.gradient_norm == pytest.approx(gradients.norm(dim=1).mean().item(), rel=1e-6)
    assert report.gdv == pytest.approx((0.5 * (1 - (u @ u.T)[*torch.triu_indices(5, 5, 1)])).mean().item(), rel=1e-5)
    assert report.dataset_gradient_norm == pytest.approx(whole.norm().item(), rel=1e-5)
    assert scheduler.last_rate == 0.4


def test_a_model_in_evaluation_mode_is_measured_in_training_mode():
    model = make_model()
    torch.manual_seed(9)
    in_training = earlydrop.probe(model, loss_fn, batches_of(3))
    model.eval()
    torch.manual_seed(9)
    assert earlydrop.probe(model, loss_fn, batches_of(3)) == in_training
    assert not any(m.training for m in model.modules())


def test_the_dataset_gradient_has_no_dropout_and_so_no_randomness():
    model = make_model()
    first, second = (earlydrop.probe(model, loss_fn, batches_of(2), dataset=batches_of(4)) for _ in range(2))
    assert first.dataset_gradient_norm == second.dataset_gradient_norm


def test_a_compiled_model_needs_no_graph_of_its_own():
    torch._dynamo.reset()
    graphs = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    scheduler = DropoutScheduler(model, early(0.5, cutoff=2))
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    batches = batches_of(3)
    for _ in range(4):
        loss_fn(compiled, batches[0]).backward()
        earlydrop.probe(compiled, loss_fn, batches, dataset=batches)
        scheduler.step()
    assert len(graphs) == 2


def test_parameters_without_gradients_count_as_zero():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3), "frozen": nn.Linear(4, 3)})
    model["frozen"].requires_grad_(False)

    def loss(model, batch):
        return nn.functional.cross_entropy(model["used"](batch[0]) + model["frozen"](batch[0]), batch[1])

    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
    assert 0 < earlydrop.probe(model, loss, batches, dataset=batches).gde < 1


def _worker(rank, file, expected):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = make_model().requires_grad_()
    for m in model.modules():
        if isinstance(m, (nn.Dropout, nn.Dropout2d)):
            m.p = 0.0
    batches, dataset = batches_of(6), batches_of(4)
    report = earlydrop.probe(model, loss_fn, batches[rank::2], dataset[rank::2], group=torch.distributed.group.WORLD)
    for name, value in expected.items():
        if vars(report)[name] != pytest.approx(value, rel=1e-5):
            raise RuntimeError(f"{name}: {vars(report)[name]} against {value}")
    torch.distributed.destroy_process_group()


def test_two_workers_measure_what_one_does(tmp_path):
    model = make_model()
    model[3].p = model[6].p = 0.0
    expected = vars(earlydrop.probe(model, loss_fn, batches_of(6), dataset=batches_of(4)))
    expected.pop("dataset_images")
    torch.multiprocessing.spawn(_worker, args=(str(tmp_path / "store"), expected), nprocs=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dataset": iter([])}, "one-shot list_iterator.*DataLoader"),
        ({"dataset": (b for b in batches_of(2))}, "one-shot generator"),
        ({"dataset": []}, "no batches"),
        ({"batches": batches_of(1)}, "at least 2 mini-batch gradients, got 1"),
        ({"batches": 5}, "batches is int"),
        ({"loss_fn": lambda m, b: m(b[0])}, r"shape \(8, 3\).*scalar"),
        ({"loss_fn": lambda m, b: 1.0}, "a float.*scalar"),
        ({"loss_fn": lambda m, b: loss_fn(m, b) * float("nan")}, "NaN"),
        ({"loss_fn": lambda m, b: loss_fn(m, b) * 0}, "is zero"),
        ({"model": nn.ReLU()}, "no parameter"),
    ],
)
def test_bad_input(arguments, says):
    options = {"model": make_model(), "loss_fn": loss_fn, "batches": batches_of(3)} | arguments
    with pytest.raises(ValueError, match=says):
        earlydrop.probe(**options)
