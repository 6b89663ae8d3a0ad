"""Models and data given as objects: what is taken, and what is refused with one line."""

import functools

import numpy as np
import pytest
import timm
import torch
from torch import nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.given import given_data, given_model


class WithExtraState(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return {"counts": self.state}

    def set_extra_state(self, state):
        self.state = state["counts"]


def build(task, width=3):
    return nn.Linear(width, task.classes)


def test_an_extra_state_is_part_of_a_models_digest():
    digests = {given_model(WithExtraState(state)).digest for state in ([1], [1], [2])}
    assert len(digests) == 2


def test_a_partial_of_a_users_builder_is_taken():
    digests = [given_model(functools.partial(build, width=width)).digest for width in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ConfigError, match="whose first parameter is not named task: pass lambda"):
        given_model(functools.partial(timm.create_model, "test_vit"))


def images(count=8):
    return np.random.default_rng(0).random((count, 1, 4, 4), dtype=np.float32)


class Broken:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise OSError("the disk is away")


class OneHot:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.ones(1, 4, 4), torch.eye(3)[index]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (Broken(), "data: reading it raised OSError: the disk is away"),
        (
            OneHot(),
            "data: the label of train\\[0\\] is a Tensor of shape \\(3,\\), expected a class",
        ),
        ((images(), list(range(8))), "labels of type list: expected an array or a tensor"),
        (
            (list(images()), [0] * 8),
            "the label of train\\[0\\] is a ndarray of shape .*expected a class",
        ),
    ],
)
def test_data_that_cannot_be_read_is_refused_by_name(split, words):
    with pytest.raises(ConfigError, match=words):
        given_data((split, split))


def test_an_array_of_the_other_byte_order_is_the_same_data():
    labels = np.arange(8) % 2
    little, big = (
        given_data([(images().astype(kind), labels.astype(number))] * 2)
        for kind, number in (("<f4", "<i8"), (">f4", ">i8"))
    )
    assert little.digest == big.digest
