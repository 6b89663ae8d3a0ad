import copy

import pytest
import timm
import torch
from torch import nn

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


def test_a_copy_of_a_driven_model_keeps_its_rates():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.late(0.5, cutoff=10))
    twin = copy.deepcopy(model)
    assert twin[1].p == 0.0
    with sites_off(twin):
        pass
    assert twin[1].p == 0.0
    assert find_sites(twin)[0].base_rate == 0.5
    batches = [torch.randn(8, 4) for _ in range(3)]

    def loss(model, batch):
        return model(batch).mean()

    measured = [earlydrop.probe(twin, loss, batches, dataset=given) for given in (None, batches)]
    assert measured[0].gdv == pytest.approx(measured[1].gdv, rel=1e-5)
    assert scheduler.last_rate == 0.0
    assert earlydrop.DropoutScheduler(twin, earlydrop.constant(0.4)).sites[0].base_rate == 0.5
