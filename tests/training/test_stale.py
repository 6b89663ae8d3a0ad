"""A module that was edited after its import is noticed."""

import importlib
import sys

import pytest

from earlydrop import experiment
from earlydrop.training.fields import ConfigError
from earlydrop.training.given import given_model, reference_of
from earlydrop.training.plugins import load
from earlydrop.training.stale import differs_from_file

MODULE = """
import dataclasses
import enum
import functools

WIDTH = 10
SIZES = (1, 2)
COUNT = 0
LIST = [1]

@functools.cache
def cached():
    return 1

def count():
    global COUNT
    COUNT += 1

class Net:
    depths = 12
    calls = 0

    def __init__(self):
        Net.calls += 1

    def hidden(self, __scale=1):
        return __scale

    @functools.cached_property
    def cost(self):
        return 30

    @property
    def width(self):
        return WIDTH

    @staticmethod
    def depth():
        return 3

class Deep(Net):
    depths = 24

def scaled(x, factor=2, *, shift=0.5):
    return factor * x + shift

class Kind(enum.Enum):
    SMALL = 1

class Level(enum.IntEnum):
    LOW = 1

@dataclasses.dataclass(slots=True)
class Options:
    rate: float = 0.1

def build(task):
    from torch import nn
    return nn.Linear(16, WIDTH)
"""


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A module in the working folder, imported by the user, and its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "edited_models.py"
    file.write_text(MODULE)
    yield importlib.import_module("edited_models"), file
    sys.modules.pop("edited_models", None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("WIDTH = 10", "WIDTH = 20"),
        ("(1, 2)", "(1, 3)"),
        ("return 1", "return 2"),
        ("return WIDTH", "return WIDTH + 1"),
        ("return 3", "return 4"),
        ("COUNT += 1", "COUNT += 2"),
        ("nn.Linear(16, WIDTH)", "nn.Linear(16, WIDTH, bias=False)"),
        ("class Net:", "class Net("),
        ("factor=2", "factor=3"),
        ("shift=0.5", "shift=1.5"),
        ("depths = 12", "depths = 13"),
        ("depths = 24", "depths = 25"),
        ("return 30", "return 31"),
    ],
    ids=lambda text: text,
)
def test_an_edit_is_noticed(edited, before, after):
    module, file = edited
    module.count()  # what a module changes itself is no edit
    module.LIST.append(2)
    module.Net()
    assert not differs_from_file("edited_models", file)
    file.write_text(MODULE.replace(before, after))
    assert differs_from_file("edited_models", file)


def test_a_value_that_is_set_from_outside_is_noticed(edited):
    module, file = edited
    module.WIDTH = 12
    assert differs_from_file("edited_models", file)


def test_an_edit_is_noticed_through_a_linked_folder(edited, tmp_path):
    _, file = edited
    link = tmp_path / "linked"
    link.symlink_to(file.parent)
    assert not differs_from_file("edited_models", link / file.name)
    file.write_text(MODULE.replace("return 3", "return 4"))
    assert differs_from_file("edited_models", link / file.name)


def test_an_edited_module_is_imported_again_by_its_name(edited):
    module, file = edited
    assert load("model.name", "model", "edited_models:build").value is module.build
    sys.modules["edited_models"] = module
    file.write_text(MODULE.replace("WIDTH = 10", "WIDTH = 20  # wider"))
    assert load("model.name", "model", "edited_models:build").value(None).out_features == 20


def test_an_edited_module_that_the_user_imported_is_imported_again_by_its_name(edited):
    _, file = edited
    file.write_text(MODULE.replace("WIDTH = 10", "WIDTH = 20"))
    assert load("model.name", "model", "edited_models:build").value(None).out_features == 20


def test_a_function_of_an_edited_module_is_refused(edited):
    module, file = edited
    assert reference_of(module.build) == "edited_models:build"
    file.write_text(MODULE.replace("WIDTH = 10", "WIDTH = 20"))
    assert reference_of(module.build) is None
    message = r"edited_models, which differs from its file .* importlib.reload\(edited_models\)"
    with pytest.raises(ConfigError, match=message):
        given_model(module.build)
    with pytest.raises(ConfigError, match=message):
        experiment.train(["trainer.steps=1"], model=module.build)
    assert given_model(importlib.reload(module).build).digest


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return 2 * self.out(x.flatten(1))
"""


def test_an_object_of_before_a_reload_is_refused(edited):
    _, file = edited
    file.write_text(NET)
    sys.modules.pop("edited_models")
    module = importlib.import_module("edited_models")
    before = module.Net()
    assert given_model(before).digest
    file.write_text(NET.replace("2 *", "33 *"))
    module = importlib.reload(module)
    with pytest.raises(ConfigError, match=r"as it was before its module was reloaded"):
        given_model(before)
    assert given_model(module.Net()).digest
