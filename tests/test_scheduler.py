import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import nn
from torch.utils.checkpoint import checkpoint

import earlydrop
from earlydrop import DropoutScheduler, constant, early, late
from earlydrop.classic.layers import StandardDropout
from earlydrop.sites.driven import RATE

LAYERS = {
    "dropout": (lambda: nn.Dropout(0.3), (64, 8)),
    "dropout1d": (lambda: nn.Dropout1d(0.3), (8, 16, 5)),
    "dropout2d": (lambda: nn.Dropout2d(0.3), (8, 16, 5, 5)),
    "dropout3d": (lambda: nn.Dropout3d(0.3), (8, 16, 3, 3, 3)),
    "alpha": (lambda: nn.AlphaDropout(0.3), (64, 8)),
    "feature_alpha": (lambda: nn.FeatureAlphaDropout(0.3), (8, 16, 5)),
    "drop_path": (lambda: DropPath(0.3), (64, 8)),
    "stochastic_depth": (lambda: torchvision.ops.StochasticDepth(0.3, "row"), (64, 8)),
    "timm_block": (lambda: DropBlock2d(0.3, 3), (8, 4, 9, 9)),
    "torchvision_block": (lambda: torchvision.ops.DropBlock2d(0.3, 3), (8, 4, 9, 9)),
    "torchvision_block3d": (lambda: torchvision.ops.DropBlock3d(0.3, 3), (4, 2, 7, 7, 7)),
    "patch_dropout": (lambda: PatchDropout(0.3), (4, 17, 8)),
}
ATTRIBUTE = {"drop_path": "drop_prob", "timm_block": "drop_prob", "patch_dropout": "prob"}


def by_hand(module, attribute, x, rates):
    outs = []
    for rate in rates:
        setattr(module, attribute, rate)
        outs.append(module(x))
    return outs


@pytest.mark.oldest
@pytest.mark.parametrize("layer", LAYERS)
def test_eager_mode_is_the_attribute_set_by_hand_to_the_bit(layer):
    make, shape = LAYERS[layer]
    x = torch.randn(shape)
    schedule = early(0.4, cutoff=4)
    torch.manual_seed(1)
    expected = by_hand(make(), ATTRIBUTE.get(layer, "p"), x, [schedule(i) for i in range(6)])
    model = nn.Sequential(make())
    scheduler = DropoutScheduler(model, schedule, kind="all")
    torch.manual_seed(1)
    for want in expected:
        assert torch.equal(model(x), want)
        scheduler.step()


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(8, 2, dropout=0.3),
        nn.LSTM(8, 8, 2, dropout=0.3),
        nn.GRU(8, 8, 2, dropout=0.3),
    ],
)
def test_attention_and_recurrent_layers_follow_in_eager_mode(module):
    arguments = (torch.randn(5, 3, 8),) * (3 if isinstance(module, nn.MultiheadAttention) else 1)
    schedule = late(0.4, cutoff=2)
    torch.manual_seed(1)
    expected = []
    for i in range(4):
        module.dropout = schedule(i)
        expected.append(module(*arguments)[0])
    module.dropout = 0.3
    scheduler = DropoutScheduler(module, schedule)
    torch.manual_seed(1)
    for want in expected:
        assert torch.equal(module(*arguments)[0], want)
        scheduler.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_vit_with_fused_attention_trains_as_by_hand(fused):
    def make():
        torch.manual_seed(3)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            depth=2,
            num_classes=4,
            proj_drop_rate=0.1,
            attn_drop_rate=0.1,
        )
        for block in model.blocks:
            block.attn.fused_attn = fused
        return model

    schedule = early(0.3, cutoff=3, shape="cosine")
    x, results = torch.randn(2, 3, 32, 32), []
    for ours in (False, True):
        model = make()
        dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        scheduler = DropoutScheduler(model, schedule) if ours else None
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for i in range(5):
            if scheduler is None:
                for module in dropouts:
                    module.p = schedule(i)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def test_differential_attention_reads_the_live_rate():
    attention = pytest.importorskip("timm.layers.diff_attention", reason="not in this timm")

    module = attention.DiffAttention(32, 4, attn_drop=0.5)
    scheduler = DropoutScheduler(module, late(0.5, cutoff=1))
    x = torch.randn(2, 9, 32)
    assert torch.equal(
        module(x), module(x)
    )  # late: off at step 0, though the module was built at 0.5
    scheduler.step()
    assert not torch.equal(module(x), module(x))


def small():
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(16, 16),
        nn.Dropout(0.2),
        nn.Linear(16, 2),
    )


