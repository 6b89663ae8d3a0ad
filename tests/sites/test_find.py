import torchvision
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import nn

from earlydrop.sites import find_sites


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
    model = torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1], [1, 1], [4, 4], attention_dropout=0.2, dropout=0.1
    )
    rates = {site.name: site.rate for site in find_sites(model)}
    assert rates["features.1.0.attn.attention_dropout"] == 0.2
    assert rates["features.1.0.attn.dropout"] == 0.1
