import copy

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, early
from earlydrop.gradients.probe import batch_images
from tests.gradients.conv_net import loss_fn, make_model
from tests.sites import small_models


def batches_of(n, size=8):
    g = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 1, 6, 6, generator=g), torch.randint(3, (size,), generator=g))
        for _ in range(n)
    ]


@pytest.mark.oldest
def test_against_gradients_taken_by_hand():
    model = make_model()
    scheduler = DropoutScheduler(model, early(0.4, cutoff=8))
    batches, dataset = (
        batches_of(5),
        [*batches_of(3), (torch.randn(3, 1, 6, 6), torch.tensor([0, 1, 2]))],
    )
    torch.manual_seed(9)
    report = earlydrop.probe(model, loss_fn, batches, dataset=dataset)

    def flat(m, batch):
        m.zero_grad()
        loss_fn(m, batch).backward()
        return torch.cat([p.grad.flatten().double() for p in m.parameters()])

    torch.manual_seed(9)
    off = copy.deepcopy(model)
    off[3].p = off[6].p = 0.0
    whole = sum(len(batch[1]) * flat(off, batch) for batch in dataset) / sum(
        len(batch[1]) for batch in dataset
    )
    gradients = torch.stack([flat(model, batch) for batch in batches])
    u = gradients / gradients.norm(dim=1, keepdim=True)
    assert report.gde == pytest.approx(
        (0.5 * (1 - u @ (whole / whole.norm()))).mean().item(), rel=1e-5
    )
    assert report.gradient_norm == pytest.approx(gradients.norm(dim=1).mean().item(), rel=1e-6)
    assert report.gdv == pytest.approx(
        (0.5 * (1 - (u @ u.T)[*torch.triu_indices(5, 5, 1)])).mean().item(), rel=1e-5
    )
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
    first, second = (
        earlydrop.probe(model, loss_fn, batches_of(2), dataset=batches_of(4)) for _ in range(2)
    )
    assert first.dataset_gradient_norm == second.dataset_gradient_norm


def test_a_compiled_model_needs_no_graph_of_its_own():
    torch._dynamo.reset()
    graphs = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    scheduler = DropoutScheduler(model, early(0.5, cutoff=2))
    compiled = torch.compile(
        model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward
    )
    batches = batches_of(3)
    for _ in range(4):
        loss_fn(compiled, batches[0]).backward()
        earlydrop.probe(compiled, loss_fn, batches, dataset=batches)
        scheduler.step()
    assert len(graphs) == 2


def test_parameters_without_gradients_count_as_zero():
    model = nn.ModuleDict(
        {"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3), "frozen": nn.Linear(4, 3)}
    )
    model["frozen"].requires_grad_(False)

    def loss(model, batch):
        return nn.functional.cross_entropy(
            model["used"](batch[0]) + model["frozen"](batch[0]), batch[1]
        )

    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
    assert 0 < earlydrop.probe(model, loss, batches, dataset=batches).gde < 1


def _worker(rank, file, expected):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    model = make_model().requires_grad_()
    for m in model.modules():
        if isinstance(m, (nn.Dropout, nn.Dropout2d)):
            m.p = 0.0
    batches, dataset = batches_of(6), batches_of(4)
    report = earlydrop.probe(
        model, loss_fn, batches[rank::2], dataset[rank::2], group=torch.distributed.group.WORLD
    )
    for name, value in expected.items():
        if vars(report)[name] != pytest.approx(value, rel=1e-5):
            raise RuntimeError(f"{name}: {vars(report)[name]} against {value}")
    torch.distributed.destroy_process_group()


def test_two_workers_measure_what_one_does(tmp_path):
    model = make_model()
    model[3].p = model[6].p = 0.0
    expected = vars(earlydrop.probe(model, loss_fn, batches_of(6), dataset=batches_of(4)))
    for name in ("dataset_images", "further"):
        expected.pop(name)
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


def test_the_whole_dataset_gradient_of_a_transformers_model_does_not_depend_on_the_seed():
    model = small_models.vit("ViTForImageClassification")
    data = [(torch.randn(4, 3, 32, 32), torch.randint(2, (4,))) for _ in range(3)]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).logits, batch[1])

    norms = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        norms.append(earlydrop.probe(model, loss_fn, data, dataset=data).dataset_gradient_norm)
    assert norms[0] == norms[1] == norms[2]


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), 0.5, self.training)


