"""The digest of a model given as an object holds all that makes it another model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop.training.fields import ConfigError
from earlydrop.training.given import given_model
from earlydrop.training.models import Task

TASK = Task(channels=1, classes=3, image_size=4, unit=0.1, path=0.0)


class Private(nn.Module):
    """A model with state that is neither a public attribute nor saved."""

    def __init__(self, task, slope=0.1, shift=0.0, hook=None, kinds=()):
        super().__init__()
        self.drop = nn.Dropout(task.unit)
        self.out = nn.Linear(task.channels * task.image_size**2, task.classes)
        self.memory = nn.LSTM(2, 2)  # has private weak references, which cannot be hashed
        self._slope = slope
        self.kinds = set(kinds)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        if hook is not None:
            self.register_forward_hook(hook)

    def forward(self, images):
        return self.out(self.drop(self._slope * images.flatten(1) + self.shift))


def negated(module, inputs, output):
    return -output


def halved(module, inputs, output):
    return output / 2


def test_private_attributes_hooks_and_buffers_that_are_not_saved_make_another_model():
    options = [
        {},
        {"slope": 0.2},
        {"shift": 1.0},
        {"hook": negated},
        {"hook": halved},
        {"kinds": ("a", "b", "c")},
    ]
    digests = []
    for option in [*options, {}]:
        torch.manual_seed(0)
        digests.append(given_model(Private(TASK, **option)).digest)
    assert len(set(digests)) == len(options)
    assert digests[0] == digests[-1]
    torch.manual_seed(0)
    released = Private(TASK)
    scheduler = earlydrop.DropoutScheduler(released, earlydrop.early(0.1, 3))
    scheduler.restore()
    assert given_model(released).digest == digests[0]


def test_the_digest_of_a_set_is_that_of_every_process():
    """Python orders the texts of a set by a hash that differs between processes."""
    program = (
        "import torch; from tests.training.test_object_digest import Private; "
        "from earlydrop.training.given import given_model; "
        "from tests.training.test_object_digest import TASK; torch.manual_seed(0); "
        "print(given_model(Private(TASK, kinds=[f'kind {i}' for i in range(9)])).digest)"
    )
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_set_of_objects_has_no_order_and_is_refused():
    with pytest.raises(ConfigError, match=r"a set that holds a object, .* use a list"):
        given_model(Private(TASK, kinds=[object()]))
