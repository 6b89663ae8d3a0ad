from pathlib import Path

import torch

from earlydrop.training.run import run


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


def test_the_probe_changes_nothing(config):
    with_probe = final_state(run(config())["folder"])
    without = final_state(run(config(probe__at=[]))["folder"])
    assert_same(with_probe["model"], without["model"])
    assert_same(with_probe["optimizer"], without["optimizer"])
