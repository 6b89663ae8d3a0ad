import pytest
import timm
import torch

import earlydrop
from earlydrop.sites import find_sites, sites_off


def vit(**rates):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=4, **rates)


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
    assert {s.name: s.rate for s in find_sites(model) if s.kind == "path"}[
        "blocks.2.drop_path1"
    ] == pytest.approx(0.3)
