"""The classic family, each layer and rule against its own formula."""

import math

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, GaussianDropout, SharedMaskDropout, StandardDropout, max_norm_, mc_dropout
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
    """Same mask: non-inverted = (1 - p) x inverted, in training and at test, in value and gradient."""
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


def test_max_norm_limits_each_units_incoming_weights():
    model = nn.Sequential(nn.Linear(20, 10), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    before = [m.weight.detach().clone() for m in model]
    biases = [m.bias.detach().clone() for m in model]
    max_norm_(model, 3.0)
    rows = [before[0], before[1].flatten(1), before[2].unflatten(0, (2, 3)).transpose(1, 2).flatten(2).flatten(0, 1)]
    after = [m.weight.detach() for m in model]
    after_rows = [after[0], after[1].flatten(1), after[2].unflatten(0, (2, 3)).transpose(1, 2).flatten(2).flatten(0, 1)]
    assert [len(each) for each in rows] == [10, 6, 4]  # units
    for old, new in zip(rows, after_rows, strict=True):
        norms = old.double().norm(dim=1)
        expected = old.double() * torch.minimum(torch.ones(()), 3.0 / norms)[:, None]
        torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)
        assert (norms > 3).any()
    assert all(torch.equal(m.bias, bias) for m, bias in zip(model, biases, strict=True))
    within = [p.detach().clone() for p in model.parameters()]
    max_norm_(model, 100.0)
    assert all(torch.equal(a, b) for a, b in zip(within, model.parameters(), strict=True))


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_max_norm_of_nothing_is_refused(limit):
    with pytest.raises(ValueError, match=rf"limit is {limit}: expected a norm above 0"):
        max_norm_(nn.Linear(2, 2), limit)


def test_max_norm_needs_layers():
    with pytest.raises(ValueError, match="no linear layer or convolution"):
        max_norm_(nn.ReLU(), 3.0)


def mc_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))


def test_mc_dropout_against_a_stack_of_passes():
    model, x = mc_model(), torch.randn(7, 5)
    model(torch.randn(50, 5))  # running statistics
    found = mc_dropout(model, x, passes=40, seed=3)
    model.eval()
    model[3].train()
    torch.manual_seed(3)
    stack = torch.stack([model(x).detach().double().softmax(-1) for _ in range(40)])
    mean = stack.mean(0)
    entropy = -(mean * mean.log()).sum(-1)
    information = entropy + (stack * stack.log()).sum(-1).mean(0)
    for ours, theirs in (
        (found.mean, mean),
        (found.variance, stack.var(0, correction=0)),
        (found.entropy, entropy),
        (found.mutual_information, information),
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-7)


def test_mc_dropout_repeats_and_leaves_no_trace():
    model, x = mc_model(), torch.randn(7, 5)
    model.train()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    first = mc_dropout(model, x, passes=5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert torch.equal(first.mean, mc_dropout(model, x, passes=5).mean)
    assert not torch.equal(first.mean, mc_dropout(model, x, passes=5, seed=1).mean)


def test_mc_dropout_of_a_regression_keeps_the_outputs():
    model, x = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 1)), torch.randn(4, 3)
    found = mc_dropout(model, x, passes=20, probabilities=False)
    assert found.entropy is None
    assert (found.variance > 0).all()


def test_mc_dropout_reaches_timms_attention():
    import timm

    model = timm.models.VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, embed_dim=16, depth=1, num_heads=2, num_classes=3, attn_drop_rate=0.5
    )
    assert (mc_dropout(model, torch.randn(2, 1, 28, 28), passes=5).variance > 0).all()


@pytest.mark.parametrize("passes", [0, -1, 2.0, True])
def test_mc_dropout_needs_passes(passes):
    with pytest.raises(ValueError, match=rf"passes is {passes}: expected a number of forward passes"):
        mc_dropout(mc_model(), torch.randn(2, 5), passes=passes)


def test_mc_dropout_needs_dropout_that_is_on():
    with pytest.raises(ValueError, match="no dropout with a rate above 0"):
        mc_dropout(nn.Linear(5, 2), torch.randn(2, 5), passes=3)
    model = mc_model()
    scheduler = DropoutScheduler(model, earlydrop.early(0.5, cutoff=1))
    scheduler.step()
    with pytest.raises(ValueError, match="before the schedule switches it off"):
        mc_dropout(model, torch.randn(2, 5), passes=3)


def test_classic_schedules_follow_their_formulas():
    annealed = earlydrop.annealed(0.4, "50%").resolve(20)
    curriculum = earlydrop.curriculum(0.4).resolve(20)
    ramp = earlydrop.ramp(0.4, "50%").resolve(20)
    for t in range(25):
        assert annealed(t) == pytest.approx(max(0, 1 - t / 10) * 0.4)
        assert curriculum(t) == pytest.approx(0.4 * (1 - math.exp(-t * 10 / 20)))
        assert ramp(t) == pytest.approx(0.4 * min(1, t / 10))
    assert earlydrop.schedules.from_config(curriculum.to_config()) == curriculum
    assert earlydrop.ramp(0.4, 0)(0) == 0.4
    assert earlydrop.annealed(0.4, 0)(0) == 0.0


@pytest.mark.parametrize("gamma", [0, -0.1, float("nan"), float("inf"), "x"])
def test_a_gamma_that_does_not_rise_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma is .*: expected more than 0"):
        earlydrop.curriculum(0.5, gamma)


@pytest.mark.parametrize("make", [earlydrop.annealed, earlydrop.ramp])
def test_bad_rates_and_cutoffs_are_refused(make):
    with pytest.raises(ValueError, match=r"1\.2"):
        make(1.2)
    with pytest.raises(ValueError, match="-3"):
        make(0.1, -3)
    with pytest.raises(ValueError, match="resolve"):
        make(0.1, "20%")(0)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_refuse_bad_rates(layer):
    with pytest.raises(ValueError, match=r"p is 1\.0"):
        layer(1.0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_mc_dropout_reaches_torchs_transformer_layers(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=batch_first)
    found = mc_dropout(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(4, 3, 8), passes=8, probabilities=False
    )
    assert (found.variance > 0).any()
    assert torch.backends.mha.get_fastpath_enabled()


def test_max_norm_reaches_attentions_projections():
    attention = nn.MultiheadAttention(8, 2)
    max_norm_(attention, 0.3)
    assert attention.in_proj_weight.norm(dim=1).max() <= 0.3 + 1e-6
    with pytest.raises(ValueError, match="parametrization"):
        max_norm_(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), 0.5)


@pytest.mark.parametrize("driven", [True, False])
def test_the_whole_dataset_gradient_of_standard_dropout_is_of_the_network_used_at_test(driven):
    """Standard dropout before weights w is inverted dropout before (1 - p) w: the same function, so the same measures of direction."""
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

    reports = [earlydrop.probe(model, loss_fn, data, dataset=data) for model in (standard, inverted)]
    assert reports[0].dataset_gradient_norm == pytest.approx(reports[1].dataset_gradient_norm, rel=1e-5)
    assert "forward" not in standard[2].__dict__
