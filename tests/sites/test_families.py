"""Drop layers of other packages.

A layer is driven if its name and code show what it does. Otherwise a warning names it.
"""

import copy
import random
import warnings

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, audit, constant, early, find_sites, none
from tests.sites import others_layers as others

X = torch.randn(64, 6, 4)
OWN = {
    "my": (others.MyDropout, {"": 0.3}, "unit"),
    "fairseq": (others.FairseqDropout, {"": 0.3}, "unit"),
    "fairseq layers": (others.Encoder, {"layers": 0.3}, "path"),
    "torchtune": (others.TuneLayer, {"drop": 0.3}, "path"),
    "vit-pytorch": (others.PatchDropout, {"": 0.3}, "unit"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_class_that_says_it_drops_is_driven_as_set_by_hand(name):
    make, sites, kind = OWN[name]
    model, by_hand = nn.ModuleDict({"a": make()}), nn.ModuleDict({"a": make()})
    by_hand.load_state_dict(model.state_dict())
    expected = {f"a.{inner}".removesuffix("."): rate for inner, rate in sites.items()}
    assert {site.name: site.rate for site in find_sites(model)} == expected
    assert {site.kind for site in find_sites(model)} == {kind}
    schedule = early(0.5, cutoff=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = DropoutScheduler(model, schedule, kind=kind)
    module = by_hand.get_submodule(next(iter(expected)))
    attribute = next(a for a in ("p", "prob") if hasattr(module, a))
    for step in range(5):
        setattr(module, attribute, schedule(step))
        torch.manual_seed(step)
        want = by_hand["a"](X)
        torch.manual_seed(step)
        assert torch.equal(model["a"](X), want)
        scheduler.step()
    assert not audit(model["a"], X).undriven
    scheduler.restore()
    assert {site.name: site.rate for site in find_sites(model)} == expected


@pytest.mark.parametrize("sites", ["0", "0.p", "*.p", "*"])
def test_it_can_be_named(sites):
    scheduler = DropoutScheduler(nn.Sequential(others.MyDropout()), constant(0.2), sites=sites)
    assert scheduler.rates == {"0": 0.2}


def test_alone_its_name_is_its_attribute():
    assert DropoutScheduler(others.MyDropout(), constant(0.2)).rates == {"p": 0.2}


def test_what_its_code_does_not_read_is_warned_of_and_driven_when_named():
    model = nn.Sequential(nn.Dropout(0.1), others.DropHandedOn(layer=False), nn.Dropout(0.0))
    with pytest.warns(UserWarning, match=r"looks like a drop rate: 1\.p=0\.3.*\['1'\]") as warned:
        scheduler = DropoutScheduler(model, constant(0.2))
    assert len(warned) == 1
    assert scheduler.rates == {"0": 0.2}
    scheduler.restore()
    names = [site.name for site in find_sites(model) if site.base_rate > 0] + ["1"]  # what it says
    assert set(DropoutScheduler(model, constant(0.2), sites=names).rates) == {"0", "1"}
    assert [drop.status for drop in audit(model, X).undriven] == [
        "undriven"
    ]  # it was built into a function


def test_a_rate_that_is_handed_on_to_a_layer_inside_is_no_second_site():
    model = nn.Sequential(others.DropHandedOn(), others.HandedOn())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = DropoutScheduler(model, constant(0.2))
    assert scheduler.rates == {"0.inner": 0.2, "1.inner": 0.2}


def test_names_that_do_not_say_drop_are_left_alone():
    class Raindrops(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = 0.5

        def forward(self, x):
            return x * self.rate

    assert find_sites(Raindrops()) == []


def test_a_block_that_drops_by_a_rate_beside_its_drop_path():
    """As in DINOv2."""
    model = nn.Sequential(others.DinoBlock(0.3), others.DinoBlock(0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = DropoutScheduler(model, early(0.3, cutoff=1), kind="path")
    assert scheduler.rates == {
        f"{i}.{name}": 0.3 for i in range(2) for name in ("sample_drop_ratio", "drop_path1")
    }
    x = torch.randn(64, 4)
    assert not torch.equal(model(x), model(x))
    scheduler.step()
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), copy.deepcopy(model).eval()(x))


def test_a_rate_beside_a_driven_layer_that_differs_from_it_is_named():
    model = nn.Sequential(others.DinoBlock(0.3))
    model[0].sample_drop_ratio = 0.25
    with pytest.warns(UserWarning, match=r"0\.sample_drop_ratio=0\.25"):
        DropoutScheduler(model, none(), kind="path")
    with warnings.catch_warnings():  # a rate that says that it is dropout is of the other kind
        warnings.simplefilter("error")
        model = nn.Sequential(others.DinoBlock(0.3))
        model[0].hidden_dropout = 0.2
        type(model[0]).forward_of_another = lambda self, x: nn.functional.dropout(
            x, self.hidden_dropout
        )
        DropoutScheduler(model, none(), kind="path")
    del others.DinoBlock.forward_of_another


def test_rates_in_a_tuple_are_named():
    """As in x-transformers."""
    model = nn.Sequential(others.Layers())
    with pytest.warns(
        UserWarning,
        match=(
            r"rates in a tuple or a list cannot be driven: "
            r"0\.layer_dropouts=\(0\.3, 0\.3, 0\.3, 0\.3\)"
        ),
    ):
        DropoutScheduler(model, constant(0.1), kind="all")
    earlydrop.restore(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DropoutScheduler(model, constant(0.1))  # the other kind
        DropoutScheduler(nn.Sequential(others.Layers(layer_dropout=0.0)), constant(0.1), kind="all")
    with pytest.raises(
        ValueError, match=r"0\.layer_dropouts=\(0\.3, 0\.3, 0\.3, 0\.3\) are rates in a tuple"
    ):
        DropoutScheduler(model, constant(0.1), kind="path")
    random.seed(0)
    assert audit(model, torch.randn(8, 4)).undriven


def test_attention_that_takes_the_rate_of_its_own_dropouts_is_driven():
    """As in nanoGPT."""
    model, by_hand = others.GPT(), others.GPT()
    by_hand.load_state_dict(model.state_dict())
    schedule = early(0.4, cutoff=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = DropoutScheduler(model, schedule)
    assert set(scheduler.rates) == {"drop"} | {
        f"h.{i}.attn.{name}"
        for i in range(2)
        for name in ("dropout", "attn_dropout", "resid_dropout")
    }
    tokens = torch.randint(0, 20, (4, 9))
    for step in range(5):
        for module in by_hand.modules():
            if isinstance(module, nn.Dropout):
                module.p = schedule(step)
            elif isinstance(module, others.CausalSelfAttention):
                module.dropout = schedule(step)
        torch.manual_seed(step)
        want = by_hand(tokens)
        torch.manual_seed(step)
        assert torch.equal(model(tokens), want)
        scheduler.step()
    assert not audit(model, tokens).undriven
    assert torch.equal(model(tokens), model(tokens))
    scheduler.restore()
    assert model.h[0]["attn"].dropout == 0.1


def test_a_rate_that_is_not_that_of_its_dropouts_is_only_named():
    model = others.GPT()
    for block in model.h:
        block["attn"].dropout = 0.2
    with pytest.warns(UserWarning, match=r"h\.0\.attn\.dropout=0\.2, h\.1\.attn\.dropout=0\.2"):
        scheduler = DropoutScheduler(model, constant(0.1))
    assert "h.0.attn.dropout" not in scheduler.rates


def test_a_copy_of_a_driven_model_has_the_same_sites():
    model = others.GPT()
    names = [(site.name, site.base_rate) for site in find_sites(model)]
    scheduler = DropoutScheduler(model, early(0.4, cutoff=3))
    scheduler.step()
    copied = copy.deepcopy(model)
    assert [(site.name, site.base_rate) for site in find_sites(copied)] == names
    assert DropoutScheduler(copied, constant(0.2)).rates == dict.fromkeys(scheduler.rates, 0.2)
