import random

import numpy
import pytest
import torch

from earlydrop.training.compose import config_from_dict
from tests.analysis.made_up import make_run


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same numbers, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def study(tmp_path):
    for arm, shift in (("none", 0.0), ("early-0.1-20%", -0.1)):
        for seed, loss in enumerate((0.5, 0.6, 0.9)):
            make_run(tmp_path / "study", arm, seed, loss + shift)
    return tmp_path / "study"


@pytest.fixture
def config(tmp_path):
    """A configuration that trains in a second; keyword arguments with __ for the dot override it."""

    def make(**overrides):
        values = {
            "out": str(tmp_path / "runs"), "tracking": "off", "device": "cpu",
            "model": {"name": "mlp", "hidden": [16]},
            "data": {"train_images": 300},
            "schedule": {"cutoff": "50%", "rate": 0.3},
            "trainer": {"epochs": 2, "batch_size": 32, "log_every": 4, "eval_every": "50%", "checkpoint_seconds": 1000.0},
            "probe": {"at": ["0%", "50%", "100%"], "batches": 3, "dataset_limit": 64},
        }  # fmt: skip
        for key, value in overrides.items():
            node = values
            *parents, leaf = key.split("__")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        return config_from_dict(values)

    return make
