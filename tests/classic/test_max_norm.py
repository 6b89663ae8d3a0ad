import pytest
import torch
from torch import nn

from earlydrop import max_norm_


def test_max_norm_limits_each_units_incoming_weights():
    model = nn.Sequential(
        nn.Linear(20, 10), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    before = [m.weight.detach().clone() for m in model]
    biases = [m.bias.detach().clone() for m in model]
    max_norm_(model, 3.0)
    rows = [
        before[0],
        before[1].flatten(1),
        before[2].unflatten(0, (2, 3)).transpose(1, 2).flatten(2).flatten(0, 1),
    ]
    after = [m.weight.detach() for m in model]
    after_rows = [
        after[0],
        after[1].flatten(1),
        after[2].unflatten(0, (2, 3)).transpose(1, 2).flatten(2).flatten(0, 1),
    ]
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


def test_max_norm_reaches_attentions_projections():
    attention = nn.MultiheadAttention(8, 2)
    max_norm_(attention, 0.3)
    assert attention.in_proj_weight.norm(dim=1).max() <= 0.3 + 1e-6
    with pytest.raises(ValueError, match="parametrization"):
        max_norm_(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), 0.5)


@pytest.mark.parametrize(
    "computed",
    [
        lambda: torch.nn.utils.weight_norm(nn.Linear(4, 4)),
        lambda: torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        lambda: torch.nn.utils.prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: torch.nn.utils.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_before_each_forward_are_refused_by_name(computed):
    import torch.nn.utils.prune

    model = nn.Sequential(nn.Linear(4, 4), computed())
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(
        ValueError, match=r"1 computes its weight by a (hook|parametrization).*remove it first"
    ):
        max_norm_(model, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_transformers_conv1d_is_a_linear_layer_the_other_way_round():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(3, 5)
    layer.weight.data.mul_(1_000)
    max_norm_(layer, 2.0)
    assert torch.allclose(layer.weight.norm(dim=0), torch.full((3,), 2.0))
