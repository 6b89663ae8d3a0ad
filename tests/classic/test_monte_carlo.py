import pytest
import torch
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, mc_dropout
from tests.sites import small_models


def mc_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)
    )


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
        img_size=28,
        patch_size=7,
        in_chans=1,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        attn_drop_rate=0.5,
    )
    assert (mc_dropout(model, torch.randn(2, 1, 28, 28), passes=5).variance > 0).all()


@pytest.mark.parametrize("passes", [0, -1, 2.0, True])
def test_mc_dropout_needs_passes(passes):
    with pytest.raises(
        ValueError, match=rf"passes is {passes}: expected a number of forward passes"
    ):
        mc_dropout(mc_model(), torch.randn(2, 5), passes=passes)


def test_mc_dropout_needs_dropout_that_is_on():
    with pytest.raises(ValueError, match="no dropout with a rate above 0"):
        mc_dropout(nn.Linear(5, 2), torch.randn(2, 5), passes=3)
    model = mc_model()
    scheduler = DropoutScheduler(model, earlydrop.early(0.5, cutoff=1))
    scheduler.step()
    with pytest.raises(ValueError, match="before the schedule switches it off"):
        mc_dropout(model, torch.randn(2, 5), passes=3)


@pytest.mark.parametrize("batch_first", [True, False])
def test_mc_dropout_reaches_torchs_transformer_layers(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=batch_first)
    found = mc_dropout(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        torch.randn(4, 3, 8),
        passes=8,
        probabilities=False,
    )
    assert (found.variance > 0).any()
    assert torch.backends.mha.get_fastpath_enabled()


def small_bert(**rates):
    return small_models.bert("BertForSequenceClassification", initializer_range=0.5, **rates)


def test_mc_dropout_reaches_attention_dropout_alone_and_takes_structured_outputs():
    model = small_bert(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    ids = torch.randint(0, 60, (3, 7))
    found = mc_dropout(model, {"input_ids": ids}, passes=5)
    assert (found.variance > 0).all()
    assert found.mean.shape == (3, 2)
    selected = mc_dropout(model, ids, passes=5, select=lambda output: output[0])
    assert torch.equal(selected.mean, found.mean)
    with pytest.raises(
        ValueError, match=r"BaseModelOutputWithPooling.* without logits: give select="
    ):
        mc_dropout(model.bert, ids, passes=2)


def test_mc_dropout_switches_on_exactly_what_the_audit_finds():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.own = nn.Linear(5, 5), nn.BatchNorm1d(5), 0.5

        def forward(self, x):
            return nn.functional.dropout(self.norm(self.first(x)), self.own, self.training)

    model, x = Net(), torch.randn(6, 5)
    model(x)
    found = mc_dropout(model, x, passes=30, probabilities=False)
    assert (found.variance > 0).all()
    expected = model.eval()(x)
    assert (
        (found.mean - expected).abs() < 5 * (found.variance / 30).sqrt() + 1e-6
    ).all()  # not the batch's own statistics
    with pytest.raises(ValueError, match="no dropout with a rate above 0"):
        mc_dropout(
            small_bert(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0),
            torch.randint(0, 60, (3, 7)),
            passes=2,
        )
