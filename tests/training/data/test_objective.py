"""The training objective against torch's own loss, and when batches are mixed."""

import pytest
import torch
import torch.nn.functional as F

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source
from earlydrop.training.data.objective import Objective

SMOOTHING = 0.3


def objective(**options):
    options = {"shift": 0, "flip": False} | options
    source = make_source(DataConfig(), AugmentConfig(**options), torch.device("cpu"))
    return Objective(source, AugmentConfig(**options))


def test_the_loss_is_torchs_with_label_smoothing_unless_it_is_clean():
    logits, labels = torch.randn(6, 10), torch.arange(6)
    smooth = objective(smoothing=SMOOTHING)
    expected = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    assert torch.equal(smooth.loss(logits, labels), expected)
    assert torch.equal(smooth.loss(logits, labels, clean=True), F.cross_entropy(logits, labels))


def test_the_loss_of_a_text_is_the_mean_over_all_positions():
    logits, following = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    expected = torch.stack([F.cross_entropy(logits[b], following[b]) for b in range(2)]).mean()
    assert objective().loss(logits, following).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "mixed"),
    [
        ({}, False),
        ({"mixup": 0.8}, True),
        ({"cutmix": 1.0}, True),
        ({"mixup": 1, "cutmix": 1}, True),
    ],
)
def test_targets_are_soft_only_where_images_are_mixed(options, mixed):
    made = objective(**options)
    ((images, targets),) = made.batches([(0, torch.arange(8))], 0, "augment")
    ((plain, labels),) = made.source.batches([(0, torch.arange(8))], "train", None)
    assert targets.shape == ((8, 10) if mixed else (8,))
    if mixed:
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert not torch.equal(images, plain)
    else:
        assert torch.equal(targets, labels)
        assert torch.equal(images, plain)