def test_restore_gives_back_classes_and_base_rates():
    model = small()
    classes, keys, string = (
        [type(m) for m in model.modules()],
        list(model.state_dict()),
        repr(model),
    )
    scheduler = DropoutScheduler(model, early(0.1, 5))
    assert isinstance(model[2], nn.Dropout)
    assert list(model.state_dict()) == keys
    assert scheduler.rates == {"2": 0.1, "4": 0.05}
    scheduler.restore()
    scheduler.restore()
    assert [type(m) for m in model.modules()] == classes
    assert repr(model) == string
    with pytest.raises(RuntimeError, match="restored"):
        scheduler.step()
    DropoutScheduler(model, early(0.1, 5))  # free again
    earlydrop.restore(model)
    assert [type(m) for m in model.modules()] == classes


def test_copies_and_pickles_are_plain_models_with_the_rate_of_the_moment():
    model = small()
    scheduler = DropoutScheduler(model, late(0.3, cutoff=2))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied[2]) is nn.Dropout
        assert copied[2].p == 0.0
        again = DropoutScheduler(copied, constant(0.3))  # it still knows what it was built with
        assert again.rates == {"2": 0.3, "4": 0.15}
    assert scheduler.rates == {"2": 0.0, "4": 0.0}
    assert "earlydrop" not in pickle.dumps(model).decode("latin1").replace("_earlydrop_base", "")


def test_the_rate_survives_dtype_and_device_moves():
    model = small()
    scheduler = DropoutScheduler(model, early(0.123456789, 5))
    rate = torch.tensor(0.123456789)
    for move in (
        lambda: model.to(torch.bfloat16),
        lambda: model.double(),
        lambda: model.to("meta"),
    ):
        move()
        assert getattr(model[2], RATE).dtype == torch.float32
    assert getattr(model[2], RATE).device.type == "meta"
    model.to_empty(device="cpu")
    assert torch.equal(getattr(model[2], RATE), rate)
    scheduler.step()
    assert getattr(model[2], RATE).item() == pytest.approx(scheduler.last_rate, rel=1e-6)


def test_a_second_scheduler_on_the_same_sites_is_refused():
    model = small()
    first = DropoutScheduler(model, early(0.1, 5))
    with pytest.raises(ValueError, match=r"driven by a DropoutScheduler already.*restore"):
        DropoutScheduler(model, late(0.1, 5))
    assert first.rates == {"2": 0.1, "4": 0.05}
    with pytest.raises(AttributeError, match="restore"):
        model[2].p = 0.5


def test_two_schedulers_on_different_kinds():
    model = nn.Sequential(nn.Dropout(0.2), DropPath(0.3))
    unit, path = (
        DropoutScheduler(model, early(0.2, 3)),
        DropoutScheduler(model, late(0.3, 2), kind="path"),
    )
    for expected in ((0.2, 0.0), (0.1, 0.0), (0.0, 0.3), (0.0, 0.3)):
        assert (model[0].p, model[1].drop_prob) == expected
        unit.step()
        path.step()
    unit.restore()
    assert path.last_rate == 0.3


def test_the_gradients_mask_is_the_forwards_when_the_rate_changes_in_between():
    model = nn.Sequential(nn.Dropout(0.5))
    scheduler = DropoutScheduler(model, early(0.5, 4))
    x = torch.ones(1_000, requires_grad=True)
    y = model(x)
    scheduler.step()
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    model, plain = small(), small()
    plain.load_state_dict(model.state_dict())
    scheduler = DropoutScheduler(model, early(0.5, 5))
    DropoutScheduler(plain, early(0.5, 5))
    x = torch.randn(32, 6, requires_grad=True)
    torch.manual_seed(2)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    torch.manual_seed(2)
    plain(x).square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    y = checkpoint(model, x, use_reentrant=reentrant).sum()
    scheduler.step()
    with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
        y.backward()


def test_running_past_the_end_holds_the_last_value():
    scheduler = DropoutScheduler(small(), earlydrop.piecewise("0,0.5@0.5,0.25").resolve(4))
    seen = [scheduler.last_rate]
    for _ in range(7):
        scheduler.step()
        seen.append(scheduler.last_rate)
    assert seen == [0, 0.25, 0.5, 0.375, 0.25, 0.25, 0.25, 0.25]


