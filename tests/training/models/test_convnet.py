import pytest
import torch

from earlydrop.sites import find_sites
from earlydrop.training.config import ModelConfig
from earlydrop.training.models import Task, build_model


def test_the_convnet_has_units_and_a_path_profile():
    model = build_model(ModelConfig(name="convnet_micro"), Task(1, 10, 28, 0.0, 0.2), 0)
    assert [site.rate for site in find_sites(model) if site.kind == "path"] == pytest.approx(
        [0.0, 0.1, 0.2]
    )
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_block_whose_path_is_dropped_is_its_shortcut():
    model = build_model(ModelConfig(name="convnet_micro"), Task(1, 10, 28, 0.0, 0.2), 0).train()
    for block in model.blocks:
        images = torch.randn(4, block.conv1.in_channels, 6, 6)
        shortcut = block.shortcut(images).relu()
        block.drop_path.drop_prob = 0.0
        assert not torch.equal(block(images), shortcut)
        block.drop_path.drop_prob = 1.0
        assert torch.equal(block(images), shortcut)
