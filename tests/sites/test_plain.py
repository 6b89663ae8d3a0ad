import functools

import pytest
from torch import nn

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
