import functools

import pytest
import torch
from torch import nn

from earlydrop import DropoutScheduler, constant
from earlydrop.sites.plain import reads


def wrapping(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


def hiding(function):
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.built = self.only_built = 0.1
        self._make_layers()
        self.layers = self.helper()

    def helper(self):
        return self.from_helper

    def _make_layers(self):
        return self.made

    def inherited(self, x):
        return x * self.from_base

    def extra_repr(self):
        return str(self.printed)


class Reader(Base):
    @wrapping
    def forward(self, x):
        def inner(y):
            return y * self.nested

        scale = [self.comprehended for _ in range(2)]
        return (
            self.inherited(inner(x))
            + self.attn_drop.p
            + getattr(self, "by_name", 0)
            + self.config.dropout
            + sum(scale)
            + self.live
        )

    @hiding
    def encode(self, x):
        return x * self.hidden

    @property
    def live(self):
        return self.in_property

    @staticmethod
    def other(module, x):
        return x * module.of_first_argument


@pytest.mark.parametrize(
    "chain",
    [
        "nested",
        "comprehended",
        "from_base",
        "attn_drop.p",
        "by_name",
        "config.dropout",
        "hidden",
        "in_property",
        "of_first_argument",
    ],
)
def test_what_a_forward_can_read(chain):
    assert chain in reads(Reader)


@pytest.mark.parametrize("chain", ["only_built", "printed", "made", "from_helper", "dropout"])
def test_what_only_building_or_printing_reads(chain):
    assert chain not in reads(Reader)


def test_code_without_source_is_taken_to_read_all_its_names():
    """Code that exec made has no source: rather a rate too many than one that is missed."""
    names = {"nn": nn, "Base": Base}
    exec(
        "class Made(Base):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.built_here = 0.1\n"
        "    def forward(self, x):\n"
        "        return x * self.dropout + self.attn_drop.p + getattr(self, 'by_name')\n",
        names,
    )
    assert {"dropout", "attn_drop.p", "by_name"} <= reads(names["Made"])
    assert "built_here" not in reads(names["Made"])


def test_a_file_that_was_changed_after_its_import_is_not_trusted(tmp_path, monkeypatch):
    file = tmp_path / "changing_model.py"
    text = (
        "from torch import nn\n\n\n"
        "class Changing(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x * self.dropout\n"
    )
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import changing_model

    file.write_text(
        text.replace("    def forward", "    def other(self):\n        return 0\n\n    def forward")
    )
    assert "dropout" in reads(changing_model.Changing)


class Layer(nn.Module):
    def forward(self, x):
        return self.scaled(x) * self.in_forward

    def scaled(self, x):
        return x * self.in_scaled


class CallsBase(Layer):
    def forward(self, x):
        return super().forward(x) + self.own


class CallsNoBase(Layer):
    def forward(self, x):
        return self.scaled(x) + self.own


class Mixin:
    def dropped(self, x):
        return x * self.in_mixin


class ModuleFirst(nn.Module, Mixin):
    def forward(self, x):
        return self.dropped(x)


def test_what_an_overridden_method_reads_counts_if_super_calls_it():
    assert {"in_forward", "in_scaled", "own"} <= reads(CallsBase)
    assert {"in_scaled", "own"} <= reads(CallsNoBase)
    assert "in_forward" not in reads(CallsNoBase)


def test_a_mixin_may_come_after_the_module():
    assert "in_mixin" in reads(ModuleFirst)


class Settings(dict):
    """A config whose entries are attributes too, as OmegaConf's are."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class ReadsConfig(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.config = Settings(dropout=0.2, k=3)

    def forward(self, x):
        assert self.config
        assert len(self.config) == 2
        assert "k" in self.config
        kept = nn.functional.dropout(x, self.config.dropout, self.training)
        return self.drop(kept) * self.config["k"] * {**self.config}["k"]


def test_a_driven_module_reads_its_config_by_item_too():
    model = ReadsConfig()
    scheduler = DropoutScheduler(model, constant(0.0))
    assert "config.dropout" in {site.name for site in scheduler.sites}
    assert model(torch.ones(2)).tolist() == [9.0, 9.0]
    assert model.config["dropout"] == 0.0
    scheduler.restore()
    assert model.config == {"dropout": 0.2, "k": 3}
    assert type(model.config) is Settings