def square(model, batch):
    return model(batch).square().mean()


def test_what_still_drops_is_named():
    model = nn.Sequential(nn.Dropout(0.1), Hidden())
    data = [torch.randn(4, 4) for _ in range(3)]
    before = torch.get_rng_state()
    with pytest.raises(
        RuntimeError, match=r"something still drops: dropout in 1 \(test_probe.py:\d+\)"
    ):
        earlydrop.probe(model, square, data, dataset=data)
    assert torch.equal(torch.get_rng_state(), before)
    earlydrop.probe(model, square, data)
    with pytest.raises(RuntimeError, match="dropout in loss_fn"):
        earlydrop.probe(
            nn.Linear(4, 2),
            lambda m, b: nn.functional.dropout(m(b), 0.5).square().mean(),
            data,
            dataset=data,
        )


def test_sparse_gradients_are_those_of_the_dense_model():
    reports = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 2))
        data = [torch.randint(10, (6,)) for _ in range(4)]
        reports.append(earlydrop.probe(model, square, data, dataset=data))
    assert reports[0] == reports[1]


def test_a_complex_parameter_counts_as_two_real_ones():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, dtype=torch.complex64))

        def forward(self, x):
            return (self.w * x).abs()

    class Real(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(torch.view_as_real(w.detach()).clone())

        def forward(self, x):
            return torch.linalg.vector_norm(self.w * x[..., None], dim=-1)

    model = Complex()
    data = [torch.randn(5, 3) for _ in range(4)]
    one, other = (earlydrop.probe(m, square, data, dataset=data) for m in (model, Real(model.w)))
    assert one.gdv == pytest.approx(other.gdv, rel=1e-5)
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_checkpoints_that_only_backward_can_pass_are_refused(first):
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.first, self.second, self.reentrant = (
                nn.Linear(4, 4),
                nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)),
                reentrant,
            )

        def forward(self, x):
            x = self.first(x) if first else x
            return torch.utils.checkpoint.checkpoint(self.second, x, use_reentrant=self.reentrant)

    batches = [torch.randn(4, 4, requires_grad=True) for _ in range(3)]
    with pytest.raises(
        RuntimeError, match=r"the probe cannot measure .*use_reentrant=True.*use_reentrant=False"
    ):
        earlydrop.probe(Checkpointed(True), lambda m, b: m(b).square().mean(), batches)
    assert (
        earlydrop.probe(
            Checkpointed(False), lambda m, b: m(b).square().mean(), batches
        ).gradient_norm
        > 0
    )


def test_the_gradient_of_a_batch_in_parts_is_the_mean_of_theirs():
    """Against the same images in one batch, through a model that draws nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    data = [(torch.randn(12, 4).double(), torch.randint(2, (12,))) for _ in range(4)]
    seen = []

    def loss_fn(model, batch):
        seen.append(len(batch[0]))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def in_three(batch):
        return zip(batch[0].chunk(3), batch[1].chunk(3), strict=True)

    whole = earlydrop.probe(model, loss_fn, data, dataset=data)
    seen.clear()
    parted = earlydrop.probe(model, loss_fn, data, dataset=data, parts=in_three)
    assert seen.count(4) == 12
    assert parted.images == whole.images == 48
    for name in ("gradient_norm", "gdv", "gde", "bias"):
        assert getattr(parted, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
    with pytest.raises(ValueError, match="parts gave no part of a batch"):
        earlydrop.probe(model, loss_fn, data, parts=lambda batch: [])


def test_the_images_of_a_batch_are_those_of_its_first_tensor():
    first, second = torch.zeros(3, 2), torch.zeros(5)
    for batch in (
        first,
        (first, second),
        [None, [first], second],
        {"inputs": first, "labels": second},
        ({"name": "a", "inputs": (first,)}, second),
        (torch.tensor(1.0), torch.zeros(0, 2), first, second),  # neither has images
    ):
        assert batch_images(batch) == 3
    for batch in (torch.tensor(1.0), "text", (), {"n": 3}):
        with pytest.raises(ValueError, match="cannot tell how many images"):
            batch_images(batch)
