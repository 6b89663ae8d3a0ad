import functools

import pytest
from torch import nn

from earlydrop.sites.reads import reads


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
            self.inherited(inner(x)) + self.attn_drop.p + getattr(self, "by_name", 0) + self.config.dropout + sum(scale) + self.live
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