def test_saving_and_loading_in_the_middle():
    schedule = early(0.3, 10)
    first = DropoutScheduler(small(), schedule)
    for _ in range(4):
        first.step()
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = DropoutScheduler(small(), schedule)
    second.load_state_dict(state)
    assert second.rates == first.rates
    second.step()
    first.step()
    assert second.rates == first.rates
    other = DropoutScheduler(nn.Sequential(nn.Dropout(0.4)), schedule)
    with pytest.raises(ValueError, match="another model"):
        other.load_state_dict(state)
    for bad in ({}, {"step": -1, "base_rates": {}}, {**state, "step": True}, None):
        with pytest.raises(ValueError, match=r"state|step"):
            second.load_state_dict(bad)


def test_a_function_can_be_a_schedule_but_its_rates_are_checked():
    scheduler = DropoutScheduler(small(), lambda step: 0.3 * step)
    for _ in range(3):
        scheduler.step()
    with pytest.raises(ValueError, match="step 4"):
        scheduler.step()
    assert scheduler.last_rate == pytest.approx(0.9)
    assert scheduler.last_step == 3
    with pytest.raises(ValueError, match="resolve"):
        DropoutScheduler(small(), early(0.1, "20%"))
    with pytest.raises(ValueError, match=r"schedule is 0\.1"):
        DropoutScheduler(small(), 0.1)


@pytest.mark.parametrize("schedule", [early(0.3, 10), lambda step: 0.01 * step])
def test_a_step_of_numpy_or_torch_is_a_step(schedule):
    scheduler = DropoutScheduler(small(), schedule)
    for step in (np.int64(3), torch.tensor(3)):
        scheduler.set_step(step)
        assert type(scheduler.state_dict()["step"]) is int
        scheduler.load_state_dict(scheduler.state_dict())
    for bad in (-1, 1.5, "3", None):
        with pytest.raises(ValueError, match=f"step is {bad!r}: expected"):
            scheduler.set_step(bad)
    assert scheduler.last_step == 3


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.dropout_rate = nn.Dropout(0.1), 0.3

        def forward(self, x):
            return nn.functional.dropout(self.drop(x), self.dropout_rate, self.training)

    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="dropout_rate"):
            DropoutScheduler(model, early(0.1, 10))
    assert type(model.drop) is nn.Dropout
    with pytest.warns(UserWarning, match="dropout_rate"):
        DropoutScheduler(model, early(0.1, 10))


def test_a_copy_of_a_scheduler_drives_nothing():
    scheduler = DropoutScheduler(small(), early(0.3, 10))
    for again in (pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)):
        with pytest.raises(RuntimeError, match="was restored, or is a copy, and drives nothing"):
            again.step()
    scheduler.step()
    assert scheduler.last_step == 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("layer", "keyword"),
    [
        (nn.Dropout(0.5), "input"),
        (DropPath(0.5), "x"),
        (torchvision.ops.StochasticDepth(0.5, "row"), "input"),
        (StandardDropout(0.5), "x"),
    ],
)
def test_a_driven_layer_takes_its_own_keyword(layer, keyword, train):
    layer = copy.deepcopy(layer).train(train)
    x = torch.ones(64, 8)
    torch.manual_seed(0)
    expected = layer(x)
    DropoutScheduler(layer, constant(0.5), kind="all")
    torch.manual_seed(0)
    assert torch.equal(layer(**{keyword: x}), expected)
    for wrong in ((), (x, x)):
        with pytest.raises(TypeError):
            layer(*wrong)
    with pytest.raises(TypeError, match=r"2 inputs: expected one|multiple values for argument"):
        layer(x, **{keyword: x})


def test_vmap_over_models_with_functional_call():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    DropoutScheduler(model, constant(0.5))
    stacked = {name: torch.stack([p, p]) for name, p in model.named_parameters()}
    x = torch.randn(64, 4)
    out = torch.func.vmap(
        lambda p: torch.func.functional_call(model, p, x), randomness="different"
    )(stacked)
    assert not torch.equal(out[0], out[1])
    assert 0.35 < (out == 0).float().mean() < 0.65


def _ddp_worker(rank, file):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(small())
    scheduler = DropoutScheduler(model, early(0.4, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(rank)
    for _ in range(5):
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    others = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(others, mine)
    if not torch.equal(*others) or scheduler.rates != {"2": 0.0, "4": 0.0}:
        raise RuntimeError("the workers parted")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_over_two_processes(tmp_path):
    torch.multiprocessing.spawn(_ddp_worker, args=(str(tmp_path / "store"),), nprocs=2)


class ReadsTheRate(nn.Module):
    """As in timm and transformers: a fused kernel takes the rate of the dropout inside."""

    def __init__(self, rate):
        super().__init__()
        self.drop = nn.Dropout(rate)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), self.drop.p if self.training else 0.0)


