import ast
from pathlib import Path

import pytest
import torch

from earlydrop.training.data import copies
from earlydrop.training.data.copies import on_their_own_stream, sent

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
    """Where batches are made, ``.to`` only changes a dtype and moves nothing.

    What is set up once may be moved.
    """
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


class FakeStream:
    """A CUDA stream that writes down what it is asked."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, stream):
        self.log.append(f"{self.name} waits for {stream.name}")

    def __enter__(self):
        self.log.append(f"{self.name} is current")

    def __exit__(self, *error):
        self.log.append("main is current")


class FakeTensor:
    def __init__(self, name, log, is_cuda=True):
        self.name, self.log, self.is_cuda = name, log, is_cuda

    def record_stream(self, stream):
        self.log.append(f"{self.name} is read by {stream.name}")


def test_batches_are_made_on_a_stream_of_their_own(monkeypatch):
    log = []
    main, side = FakeStream("main", log), FakeStream("side", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)

    def steps():
        for step in range(2):
            log.append(f"make {step}")
            yield [(FakeTensor(f"x{step}", log), FakeTensor(f"y{step}", log, is_cuda=False))]

    for step, batches in enumerate(on_their_own_stream(steps(), torch.device("cuda"))):
        assert [tensor.name for tensor in batches[0]] == [f"x{step}", f"y{step}"]
        log.append(f"train {step}")
    one = "side is current", "make {}", "main is current", "main waits for side"
    expected = ["side waits for main"]
    for step in range(2):
        expected += [line.format(step) for line in one]
        expected += [f"x{step} is read by main", f"train {step}"]
    assert log == [*expected, "side is current", "main is current"]


def test_on_the_host_batches_are_passed_on():
    steps = [[("x", "y")], [("x", "y")]]
    assert list(on_their_own_stream(iter(steps), torch.device("cpu"))) == steps


@pytest.mark.gpu
def test_on_a_gpu_batches_of_a_stream_of_their_own_have_their_values():
    device = torch.device("cuda")
    square = torch.randn(2048, 2048, device=device)

    def steps():
        for step in range(20):
            values = torch.full((1 << 20,), float(step))
            yield [(sent(values, device), sent(values, device) + 1)]

    sums = []
    for [(x, y)] in on_their_own_stream(steps(), device):
        for _ in range(5):
            square = torch.tanh(square @ square)
        sums.append(x.mean() + y.mean())
        del x, y
    assert [round(value.item()) for value in sums] == [2 * step + 1 for step in range(20)]


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
