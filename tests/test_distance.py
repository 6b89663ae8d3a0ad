import copy
import math

import pytest
import torch
from torch import nn

from earlydrop import model_distance


def test_distance_over_parameters_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    initial = copy.deepcopy(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(16, 3))  # moves the running statistics, not a parameter
    assert (
        model_distance(model, initial)
        == model_distance(model, state)
        == model_distance(model.state_dict(), state)
        == 0
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    difference = [
        (a - b).double().flatten()
        for a, b in zip(model.parameters(), initial.parameters(), strict=True)
    ]
    expected = torch.cat(difference).norm().item()
    for a, b in (
        (model, initial),
        (initial, model),
        (model, state),
        (model.state_dict(), state),
        (torch.compile(model), initial),
    ):
        assert model_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert model_distance(model.bfloat16(), initial) == pytest.approx(expected, rel=1e-2)


def test_different_architectures_are_refused():
    with pytest.raises(ValueError, match="only"):
        model_distance(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) in one model and \(3, 2\)"):
        model_distance(nn.Linear(2, 2), nn.Linear(2, 3))
    with pytest.raises(ValueError, match="got list"):
        model_distance([1], nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no parameters"):
        model_distance(nn.ReLU(), nn.ReLU())


def test_tied_weights_count_once_in_state_dicts_too():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    a, b = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    expected = model_distance(a, b)
    assert model_distance(a.state_dict(), b.state_dict()) == pytest.approx(expected, rel=1e-12)
    clones = {name: value.clone() for name, value in b.state_dict().items()}
    assert model_distance(a.state_dict(), clones) == pytest.approx(expected, rel=1e-12)
    assert model_distance(clones, a) == pytest.approx(expected, rel=1e-12)
    untied = clones | {"lm_head.weight": clones["lm_head.weight"] + 1}
    assert model_distance(a.state_dict(), untied) > expected


def test_an_averaged_model_is_looked_through():
    model = nn.Linear(3, 2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert model_distance(averaged, model) == 0.0
    assert model_distance(model, torch.compile(averaged)) == 0.0
    averaged.module.weight.data += 1
    assert model_distance(averaged, model) == pytest.approx(6**0.5)


def test_complex_parameters():
    a, b = (nn.ParameterDict({"w": torch.tensor([z], dtype=torch.complex64)}) for z in (3 + 4j, 0j))
    assert model_distance(a, b) == 5.0
    assert model_distance(a.state_dict(), b.state_dict()) == 5.0


def test_a_model_with_a_compiled_part_has_the_names_of_the_plain_one():
    plain = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    partly = copy.deepcopy(plain)
    partly[1] = torch.compile(partly[1])
    assert (
        model_distance(partly, plain)
        == model_distance(plain, partly)
        == model_distance(partly, plain.state_dict())
        == 0.0
    )
    partly[0].bias.data += 1
    assert model_distance(partly, plain) == 2.0


def test_a_state_dict_saved_with_distributed_data_parallel_around_the_model():
    model = nn.Linear(2, 2)
    wrapped = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    assert model_distance(model, wrapped) == pytest.approx(math.sqrt(6))
    assert model_distance(wrapped, model.state_dict()) == pytest.approx(math.sqrt(6))


def test_entries_of_a_state_dict_that_are_no_parameters_of_the_module_are_left_out_on_either_side():
    model = nn.Linear(2, 2)
    more = {name: value + 1 for name, value in model.state_dict().items()} | {
        "buffer": torch.ones(3)
    }
    assert model_distance(model, more) == model_distance(more, model) == pytest.approx(math.sqrt(6))
    with pytest.raises(ValueError, match="'buffer' is in one of the two models only"):
        model_distance(model.state_dict(), more)


def test_statistics_of_batchnorm_are_no_parameters_in_state_dicts_either():
    weights = {"w": torch.zeros(2), "bn.running_mean": torch.zeros(2)}
    moved = {"w": torch.ones(2), "bn.running_mean": torch.full((2,), 5.0)}
    assert model_distance(moved, weights) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("as_state", [False, True])
def test_a_model_with_more_parameters_is_refused_in_either_order(as_state):
    small, large = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    pair = [m.state_dict() if as_state else m for m in (small, large)]
    for one, other in (pair, pair[::-1]):
        with pytest.raises(ValueError, match="'bias' is in one of the two models only"):
            model_distance(one, other)


def test_what_holds_a_part_only_is_refused():
    class Sharded(torch.Tensor):
        def full_tensor(self):
            raise NotImplementedError

    shard = torch.ones(2).as_subclass(Sharded)
    with pytest.raises(
        ValueError,
        match=r"model_distance does not support sharded parameters .*'w' is one: gather both",
    ):
        model_distance({"w": shard}, {"w": torch.ones(2)})


def test_empty_parameters_count_nothing_and_hide_nothing():
    """Two empty tensors share the address 0."""
    empty = {"a": torch.ones(0), "b": torch.ones(0), "w": torch.zeros(2)}
    assert model_distance(empty, empty | {"w": torch.ones(2)}) == pytest.approx(math.sqrt(2))


def test_a_double_on_one_side_is_not_rounded():
    tiny = {"w": torch.tensor([1 + 1e-12], dtype=torch.float64)}
    assert model_distance({"w": torch.ones(1)}, tiny) == pytest.approx(1e-12, rel=1e-3)
    assert model_distance(tiny, {"w": torch.ones(1)}) == pytest.approx(1e-12, rel=1e-3)


def test_a_part_called_module_is_no_prefix():
    """DistributedDataParallel puts ``module.`` before every name; a model may have such a part."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 2)

    model = Wrapped()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    parallel = {f"module.{name}": value for name, value in state.items()}
    for other in (state, parallel):
        assert model_distance(model, other) == pytest.approx(10**0.5)
        assert model_distance(other, model) == pytest.approx(10**0.5)
        assert model_distance(state, other) == 0.0
        assert model_distance(parallel, other) == 0.0


def test_parameters_that_share_the_start_of_their_memory_are_not_tied():
    """A part of a weight begins where the weight begins. Both count."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.Parameter(torch.zeros(4, 2))
            self.part = nn.Parameter(self.whole.data[:2])
            self.turned = nn.Parameter(self.whole.data.T)

    initial = {"whole": torch.zeros(4, 2), "part": torch.zeros(2, 2), "turned": torch.zeros(2, 4)}
    model = Model()
    model.whole.data.fill_(1.0)
    assert model_distance(model, initial) == pytest.approx(math.sqrt(8 + 4 + 8))
