import pytest
import timm
import torch
import torchvision
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import nn

import earlydrop
from earlydrop.sites import choose_sites, find_sites, sites_off


def vit(**rates):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=4, **rates)


def test_finds_every_family():
    model = nn.ModuleDict(
        {
            "dropout": nn.Dropout(0.1),
            "d1": nn.Dropout1d(0.1),
            "d2": nn.Dropout2d(0.1),
            "d3": nn.Dropout3d(0.1),
            "alpha": nn.AlphaDropout(0.1),
            "falpha": nn.FeatureAlphaDropout(0.1),
            "path": DropPath(0.1),
            "sd": torchvision.ops.StochasticDepth(0.1, "row"),
            "block": DropBlock2d(0.1),
            "tvblock": torchvision.ops.DropBlock2d(0.1, 3),
            "tvblock3": torchvision.ops.DropBlock3d(0.1, 3),
            "patch": PatchDropout(0.1),
            "mha": nn.MultiheadAttention(4, 2, dropout=0.1),
            "lstm": nn.LSTM(4, 4, 2, dropout=0.1),
            "gru": nn.GRU(4, 4, 2, dropout=0.1),
        }
    )
    sites = {site.name: site for site in find_sites(model)}
    assert set(sites) == set(model)
    assert {name for name, site in sites.items() if site.kind == "path"} == {"path", "sd"}
    assert all(site.rate == site.base_rate == 0.1 for site in sites.values())


def test_a_swin_attention_has_two_rates():
    model = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [4, 4], attention_dropout=0.2, dropout=0.1)
    rates = {site.name: site.rate for site in find_sites(model)}
    assert rates["features.1.0.attn.attention_dropout"] == 0.2
    assert rates["features.1.0.attn.dropout"] == 0.1


def test_default_drives_what_was_built_above_zero():
    names = [site.name for site in choose_sites(vit(proj_drop_rate=0.1))]
    assert names == [f"blocks.{i}.{part}" for i in range(3) for part in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")]
    assert [s.name for s in choose_sites(vit(drop_path_rate=0.2), "path")] == [
        f"blocks.{i}.drop_path{j}" for i in (1, 2) for j in (1, 2)
    ]


def test_names_globs_and_predicates():
    model = vit(proj_drop_rate=0.1)
    assert [s.name for s in choose_sites(model, sites="blocks.0.mlp.*")] == ["blocks.0.mlp.drop1", "blocks.0.mlp.drop2"]
    assert len(choose_sites(model, sites=["blocks.1.mlp.drop1", "blocks.2.*.proj_drop"])) == 2
    assert len(choose_sites(model, sites=lambda name, module: "drop2" in name)) == 3


def test_a_depth_profile_keeps_its_shape():
    model = vit(drop_path_rate=0.2)
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.5), kind="path")
    assert model.blocks[2].drop_path1.drop_prob == 0.5
    assert model.blocks[1].drop_path1.drop_prob == 0.5 * (0.10000000149011612 / 0.20000000298023224)
    scheduler.restore()
    assert model.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)


def test_all_chosen_at_zero_count_as_equal():
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2), nn.Dropout(0.0))
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.3), sites="*")
    assert scheduler.rates == {"0": 0.3, "2": 0.3}


class FunctionalDropout(nn.Module):
    """As in transformers: a plain float attribute."""

    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.1

    def forward(self, x):
        return nn.functional.dropout(x, self.attention_dropout, self.training)


def test_plain_attributes_only_when_named():
    model = nn.Sequential(FunctionalDropout(), nn.Dropout(0.1))
    assert [s.name for s in choose_sites(model)] == ["1"]
    assert [s.name for s in choose_sites(model, sites="*")] == ["1"]
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.5), sites=["*.attention_dropout", "1"])
    assert scheduler.rates == {"0.attention_dropout": 0.5, "1": 0.5}
    assert (model(torch.ones(4_000)) == 0).float().mean() > 0.6
    scheduler.restore()
    assert model[0].attention_dropout == 0.1
    assert repr(choose_sites(model)[0]) == "Site(name='1', attribute='p', kind='unit')"


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (nn.Linear(2, 2), {}, "no unit site.*proj_drop_rate"),
        (FunctionalDropout(), {}, "attention_dropout=0.1: sites='attention_dropout' drives it"),
        (nn.Sequential(nn.Dropout(0.1)), {"kind": "path"}, "no path site.*kind='unit'"),
        (nn.Sequential(nn.Dropout(0.0)), {}, r"built with rate 0.*sites='\*'"),
        (nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.1)), {"sites": "*"}, "mixes rates of 0"),
        (nn.Sequential(nn.Dropout(0.1)), {"kind": "units"}, "kind is 'units'"),
        (nn.Sequential(nn.Dropout(0.1)), {"sites": "blocks.*"}, "'blocks.*' matches none.*: 0"),
        (nn.Sequential(nn.Dropout(0.1)), {"sites": []}, "sites is empty"),
        (nn.Sequential(nn.Dropout(0.1)), {"sites": lambda n, m: False}, "predicate chose none"),
        (nn.Sequential(nn.Dropout(0.1)), {"masks": "quick"}, "masks is 'quick'"),
    ],
)
def test_bad_choices_name_the_remedy_and_leave_the_model_alone(model, options, says):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=says):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), **options)
    assert [type(module) for module in model.modules()] == before


def test_sites_off_switches_driven_and_other_sites_off_and_back():
    model = vit(proj_drop_rate=0.3, pos_drop_rate=0.3, drop_path_rate=0.3)
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.2))
    x = torch.randn(2, 3, 32, 32)
    with sites_off(model):
        assert torch.equal(model(x), model(x))
        assert torch.equal(model(x), model.eval()(x))
        model.train()
    assert not torch.equal(model(x), model(x))
    assert scheduler.last_rate == 0.2
    assert {s.name: s.rate for s in find_sites(model) if s.kind == "path"}["blocks.2.drop_path1"] == pytest.approx(0.3)
