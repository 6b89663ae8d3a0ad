import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
    offload_wrapper,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

import earlydrop
from earlydrop import DropoutScheduler, constant, early, find_sites
from earlydrop.sites.unwrap import named_modules, named_parameters, renamed, unwrap


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.2)

    def forward(self, x):
        return self.drop(self.linear(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Block()  # a name of the model's own
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.module(x)))


NAMES = ["module.drop", "blocks.0.drop", "blocks.1.drop"]


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def fsdp(module):
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


WRAPPERS = {
    "compile": torch.compile,
    "checkpoint": checkpoint_wrapper,
    "offload": offload_wrapper,
    "ddp": DistributedDataParallel,
    "dp": DataParallel,
    "fsdp": fsdp,
    "checkpoint in compile": lambda module: torch.compile(checkpoint_wrapper(module)),
    "checkpoint in ddp": lambda module: DistributedDataParallel(checkpoint_wrapper(module)),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("where", ["the model", "a block", "a layer", "all"])
def test_wrappers_are_in_no_name(name, where, group):
    if name == "fsdp" and where in ("a layer", "all"):
        pytest.skip("it takes modules with parameters")
    wrap, net = WRAPPERS[name], Net()
    parameters = [key for key, _ in net.named_parameters()]
    if where in ("a layer", "all") and "ddp" not in name:
        net.blocks[1].drop = wrap(net.blocks[1].drop)
    if where in ("a block", "all"):
        net.blocks[1] = wrap(net.blocks[1])
        net.module = wrap(net.module)
    wrapped = wrap(net) if where in ("the model", "all") else net
    assert unwrap(wrapped) is net
    assert [site.name for site in find_sites(wrapped)] == NAMES
    if name != "fsdp":
        assert [
            key for key, _ in named_parameters(wrapped if where == "a block" else net)
        ] == parameters
    scheduler = DropoutScheduler(wrapped, constant(0.3), sites="blocks.*.drop")
    assert scheduler.rates == dict.fromkeys(NAMES[1:], 0.3)
    assert list(scheduler.state_dict()["base_rates"]) == NAMES[1:]
    scheduler.restore()
    assert all(site.rate == 0.2 for site in find_sites(net))


def test_named_modules_are_torchs_where_nothing_is_wrapped():
    net = Net()
    net.shared = net.blocks[0]
    for each in (True, False):
        assert list(named_modules(net, each)) == list(net.named_modules(remove_duplicate=each))
    assert list(named_parameters(net)) == list(net.named_parameters())


def test_a_state_loads_where_wrapping_differs():
    net, wrapped = Net(), Net()
    wrapped.blocks[0] = checkpoint_wrapper(wrapped.blocks[0])
    schedule = early(0.4, cutoff=10)
    first, second = DropoutScheduler(net, schedule), DropoutScheduler(wrapped, schedule)
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.last_step == 3
    assert first.rates == second.rates


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "_checkpoint_wrapped_module.",
        "_fsdp_wrapped_module.",
        "module.",
        "module._orig_mod.",
    ],
)
def test_states_that_were_saved_with_wrappers_in_their_names_load(prefix):
    scheduler = DropoutScheduler(Net(), early(0.4, cutoff=10))
    old = {
        "step": 4,
        "base_rates": {f"{prefix}module.drop": 0.2}
        | {f"blocks.{i}.{prefix}drop": 0.2 for i in range(2)},
    }
    if prefix.startswith("module."):  # "module.drop" alone could be meant by either
        old["base_rates"] = {"module.drop": 0.2} | {
            f"{prefix}blocks.{i}.drop": 0.2 for i in range(2)
        }
    scheduler.load_state_dict(old)
    assert scheduler.last_step == 4


def test_names_that_could_be_two_are_left_alone():
    assert renamed({"a._orig_mod.drop": 1, "a.drop": 2}, ["a.drop", "b.drop"]) == {
        "a._orig_mod.drop": 1,
        "a.drop": 2,
    }
    assert renamed({"other": 1}, ["a.drop"]) == {"other": 1}
    scheduler = DropoutScheduler(Net(), constant(0.4))
    twice = {
        "step": 1,
        "base_rates": dict.fromkeys(
            ["_orig_mod.blocks.0.drop", "blocks._orig_mod.0.drop", "blocks.1.drop"], 0.2
        ),
    }
    with pytest.raises(ValueError, match="saved for another model or choice of sites"):
        scheduler.load_state_dict(twice)


def test_what_reads_a_rate_through_a_wrapper_follows_it():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = checkpoint_wrapper(nn.Dropout(0.5))

        def forward(self, x):
            return nn.functional.dropout(x, self.drop.p, self.training)

    model = nn.Sequential(checkpoint_wrapper(Reads()))
    scheduler = DropoutScheduler(model, early(0.5, cutoff=1))
    x = torch.ones(1_000)
    assert (model(x) == 0).any()
    scheduler.step()
    assert torch.equal(model(x), x)


def test_the_distance_looks_through_wrappers_inside():
    net = Net()
    initial = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net.module.linear.bias.add_(3.0)
    expected = earlydrop.model_distance(net, initial)
    net.module = checkpoint_wrapper(net.module)
    net.blocks[0] = torch.compile(net.blocks[0])
    assert earlydrop.model_distance(net, initial) == expected == 6.0
