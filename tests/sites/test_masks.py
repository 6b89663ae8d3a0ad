import pytest
import timm
import torch
from torch import nn

from earlydrop import DropoutScheduler, constant, early
from earlydrop.sites import masks
from earlydrop.sites.masks import COMPILED, fast_dropout, fast_inverted

RATES = [0.001, 0.01, 0.1, 0.3, 0.5, 0.9]


N = 4_000_003


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fraction_mean_and_gradient(rate, dtype):
    x = torch.ones(N, dtype=dtype, requires_grad=True)
    y = fast_dropout(x, rate)
    drawn = round(rate * 65_536) / 65_536
    error = (drawn * (1 - drawn) / N) ** 0.5
    dropped = (y == 0).double().mean().item()
    assert abs(dropped - drawn) < 5 * error
    if dtype is not torch.bfloat16:
        assert abs(y.double().mean().item() - 1) < 5 * error / (1 - drawn)
    assert y.dtype == dtype
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_every_sixteen_bit_lane_drops_alike():
    """The four numbers in one 64-bit word; plain random_() would never drop in one of them."""
    y = fast_dropout(torch.ones(1_000_000, 4), 0.25) == 0
    assert torch.allclose(
        y.double().mean(0), torch.tensor(0.25).double(), atol=5 * (0.25 * 0.75 / 1e6) ** 0.5
    )


def correlation(a, b):
    return (
        torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1].abs().item()
    )


def test_neighbours_rows_and_calls_are_independent():
    first, second = (fast_dropout(torch.ones(2_000, 1_000), 0.3) == 0 for _ in range(2))
    limit = 5 / first.numel() ** 0.5
    for lag in (1, 2, 3, 4, 5, 8, 16, 64, 500):
        assert correlation(first.flatten()[:-lag], first.flatten()[lag:]) < limit
    for lag in (1, 2, 7):
        assert correlation(first[:-lag], first[lag:]) < limit
    assert correlation(first, second) < limit


def test_runs_and_pairs_have_binomial_counts():
    """Chi-square of all 8-bit patterns of consecutive decisions at rate 0.5."""
    bits = (fast_dropout(torch.ones(8 * 400_000), 0.5) == 0).view(-1, 8).long()
    counts = torch.bincount((bits * 2 ** torch.arange(8)).sum(1), minlength=256).double()
    expected = bits.shape[0] / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 255 - 5 * (2 * 255) ** 0.5 < chi_square < 255 + 5 * (2 * 255) ** 0.5


def test_a_seed_gives_the_same_masks_and_rate_zero_none():
    x = torch.randn(1_001)
    torch.manual_seed(5)
    first = fast_dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(first, fast_dropout(x, 0.3))
    assert torch.equal(fast_dropout(x, 0.0), x)
    assert fast_dropout(torch.empty(0, 3), 0.3).shape == (0, 3)
    assert fast_dropout(torch.ones(4, 6).t(), 0.5).shape == (6, 4)
    assert fast_dropout(torch.ones(()), 0.5).shape == ()


def test_the_scheduler_uses_them_when_asked():
    model = nn.Sequential(nn.Dropout(0.5))
    x = torch.ones(1_000)
    DropoutScheduler(model, constant(0.5), masks="fast")
    torch.manual_seed(1)
    ours = model(x)
    torch.manual_seed(1)
    assert torch.equal(ours, fast_dropout(x, 0.5))
    inplace = nn.Sequential(nn.Dropout(0.5, inplace=True))
    DropoutScheduler(inplace, constant(0.5), masks="fast")
    assert inplace(x) is x


def test_fused_attention_gives_way_while_fast_masks_are_on():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2, attn_drop_rate=0.1
    )
    attention = model.blocks[0].attn
    before = attention.fused_attn
    scheduler = DropoutScheduler(model, early(0.1, cutoff=2), masks="fast")
    assert attention.fused_attn is False
    model.eval()
    assert attention.fused_attn is before
    model.train()
    for _ in range(2):
        scheduler.step()
    assert attention.fused_attn is before
    scheduler.restore()
    assert attention.fused_attn is before


