import math

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, GaussianDropout, SharedMaskDropout, StandardDropout
from earlydrop.sites import find_sites

LAYERS = (StandardDropout, SharedMaskDropout, GaussianDropout)


def test_standard_dropout_masks_in_training_and_scales_at_test():
    x = torch.randn(200, 50, requires_grad=True)
    layer = StandardDropout(0.3)
    y = layer(x)
    mask = (y != 0).float()
    assert torch.equal(y, x * mask)  # not scaled
    assert mask.mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / x.numel()))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, mask)  # the formula: dy/dx = mask
    assert torch.equal(layer.eval()(x), x * 0.7)


def test_standard_dropout_is_inverted_dropout_times_the_keep_probability():
    """Same mask: non-inverted = (1 - p) x inverted, in training and test, in value and gradient."""
    x = torch.randn(64, 32)
    torch.manual_seed(0)
    standard = StandardDropout(0.4)(x)
    mask = standard != 0
    inverted = torch.where(mask, x / 0.6, 0.0)
    torch.testing.assert_close(standard, 0.6 * inverted)
    many = torch.stack([StandardDropout(0.4)(x) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(many, StandardDropout(0.4).eval()(x), atol=0.12, rtol=0)


def test_a_shared_mask_is_one_for_the_batch_and_new_for_each_call():
    x = torch.ones(8, 100, 3)
    layer = SharedMaskDropout(0.5)
    y = layer(x)
    assert (y == y[0]).all()
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(y, layer(x))
    mean = torch.stack([layer(x)[0] for _ in range(2000)]).mean()
    assert mean.item() == pytest.approx(1.0, abs=4 / math.sqrt(2000 * 300))


def test_gaussian_dropout_has_the_mean_and_variance_of_inverted_dropout():
    for p in (0.1, 0.5, 0.8):
        y = GaussianDropout(p)(torch.ones(400_000))
        variance = p / (1 - p)
        assert y.mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(variance / 400_000))
        assert y.var().item() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layers_are_sites_that_a_schedule_drives(layer, dtype):
    model = nn.Sequential(nn.Identity(), layer(0.5))
    assert [(site.name, site.kind) for site in find_sites(model)] == [("1", "unit")]
    scheduler = DropoutScheduler(model, earlydrop.early(0.4, cutoff=2, shape="constant"))
    x = torch.ones(64, 256, dtype=dtype)
    torch.manual_seed(0)
    driven = model(x)
    torch.manual_seed(0)
    assert torch.equal(driven, layer(0.4)(x))  # bit for bit what setting p by hand gives
    assert driven.dtype == dtype
    assert torch.equal(model.eval()(x), layer(0.4).eval()(x))
    model.train()
    scheduler.step()
    scheduler.step()
    assert torch.equal(model(x), x)
    assert torch.equal(model.eval()(x), x)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_layers_keep_three_graphs_under_compile(layer):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(16, 64), layer(0.5), nn.Linear(64, 2))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    scheduler = DropoutScheduler(model, earlydrop.early(0.5, cutoff=4))
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(8, 16)
    for step in range(6):
        compiled.train()(x).sum().backward()
        if step in (1, 5):
            with torch.no_grad():
                torch.testing.assert_close(compiled.eval()(x), model(x))
        scheduler.step()
    assert len(graphs) == 3


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_compiled_fraction_and_moments(layer, rate):
    torch._dynamo.reset()
    model = nn.Sequential(layer(0.5))
    DropoutScheduler(model, earlydrop.constant(rate))
    compiled = torch.compile(model, backend="eager")
    x = torch.ones(50, 20_000)
    y = compiled(x)
    effective = y[0] if layer is SharedMaskDropout else y
    noise = 5 * math.sqrt(rate / (1 - rate) / effective.numel())
    if layer is StandardDropout:
        assert y.mean().item() == pytest.approx(1 - rate, abs=noise)
        torch.testing.assert_close(compiled.eval()(x), x * (1 - rate))
    else:
        assert y.mean().item() == pytest.approx(1.0, abs=noise)
        assert effective.var().item() == pytest.approx(rate / (1 - rate), rel=0.15)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_bad_rates(layer):
    with pytest.raises(ValueError, match=r"p is 1\.0"):
        layer(1.0)


@pytest.mark.parametrize("driven", [True, False])
def test_the_whole_dataset_gradient_of_standard_dropout_is_of_the_network_used_at_test(driven):
    """Standard dropout before weights w is inverted dropout before (1 - p) w.

    It is the same function, so the measures of direction are the same.
    """
    torch.manual_seed(0)
    first, last = nn.Linear(6, 64), nn.Linear(64, 3, bias=False)
    standard = nn.Sequential(first, nn.ReLU(), StandardDropout(0.5), last)
    halved = nn.Linear(64, 3, bias=False)
    halved.weight.data = last.weight.data * 0.5
    inverted = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), halved)
    if driven:
        DropoutScheduler(standard, earlydrop.constant(0.5))
    last.requires_grad_(False)
    halved.requires_grad_(False)
    data = [(torch.randn(32, 6), torch.randint(3, (32,))) for _ in range(8)]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    reports = [
        earlydrop.probe(model, loss_fn, data, dataset=data) for model in (standard, inverted)
    ]
    assert reports[0].dataset_gradient_norm == pytest.approx(
        reports[1].dataset_gradient_norm, rel=1e-5
    )
    assert "forward" not in standard[2].__dict__
