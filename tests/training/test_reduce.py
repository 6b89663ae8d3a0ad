import pytest
import torch
from torch import nn

from earlydrop.training import reduce
from earlydrop.training.reduce import GradientSum


class Done:
    def wait(self):
        return True


@pytest.fixture
def sent(monkeypatch):
    """Three workers with the same gradients: what each sent, in its order."""
    tensors = []

    def all_reduce(tensor, group, async_op):
        assert async_op
        tensors.append(tensor.clone())
        tensor.mul_(3)
        return Done()

    monkeypatch.setattr(reduce.dist, "all_reduce", all_reduce)
    return tensors


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return self.last(self.first(x).relu()) * self.frozen


def test_gradients_are_summed_over_parts_and_workers(sent):
    """Against three times autograd's gradient of all parts.

    A parameter without a gradient keeps none.
    """
    torch.manual_seed(0)
    model = Branches()
    parts = torch.randn(2, 5, 3)
    expected = torch.autograd.grad(
        sum(model(x).square().sum() for x in parts),
        [*model.first.parameters(), *model.last.parameters()],
    )
    reduction = GradientSum(model.parameters(), group=None, bucket_bytes=40)
    model(parts[0]).square().sum().backward()
    assert sent == []  # only the last part of a step is sent
    with reduction.summed():
        model(parts[1]).square().sum().backward()
        # The bucket of the last layer is sent before the backward pass has ended. The next bucket
        # waits for a gradient that never comes.
        assert len(sent) == 1
    assert len(sent) == len(reduction.buckets) == 3
    found = [p.grad for p in [*model.first.parameters(), *model.last.parameters()]]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, 3 * theirs)
    assert model.unused.weight.grad is None
    assert model.frozen.grad is None


def test_a_gradient_that_another_worker_has_is_taken(monkeypatch):
    """Such as of a layer that one worker's parts have dropped."""

    def all_reduce(tensor, group, async_op):
        tensor += 1  # what the other worker sends: gradients of 1, and that it has them
        return Done()

    monkeypatch.setattr(reduce.dist, "all_reduce", all_reduce)
    model = Branches()
    with GradientSum(model.parameters(), group=None).summed():
        model(torch.zeros(1, 3)).sum().backward()
    assert torch.equal(model.unused.weight.grad, torch.ones(2, 2))


def test_the_order_of_the_sums_does_not_depend_on_what_came_before(sent):
    """A first step, and the same step after others, send the same numbers at the same places."""
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(5, 3)
    reduction = GradientSum(model.parameters(), group=None, bucket_bytes=40)

    def step():
        model.zero_grad(set_to_none=True)
        sent.clear()
        with reduction.summed():
            model(x).sum().backward()
        return [each.clone() for each in sent]

    first, *_, later = (step() for _ in range(4))
    for one, other in zip(first, later, strict=True):
        assert torch.equal(one, other)
    sizes = [p.numel() for p in reversed([*model.parameters()]) if p.requires_grad]
    assert [p.numel() for bucket in reduction.buckets for p in bucket.parameters] == sizes


def test_a_backward_pass_that_fails_leaves_nothing_at_work(sent):
    model = Branches()
    reduction = GradientSum(model.parameters(), group=None)
    with pytest.raises(ZeroDivisionError), reduction.summed():
        raise ZeroDivisionError
    model(torch.zeros(1, 3)).sum().backward()
    assert sent == []


def test_a_gradient_that_comes_twice_is_refused(sent):
    model = nn.Linear(2, 2, bias=False)
    reduction = GradientSum(model.parameters(), group=None)
    loss = model(torch.ones(1, 2)).sum()
    with reduction.summed():
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=r"of shape \(2, 2\) got its gradient twice"):
            loss.backward()
    assert len(sent) == 1