class PlainRate(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate_to_drop = rate
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return nn.functional.dropout(self.linear(x), self.rate_to_drop, self.training)


CHECKPOINTED = {
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3), nn.Linear(6, 6)),
    "standard": lambda: nn.Sequential(
        nn.Linear(6, 6), earlydrop.StandardDropout(0.3), nn.Linear(6, 6)
    ),
    "read": lambda: nn.Sequential(ReadsTheRate(0.3)),
    "plain": lambda: nn.Sequential(PlainRate(0.3)),
    "timm": lambda: nn.Sequential(timm.layers.Attention(6, 2, attn_drop=0.3)),
    "lstm": lambda: nn.LSTM(6, 6, 2, dropout=0.3),
    "attention": lambda: nn.TransformerEncoderLayer(6, 2, 6, dropout=0.3),
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("rates", [(0.3, 0.1), (0.3, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_rate_that_changes_before_the_recomputation_raises(name, rates, reentrant):
    model = CHECKPOINTED[name]()
    scheduler = DropoutScheduler(
        model, lambda step: rates[step], sites="*.rate_to_drop" if name == "plain" else None
    )
    x = torch.randn(4, 3, 6, requires_grad=True)

    def forward(x):
        y = model(x)
        return y[0] if isinstance(y, tuple) else y

    checkpoint(forward, x, use_reentrant=reentrant).square().sum().backward()  # no change, no error
    y = checkpoint(forward, x, use_reentrant=reentrant).square().sum()
    scheduler.rates  # noqa: B018  # reading them is no forward
    scheduler.step()
    scheduler.rates  # noqa: B018
    with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
        y.backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("rates", [(0.3, 0.1), (0.3, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_later_forward_does_not_hide_the_change(name, rates, reentrant):
    model = CHECKPOINTED[name]()
    scheduler = DropoutScheduler(
        model, lambda step: rates[step], sites="*.rate_to_drop" if name == "plain" else None
    )
    x = torch.randn(4, 3, 6, requires_grad=True)

    def forward(x):
        y = model(x)
        return (y[0] if isinstance(y, tuple) else y).square().sum()

    first = checkpoint(forward, x, use_reentrant=reentrant)
    scheduler.step()
    second = checkpoint(forward, x, use_reentrant=reentrant)
    second.backward()  # each graph has its rate
    with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
        first.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_graphs_are_told_apart_whatever_their_order(reentrant):
    rates = (0.3, 0.1, 0.3, 0.3)
    model = CHECKPOINTED["dropout"]()
    scheduler = DropoutScheduler(model, lambda step: rates[step])
    x = torch.randn(4, 6, requires_grad=True)
    graphs = []
    for _ in rates[1:]:
        graphs.append(checkpoint(model, x, use_reentrant=reentrant).sum())
        scheduler.step()
    graphs[2].backward()
    graphs[0].backward()  # the rate is the same again
    with pytest.raises(RuntimeError, match=r"changed from 0\.1 to 0\.3"):
        graphs[1].backward()


def test_a_graph_from_before_the_scheduler_is_refused_too():
    model = CHECKPOINTED["dropout"]()
    x = torch.randn(4, 6, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=False).sum()
    DropoutScheduler(model, constant(0.1))
    with pytest.raises(RuntimeError, match=r"changed from 0\.3 to 0\.1"):
        y.backward()


@pytest.mark.parametrize(
    ("inner", "outer"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_checkpoints_inside_checkpoints_recompute_as_they_ran(inner, outer):
    model = CHECKPOINTED["dropout"]()
    scheduler = DropoutScheduler(model, early(0.5, 5))
    x = torch.randn(4, 6, requires_grad=True)

    def nested(x):
        return checkpoint(model, x, use_reentrant=inner) + 1

    for _ in range(3):
        checkpoint(nested, x, use_reentrant=outer).sum().backward()
        scheduler.step()
    stale = checkpoint(nested, x, use_reentrant=outer).sum()
    scheduler.step()
    checkpoint(nested, x, use_reentrant=outer).sum().backward()
    with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
        stale.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_forwards_in_other_threads_are_not_refused_without_reason(reentrant):
    """As in DataParallel: autograd numbers the nodes of each thread from 0."""
    model = CHECKPOINTED["dropout"]()
    scheduler = DropoutScheduler(model, early(0.5, 9))
    x = torch.randn(4, 6, requires_grad=True)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(4):
            (x * 1).sum()  # nodes of this thread only
            pool.submit(
                lambda: checkpoint(model, x, use_reentrant=reentrant).sum()
            ).result().backward()
            scheduler.step()
        y = pool.submit(lambda: checkpoint(model, x, use_reentrant=reentrant).sum()).result()
        scheduler.step()
        with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
            y.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_scheduler_that_moves_to_another_thread_sees_its_graphs(reentrant):
    model = CHECKPOINTED["dropout"]()
    x = torch.randn(4, 6, requires_grad=True)
    for _ in range(50):
        x = x * 1  # this thread's numbers are above the other's
    scheduler = DropoutScheduler(model, early(0.5, 9))

    def train():
        for _ in range(3):
            checkpoint(model, x.detach().requires_grad_(), use_reentrant=reentrant).sum().backward()
            scheduler.step()
        first = checkpoint(model, x.detach().requires_grad_(), use_reentrant=reentrant).sum()
        scheduler.step()
        checkpoint(model, x.detach().requires_grad_(), use_reentrant=reentrant).sum().backward()
        with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
            first.backward()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(train).result()


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_on_off_and_on_again_between_two_forwards_raises(name):
    rates = (0.3, 0.0, 0.3)
    model = CHECKPOINTED[name]()
    scheduler = DropoutScheduler(
        model, lambda step: rates[step], sites="*.rate_to_drop" if name == "plain" else None
    )
    x = torch.randn(4, 3, 6, requires_grad=True)

    def forward(x):
        y = model(x)
        return y[0] if isinstance(y, tuple) else y

    checkpoint(forward, x, use_reentrant=True).sum().backward()
    scheduler.step()
    y = checkpoint(forward, x, use_reentrant=True).sum()
    scheduler.step()
    with pytest.raises(RuntimeError, match=r"step\(\) after the backward"):
        y.backward()


def test_measuring_between_a_forward_and_its_recomputation_changes_nothing():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3))
    DropoutScheduler(model, constant(0.3))
    x = torch.randn(4, 6, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=True).sum()
    earlydrop.audit(model, x)
    with earlydrop.sites.sites_off(model):
        model(x)
    y.backward()


def test_fast_masks_under_vmap_say_what_is_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    DropoutScheduler(model, constant(0.5), masks="fast")
    stacked = {name: torch.stack([p, p]) for name, p in model.named_parameters()}
    x = torch.randn(64, 4)
    with pytest.raises(RuntimeError, match=r"masks='fast' .*vmap.*masks='native'"):
        torch.func.vmap(lambda p: torch.func.functional_call(model, p, x), randomness="different")(
            stacked
        )


def test_a_scheduler_shows_its_schedule_its_sites_and_its_step():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Dropout(0.1))
    scheduler = DropoutScheduler(model, early(0.1, 10))
    scheduler.step()
    assert repr(scheduler) == f"DropoutScheduler({early(0.1, 10)!r}, 2 sites, step 1)"


class Doubtful(nn.Module):
    """Its rate has a name that is not a known one."""

    def __init__(self, rate):
        super().__init__()
        self.attention_dropout = rate

    def forward(self, x):
        return nn.functional.dropout(x, self.attention_dropout, self.training)


def advised(model, kind):
    """A scheduler with the arguments that the warning advises."""
    with pytest.warns(UserWarning, match="give ") as warned:
        DropoutScheduler(model, constant(0.1), kind=kind).restore()
    (text,) = [str(each.message) for each in warned if "though it looks" in str(each.message)]
    arguments = text.partition(", give ")[2].partition(". earlydrop.audit")[0]
    if "kind=" not in arguments:
        arguments += f", kind={kind!r}"
    names = {"earlydrop": earlydrop, "model": model}
    return eval(f"earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), {arguments})", names)


@pytest.mark.parametrize("kind", ["unit", "all"])
def test_the_advice_on_doubtful_rates_works(kind):
    both = nn.Sequential(
        nn.Dropout(0.1), torchvision.ops.StochasticDepth(0.1, "row"), Doubtful(0.3)
    )
    scheduler = advised(both, kind)
    expected = {"0", "2.attention_dropout"} | ({"1"} if kind == "all" else set())
    assert {site.name for site in scheduler.sites} == expected


def test_the_advice_on_doubtful_rates_leaves_rates_of_0_out():
    model = nn.Sequential(nn.Dropout(0.1), Doubtful(0.0), Doubtful(0.3))
    assert {site.name for site in advised(model, "unit").sites} == {"0", "2.attention_dropout"}
