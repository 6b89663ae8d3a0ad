import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from earlydrop.training.config import ModelConfig, OptimConfig
from earlydrop.training.models import Task, build_model
from earlydrop.training.optim import add_penalties, learning_rate, make_optimizer


@pytest.mark.parametrize("decay", [0.05, 0.0])
def test_penalties_are_the_gradients_of_their_formulas(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(16, 4).double(), torch.randint(3, (16,))
    weights = [p for p in model.parameters() if p.dim() > 1]
    loss = F.cross_entropy(model(x), y)
    penalty = sum(0.01 * w.abs().sum() + 0.02 * w.square().sum() for w in weights)
    expected = torch.autograd.grad(loss + penalty, list(model.parameters()))
    optimizer = make_optimizer(model, OptimConfig(weight_decay=decay))
    F.cross_entropy(model(x), y).backward()
    add_penalties(optimizer, 0.01, 0.02)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_rmsprop_is_torchs(config):
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig(name="rmsprop", eps=1e-7))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.defaults["alpha"] == 0.9


@pytest.mark.parametrize(("warmup", "total"), [(5, 20), (1, 7), (0, 9), (50, 300)])
def test_the_released_learning_rate_as_a_complete_list(warmup, total):
    base, minimum = 4e-3, 1e-6
    m = total - warmup
    cosine = [minimum + 0.5 * (base - minimum) * (1 + np.cos(np.pi * i / m)) for i in range(m)]
    expected = np.concatenate((np.linspace(0, base, warmup), cosine))
    assert [learning_rate(s, base, minimum, warmup, total) for s in range(total)] == pytest.approx(
        expected.tolist(), rel=1e-12
    )


def test_weight_decay_spares_what_the_release_spares():
    model = build_model(ModelConfig(), Task(1, 10, 28, 0.0, 0.0), 0)
    optimizer = make_optimizer(model, OptimConfig())
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, p in model.named_parameters():
        spared = p.ndim <= 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        assert decay[id(p)] == (0 if spared else 0.05), name
    assert isinstance(make_optimizer(nn.Linear(2, 2), OptimConfig(name="sgd")), torch.optim.SGD)