newer = pytest.mark.skipif(not COMPILED, reason="compiled graphs draw native masks on this torch")


@newer
@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.001, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_as_a_tensor_gives_the_masks_of_the_rate_as_a_number(rate, dtype):
    x = torch.randn(1_001, dtype=dtype, requires_grad=True)
    torch.manual_seed(5)
    expected = fast_dropout(x, rate)
    torch.manual_seed(5)
    found = fast_inverted(x, torch.tensor(rate))
    assert found.dtype == dtype
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)))


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.oldest
def test_two_layers_of_a_compiled_graph_draw_two_masks():
    """Whatever the torch: two draws of the same shape are never taken for one."""
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5))
    DropoutScheduler(model, constant(0.5), masks="fast")
    kept = (torch.compile(model)(torch.ones(400_000)) != 0).double().mean().item()
    assert abs(kept - 0.25) < 5 * (0.25 * 0.75 / 400_000) ** 0.5


@pytest.mark.usefixtures("needs_compiler")
@newer
def test_compiled_graphs_draw_them_in_three_graphs_with_the_mean_kept():
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5))
    scheduler = DropoutScheduler(model, early(0.4, cutoff=3), masks="fast")
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled, x = torch.compile(model), torch.ones(400_000, requires_grad=True)
    for _ in range(4):
        rate = round(scheduler.last_rate * 65_536) / 65_536
        torch.manual_seed(7)
        y = compiled(x)
        kept = (1 - rate) ** 2  # two layers: each draws its own mask
        assert (
            abs((y != 0).double().mean().item() - kept)
            <= 5 * (kept * (1 - kept) / x.numel()) ** 0.5
        )
        assert y.max().item() == pytest.approx(1 / kept, rel=1e-6)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, y.detach())
        torch.manual_seed(7)
        assert torch.equal(y, model(x))
        scheduler.step()
    model.eval()
    assert torch.equal(compiled(x), x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 3


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.oldest
def test_recomputation_in_a_compiled_graph_has_the_masks_of_the_forward():
    layer = nn.Dropout(0.5)
    model = nn.Sequential(layer)
    DropoutScheduler(model, constant(0.5), masks="fast")

    def forward(x):
        return torch.utils.checkpoint.checkpoint(
            lambda x: layer(x * 1.0) * 2.0, x, use_reentrant=False
        )

    x = torch.ones(10_000, requires_grad=True)
    y = torch.compile(forward)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=newer)])
def test_models_side_by_side_are_refused_not_given_the_same_masks(compiled):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    DropoutScheduler(model, constant(0.5), masks="fast")
    many = {name: torch.stack([value, value]) for name, value in model.named_parameters()}

    def forward(one):
        return torch.func.functional_call(model, one, (torch.ones(2, 4),))

    act = torch.func.vmap(forward, randomness="different")
    with pytest.raises(RuntimeError, match="make the scheduler with masks='native'"):
        (torch.compile(act) if compiled else act)(many)


def test_an_input_that_is_the_same_for_all_models_is_refused_too():
    layer = nn.Sequential(nn.Dropout(0.5))
    DropoutScheduler(layer, constant(0.5), masks="fast")
    x = torch.ones(4)
    for act in (
        lambda: torch.func.vmap(lambda p: layer(x) * p, randomness="different")(torch.ones(3)),
        lambda: torch.func.vmap(torch.func.grad(lambda p: layer(p).sum()), randomness="different")(
            torch.ones(3, 2)
        ),
    ):
        with pytest.raises(RuntimeError, match="make the scheduler with masks='native'"):
            act()
    assert torch.func.grad(lambda p: layer(p).sum())(x).shape == x.shape


LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.jagged, torch.strided], ids=["jagged", "strided"]
)


def nested(layout):
    return torch.nested.nested_tensor([torch.ones(300, 8), torch.ones(500, 8)], layout=layout)


