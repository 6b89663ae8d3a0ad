import ast
from pathlib import Path

import pytest
import torch

from earlydrop.training.data import copies
from earlydrop.training.data.copies import sent

HERE = Path(copies.__file__).parent


def test_a_copy_to_a_gpu_goes_through_pinned_memory_and_is_not_waited_for(monkeypatch):
    said = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: said.append("pinned") or self)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *where, **how: said.append((*where, how)) or self
    )
    device = torch.device("cuda:1")
    sent(torch.zeros(2), device)
    assert said == ["pinned", (device, {"non_blocking": True})]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_copies_are_as_usual(device):
    values = torch.arange(3)
    assert sent(values, torch.device(device)).device.type == device
    assert sent(values, torch.device("cpu")) is values


@pytest.mark.parametrize("name", ["arrays", "augment", "glyphs", "text"])
def test_no_batch_waits_for_a_copy(name):
    """Where batches are made, nothing is moved by ``.to`` but by a dtype; what is set up once may be."""
    tree = ast.parse((HERE / f"{name}.py").read_text())
    once = {
        node
        for each in ast.walk(tree)
        if getattr(each, "name", "") in ("__init__", "hold")
        for node in ast.walk(each)
    }
    moved = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "to"
        and node not in once
    ]
    assert [each for each in moved if not each.endswith(".dtype)")] == []


@pytest.mark.gpu
def test_on_a_gpu_values_arrive_and_nothing_waits():
    values = torch.arange(1_000_000)
    sent(values, torch.device("cuda"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = sent(values, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), values)
