import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import earlydrop
from earlydrop.sites.bank import RateBank
from earlydrop.sites.drive import banks_in
from tests.sites.others_layers import Encoder, LayerDropModuleList, MyDropout


def test_a_rate_set_while_silenced_acts_only_afterwards():
    bank = RateBank(["a", "b"], [0.2, 0.1], ["unit", "unit"])
    bank.set(0.4)
    with bank.silenced():
        bank.set(0.1)
        assert not bank.on
        assert [bank.rate(i) for i in range(2)] == [0.0, 0.0]
        bank.hold_base_rates()
        assert not bank.on
        bank.set(0.3)
        assert not bank.on
    assert bank.on
    assert [bank.rate(i) for i in range(2)] == pytest.approx([0.3, 0.15])


def test_a_bank_that_was_off_is_on_after_a_rate_was_set_while_silenced():
    bank = RateBank(["a"], [0.5], ["unit"])
    with bank.silenced():
        bank.set(0.2)
        assert not bank.on
    assert bank.on
    with bank.silenced():
        bank.set(0.0)
    assert not bank.on


def test_a_rate_set_at_base_rates_holds_afterwards():
    bank = RateBank(["a", "b"], [0.2, 0.1], ["unit", "unit"])
    bank.set(0.4)
    with bank.at_base_rates():
        assert bank.rates == [0.2, 0.1]
        bank.set(0.3)
        assert bank.rates == pytest.approx([0.3, 0.15])
    assert bank.rates == pytest.approx([0.3, 0.15])
    with bank.at_base_rates():
        bank.set(0.0)
    assert not bank.on
    bank.hold_base_rates()
    bank.set(0.0)  # the value is as before, the rates are not
    assert bank.rates == [0.0, 0.0]


class FarContainer(nn.Module):
    """Reads a container two levels below. The modules between them have no forward."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.layers = LayerDropModuleList(0.5, [nn.Linear(4, 4) for _ in range(12)])

    def forward(self, x):
        for layer in self.inner.layers:
            x = x + layer(x)
        return x


@pytest.fixture(
    params=[
        (lambda: nn.Dropout(0.5), "0"),
        (lambda: MyDropout(0.5), "0.p"),
        (lambda: Encoder(0.5, layers=12), "0.layers.p"),
        (FarContainer, "0.inner.layers.p"),
    ],
    ids=["layer", "float", "container", "far container"],
)
def driven(request):
    """A driven model at rate 0.2, whose base rate is 0.5, and its bank."""
    make, site = request.param
    model = nn.Sequential(make(), nn.Linear(4, 4))
    earlydrop.DropoutScheduler(model, earlydrop.constant(0.2), kind="all", sites=site)
    (bank,) = banks_in(model)
    assert bank.rate(0) == pytest.approx(0.2)
    return model, bank


def checkpointed(model):
    return checkpoint(model, torch.ones(8, 4), use_reentrant=False).sum()


@pytest.mark.parametrize("context", ["silenced", "at_base_rates"])
def test_a_forward_at_other_rates_is_not_recomputed_at_the_rates_of_now(driven, context):
    model, bank = driven
    with getattr(bank, context)():
        loss = checkpointed(model)
    with pytest.raises(RuntimeError, match="the rate of site"):
        loss.backward()


@pytest.mark.parametrize("context", ["silenced", "at_base_rates"])
def test_after_other_rates_a_forward_is_recomputed_as_it_was(driven, context):
    model, bank = driven
    before = checkpointed(model)
    with getattr(bank, context)():
        checkpointed(model)
    after = checkpointed(model)
    before.backward()
    after.backward()
