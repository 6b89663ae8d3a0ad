import pytest
import timm
import torch
from torch import nn

from earlydrop import DropoutScheduler, constant, early
from earlydrop.sites.masks import fast_dropout

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
    assert torch.allclose(y.double().mean(0), torch.tensor(0.25).double(), atol=5 * (0.25 * 0.75 / 1e6) ** 0.5)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1].abs().item()


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
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2, attn_drop_rate=0.1)
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
