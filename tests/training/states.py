"""What a run ended with, compared to the bit."""

from pathlib import Path

import torch


def final_state(folder):
    return torch.load(max((Path(folder) / "checkpoints").glob("*.pt")), weights_only=True)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