@LAYOUTS
@pytest.mark.parametrize("compiled", [False, True])
def test_nested_tensors_drop_at_the_rate(layout, compiled):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Dropout(0.5))
    scheduler = DropoutScheduler(model, early(0.5, cutoff=2))
    act = torch.compile(model, backend="aot_eager") if compiled else model
    for _ in range(3):
        x = nested(layout).detach().requires_grad_()
        y = act(x)
        y.values().sum().backward()
        values, gradient = y.values(), torch.cat([part.flatten() for part in x.grad.unbind()])
        assert (values == 0).float().mean().item() == pytest.approx(scheduler.last_rate, abs=0.05)
        assert values.mean().item() == pytest.approx(1, abs=0.1)
        assert torch.equal(gradient, values.detach().flatten())
        scheduler.step()


@LAYOUTS
@pytest.mark.parametrize("compiled", [False, True])
def test_fast_masks_say_that_they_take_no_nested_tensors(layout, compiled):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Dropout(0.5))
    DropoutScheduler(model, constant(0.5), masks="fast")
    with pytest.raises(
        RuntimeError,
        match="masks='fast' does not take nested tensors: make the scheduler with masks='native'",
    ):
        (torch.compile(model, backend="aot_eager") if compiled else model)(nested(layout))


def drawn(draw, *arguments, **options):
    torch.manual_seed(3)
    return draw(*arguments, **options)


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.9])
@pytest.mark.parametrize("scale", [True, False])
def test_inverted_dropout_is_its_formula(rate, scale):
    x = torch.randn(50, 4, dtype=torch.float64)
    tensor_rate = torch.tensor(rate)
    kept = (drawn(torch.rand, 50, 1) >= rate).double()
    expected = x * kept / (1 - rate) if scale else x * kept
    torch.testing.assert_close(
        drawn(masks.inverted, x, tensor_rate, (50, 1), scale), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.9])
def test_gaussian_noise_is_its_formula(rate):
    x = torch.randn(200, dtype=torch.float64)
    noise = drawn(torch.randn, 200).double()
    expected = x * (1 + (rate / (1 - rate)) ** 0.5 * noise)
    torch.testing.assert_close(
        drawn(masks.gaussian, x, torch.tensor(rate)), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.9])
def test_alpha_dropout_is_its_formula(rate):
    x = torch.randn(200, dtype=torch.float64)
    kept = drawn(torch.rand, 200) >= rate
    low = -1.0507009873554805 * 1.6732632423543772  # minus SELU's scale times its alpha
    a = ((1 - rate) * (1 + rate * low**2)) ** -0.5
    expected = a * torch.where(kept, x, low) - a * low * rate
    torch.testing.assert_close(
        drawn(masks.alpha, x, torch.tensor(rate), x.shape), expected, rtol=1e-5, atol=1e-6
    )


def test_at_rate_one_every_entry_is_finite():
    """A rate just below 1 rounds to 1 in float32."""
    x, rate = torch.ones(1_000), torch.tensor(1 - 1e-9)
    assert rate == 1
    assert masks.inverted(x, rate, x.shape).eq(0).all()
    for function in (masks.gaussian, lambda x, rate: masks.alpha(x, rate, x.shape)):
        assert function(x, rate).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_input(dtype):
    x, rate = torch.ones(8, dtype=dtype), torch.tensor(0.5)
    assert masks.inverted(x, rate, x.shape).dtype == dtype
    assert masks.gaussian(x, rate).dtype == dtype
    assert masks.alpha(x, rate, x.shape).dtype == dtype


def test_nested_tensors_are_kept_or_divided_by_the_keep_probability():
    values = masks.nested(nested(torch.jagged), torch.tensor(0.25)).values().unique()
    assert values.tolist() == pytest.approx([0, 1 / 0.75])


@pytest.mark.parametrize("couple_channels", [True, False])
def test_the_channels_of_drop_block_share_a_mask_if_coupled(couple_channels):
    y = drawn(
        masks.timm_drop_block,
        torch.ones(8, 4, 12, 12),
        torch.tensor(0.3),
        block_size=3,
        gamma_scale=1.0,
        with_noise=False,
        couple_channels=couple_channels,
        scale_by_keep=True,
    )
    dropped = y == 0
    assert dropped.any()
    assert bool((dropped == dropped[:, :1]).all()) == couple_channels
