import copy
import inspect

import pytest
import timm
import torch
import torchvision
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, constant, early, late, piecewise
from tests.sites import others_layers, small_models

X = torch.zeros(2, 3, 64, 64)


RATES = {"proj_drop_rate": 0.1, "drop_path_rate": 0.2}


MODELS = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        depth=2,
        num_classes=4,
        attn_drop_rate=0.1,
        pos_drop_rate=0.1,
        **RATES,
    ),
    "mixer": lambda: timm.models.MlpMixer(
        img_size=64, patch_size=32, num_blocks=2, embed_dim=32, num_classes=4, **RATES
    ),
    "swin": lambda: timm.models.SwinTransformer(
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(2, 2),
        num_classes=4,
        attn_drop_rate=0.1,
        **RATES,
    ),
    "convnext": lambda: timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), num_classes=4, drop_path_rate=0.2
    ),
    "efficientnet": lambda: torchvision.models.efficientnet_b0(
        num_classes=4, stochastic_depth_prob=0.2, dropout=0.2
    ),
    "torchvision_swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 16, [1, 2], [2, 2], [4, 4], num_classes=4, stochastic_depth_prob=0.2
    ),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64 * 64, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4)
    ),
}


KINDS = {
    "vit": ("unit", "path", "all"),
    "mixer": ("unit", "path"),
    "swin": ("unit", "path"),
    "convnext": ("path",),
    "efficientnet": ("path", "unit"),
    "torchvision_swin": ("path",),
    "mlp": ("unit",),
}


SCHEDULES = {
    "early": early(0.3, cutoff=5),
    "late": late(0.3, cutoff=4),
    "piecewise": piecewise("0,0@0.2,0.5@0.5,0@0.8,0").resolve(9),
}


def count_graphs(model, schedule, kind="unit", steps=9, evaluate_at=(1, 3, 7)):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    scheduler = DropoutScheduler(model, schedule, kind=kind)
    compiled = torch.compile(model, backend=backend)
    for step in range(steps):
        if step in evaluate_at:
            compiled.eval()
            with torch.no_grad():
                compiled(X)
            compiled.train()
        compiled(X).float().sum().backward()
        scheduler.step()
    return len(graphs)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name,
            kind,
            marks=[] if (name, kind) in (("vit", "unit"), ("mlp", "unit")) else pytest.mark.slow,
        )
        for name, kinds in KINDS.items()
        for kind in kinds
    ],
)
def test_three_graphs_over_a_run(name, kind):
    """Most models follow the piecewise schedule alone: it is off, then on, then off again."""
    for schedule in SCHEDULES if name in ("mlp", "vit") else ["piecewise"]:
        assert count_graphs(MODELS[name](), SCHEDULES[schedule], kind) == 3


@pytest.mark.oldest
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_graphs_on_a_small_model(schedule):
    assert count_graphs(MODELS["mlp"](), SCHEDULES[schedule]) == 3


def test_writing_the_attribute_by_hand_makes_a_graph_a_rate():
    """The reason for all this: remove the mechanism when this fails."""
    torch._dynamo.reset()
    graphs = []
    model = nn.Sequential(nn.Dropout(0.1))
    compiled = torch.compile(
        model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward
    )
    for step in range(4):
        model[0].p = 0.1 + 0.1 * step
        compiled(X)
    assert len(graphs) > 2


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_fraction_mean_and_gradient_when_compiled(dtype):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Dropout(0.5))
    rates = [0.001, 0.01, 0.1, 0.5]
    scheduler = DropoutScheduler(model, lambda step: rates[step])
    compiled = torch.compile(model)
    n = 2_000_000
    x = (torch.rand(n) + 0.5).to(dtype).requires_grad_()
    for step, rate in enumerate(rates):
        x.grad = None
        y = compiled(x)
        y.sum().backward()
        dropped = y == 0
        error = (rate * (1 - rate) / n) ** 0.5
        assert abs(dropped.double().mean().item() - rate) < 5 * error
        rounding = 1e-5 if dtype is torch.float32 else 2**-9  # bfloat16 cannot hold x times 1.001
        assert (
            abs((y.double().mean() / x.detach().double().mean()).item() - 1)
            < 5 * error / (1 - rate) * 1.2 + rounding
        )
        assert torch.equal(x.grad == 0, dropped)
        kept = x.grad[~dropped].double().mean().item()
        assert kept == pytest.approx(1 / (1 - rate), rel=1e-6 if dtype is torch.float32 else 4e-3)
        if step + 1 < len(rates):
            scheduler.step()


STRUCTURED = {
    "dropout1d": (nn.Dropout1d(0.3), (512, 64, 5), (2,)),
    "dropout1d_unbatched": (nn.Dropout1d(0.3), (30_000, 5), (1,)),
    "dropout2d": (nn.Dropout2d(0.3), (512, 64, 3, 3), (2, 3)),
    "dropout3d": (nn.Dropout3d(0.3), (512, 64, 2, 2, 2), (2, 3, 4)),
    "drop_path": (DropPath(0.3), (30_000, 7), (1,)),
    "stochastic_depth": (torchvision.ops.StochasticDepth(0.3, "row"), (30_000, 7), (1,)),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_masks_drop_whole_channels_or_samples_when_compiled(name):
    torch._dynamo.reset()
    layer, shape, together = STRUCTURED[name]
    model = nn.Sequential(layer)
    DropoutScheduler(model, constant(0.3), kind="all")
    y = torch.compile(model, backend="eager")(torch.ones(shape))
    dropped = (y == 0).double().mean(dim=together)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert dropped.mean().item() == pytest.approx(0.3, abs=0.015)
    assert y.max().item() == pytest.approx(1 / 0.7)


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)])
def test_alpha_dropout_keeps_mean_and_variance_when_compiled(layer):
    torch._dynamo.reset()
    model = nn.Sequential(layer)
    DropoutScheduler(model, constant(0.3))
    x = torch.randn(2_000, 500, 1)
    y = torch.compile(model, backend="eager")(x)
    assert y.mean().item() == pytest.approx(0, abs=0.01)
    assert y.var().item() == pytest.approx(1, abs=0.01)
    torch.manual_seed(1)
    native = nn.functional.alpha_dropout(x, 0.3, training=True)
    value = native[x.abs() < 1].mode().values  # the one value that dropped entries take
    assert ((y - value).abs() < 1e-5).double().mean().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    "layer", [nn.AlphaDropout(0.3, inplace=True), nn.FeatureAlphaDropout(0.3, inplace=True)]
)
def test_alpha_dropout_in_place_leaves_its_input_as_torch_does(layer):
    torch._dynamo.reset()
    x = torch.randn(4, 6)
    before = x.clone()
    for backend in (None, "eager"):
        model = nn.Sequential(layer)
        scheduler = DropoutScheduler(model, constant(0.3))
        forward = torch.compile(model, backend=backend) if backend else model
        assert not torch.equal(forward(x), x)
        assert torch.equal(x, before)
        scheduler.restore()


DROP_BLOCKS = [
    DropBlock2d(0.3, 3),
    torchvision.ops.DropBlock2d(0.3, 3),
    torchvision.ops.DropBlock3d(0.3, 3),
]
if (
    "couple_channels" in inspect.signature(DropBlock2d).parameters
):  # from timm 1.0.23 on; before, even sides fail in timm
    DROP_BLOCKS += [DropBlock2d(0.3, 4), DropBlock2d(0.3, 3, couple_channels=False)]


@pytest.mark.parametrize("layer", DROP_BLOCKS)
def test_drop_block_has_the_same_distribution_compiled(layer):
    torch._dynamo.reset()
    x = torch.ones(400, 4, *([12] * (3 if isinstance(layer, torchvision.ops.DropBlock3d) else 2)))
    native = layer(x)
    model = nn.Sequential(layer)
    DropoutScheduler(model, constant(0.3))
    y = torch.compile(model, backend="eager")(x)
    assert (y == 0).double().mean().item() == pytest.approx(
        (native == 0).double().mean().item(), abs=0.02
    )
    assert y.mean().item() == pytest.approx(1, abs=1e-3)


class ReadsTheRate(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        p = self.drop.p if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=p)


class AlwaysOn(nn.Dropout):
    def forward(self, x):
        return nn.functional.dropout(x, self.p, training=True)


def run_compiled(model, schedule, inputs, sites=None, kind="unit", steps=6):
    """The outputs by step of a compiled model, two forwards a step, and its graph count."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    scheduler = DropoutScheduler(model, schedule, kind, sites=sites)
    compiled = torch.compile(model, backend=backend)
    outputs = []
    for step in range(steps):
        torch.manual_seed(step)
        outputs.append([compiled(*inputs) for _ in range(2)])
        if step in (1, steps - 1):
            compiled.eval()
            with torch.no_grad():
                compiled(*inputs)
            compiled.train()
        scheduler.step()
    scheduler.restore()
    return outputs, len(graphs)


def first_tensor(output):
    return output if isinstance(output, torch.Tensor) else output[0]


EAGER_ONLY = {
    "MultiheadAttention": lambda: nn.MultiheadAttention(8, 2, dropout=0.1),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1), 12, enable_nested_tensor=False
    ),
    "ReadsTheRate": ReadsTheRate,
    "AlwaysOn": lambda: AlwaysOn(0.1),
    "PatchDropout": lambda: PatchDropout(0.1),
    "LayerDrop": lambda: nn.Sequential(nn.Linear(8, 4), others_layers.Encoder(0.1)),
    "CausalSelfAttention": others_layers.CausalSelfAttention,
}


@pytest.mark.oldest
@pytest.mark.parametrize(
    "schedule",
    [early(0.5, 3), late(0.5, 3), lambda step: 0.1 * step],
    ids=["early", "late", "function"],
)
@pytest.mark.parametrize("name", EAGER_ONLY)
def test_what_hands_its_rate_to_a_kernel_runs_outside_of_the_graph_while_it_changes(name, schedule):
    inputs = (torch.randn(2, 65, 8),) * (3 if name == "MultiheadAttention" else 1)
    kind = "path" if name == "LayerDrop" else "unit"
    outputs, graphs = run_compiled(EAGER_ONLY[name](), schedule, inputs, kind=kind)
    for step, (a, b) in enumerate(outputs):
        a, b = first_tensor(a), first_tensor(b)
        same = a.shape == b.shape and torch.equal(a, b)
        assert same or schedule(step) > 0
        assert not same or schedule(step) < 0.3
    assert graphs <= 8  # the same for 12 layers as for one, whatever the number of rates


@pytest.mark.oldest
def test_the_rate_outside_of_the_graph_is_the_one_that_is_set():
    """Only the kernel's rate is driven, so a compiled run equals setting it by hand, to the bit."""
    x, schedule = torch.randn(4, 9, 8), early(0.5, 4)
    model = nn.Sequential(*(others_layers.CausalSelfAttention() for _ in range(3)))
    by_hand = copy.deepcopy(model)
    for each in (model, by_hand):
        for layer in each:
            layer.attn_dropout.p = layer.resid_dropout.p = 0.0
    outputs, _ = run_compiled(model, schedule, (x,), sites="*.dropout")
    for step, compiled in enumerate(outputs):
        for layer in by_hand:
            layer.dropout = schedule(step)
        torch.manual_seed(step)
        assert all(torch.equal(y, by_hand(x)) for y in compiled)


def test_a_layer_that_the_compiler_left_to_python_drops_at_the_present_rate():
    """A graph break in a loop of the model's own: torch runs that forward in Python.

    Each function that the forward calls is compiled on its own.
    """

    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                [nn.Dropout(0.3), earlydrop.StandardDropout(0.3), timm.layers.DropPath(0.3)]
            )

        def forward(self, x):
            for layer in self.layers:
                torch._dynamo.graph_break()
                x = layer(x)
            return x

    torch._dynamo.reset()
    model = Breaks()
    scheduler = DropoutScheduler(model, piecewise("0.5,0@0.5,0.5").resolve(4), kind="all")
    compiled = torch.compile(model, backend="eager")
    x = torch.ones(20_000, 1)
    for training in (False, True, True, True, True, False, True):
        model.train(training)
        y = compiled(x)
        if training:
            kept = (1 - scheduler.last_rate) ** 3
            assert (y > 0).double().mean().item() == pytest.approx(kept, abs=0.02)
            scheduler.step()


def test_a_full_graph_is_refused_with_the_reason():
    torch._dynamo.reset()
    model = nn.Sequential(others_layers.CausalSelfAttention())
    DropoutScheduler(model, late(0.1, cutoff=3))
    with pytest.raises(
        Exception, match=r"earlydrop: this module hands a drop rate.*leave out fullgraph=True"
    ):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 5, 8))


@pytest.mark.parametrize("schedule", [early(0.1, 3), late(0.1, 3)])
def test_a_rate_that_is_read_out_of_sight_is_refused_at_the_first_compiled_step(schedule):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Dropout(0.1))

        def forward(self, x):
            return nn.functional.dropout(x, self.inner[0].p, self.training)

    torch._dynamo.reset()
    model = Hidden()
    DropoutScheduler(model, schedule)
    with pytest.raises(
        RuntimeError,
        match=(
            r"'inner.0' cannot have a changing rate under torch\.compile.*torch\.compiler\.disable"
        ),
    ):
        torch.compile(model, backend="eager")(torch.ones(4))


def test_recurrent_layers_run_in_eager_mode_inside_a_compiled_model():
    torch._dynamo.reset()
    model = nn.LSTM(8, 8, 2, dropout=0.5)
    scheduler = DropoutScheduler(model, early(0.5, cutoff=3))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(4, 3, 8)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    for _ in range(3):
        scheduler.step()
    assert torch.equal(compiled(x)[0], compiled(x)[0])


def test_changing_the_rate_between_forward_and_backward_raises_when_compiled():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    scheduler = DropoutScheduler(model, early(0.5, cutoff=9))
    y = torch.compile(model, backend="aot_eager")(torch.randn(8, 4))
    scheduler.step()
    try:
        y.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:  # the mask was saved, not the rate: then the gradient must be the forward's
        assert torch.equal(model[0].bias.grad, 2 * (y != 0).float().sum(0))


def test_off_computes_nothing():
    torch._dynamo.reset()
    operations = []

    def backend(graph, inputs):
        operations.append(
            [node.target for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
        )
        return graph.forward

    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), DropPath(0.5))
    scheduler = DropoutScheduler(model, early(0.5, cutoff=1), kind="all")
    compiled = torch.compile(model, backend=backend)
    compiled(X)
    scheduler.step()
    compiled(X)
    assert len(operations[0]) > 5
    assert len(operations[1]) == 1


def test_export_and_restore_after_compiling():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    scheduler = DropoutScheduler(model, constant(0.5))
    exported = torch.export.export(model.eval(), (torch.randn(2, 4),))
    x = torch.randn(2, 4)
    assert torch.equal(exported.module()(x), model(x))
    scheduler.restore()
    assert type(model[1]) is nn.Dropout


def test_earlydrop_does_not_break_fullgraph():
    torch._dynamo.reset()
    model = MODELS["vit"]()
    scheduler = earlydrop.DropoutScheduler(model, early(0.3, cutoff=2), kind="all")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(4):
        compiled(X)
        scheduler.step()


TRANSFORMERS = {
    "bert": small_models.bert,
    "gpt2": small_models.gpt2,
    "distilbert": small_models.distilbert,
    "vit": small_models.vit,
}


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(early(0.2, 4), id="early"),
        pytest.param(late(0.2, 2), id="late", marks=pytest.mark.slow),
        pytest.param(lambda step: 0.05 * step, id="function", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_compiled_transformer_follows_its_schedule(name, schedule):
    model = TRANSFORMERS[name]()
    x = torch.randn(2, 3, 32, 32) if name == "vit" else torch.randint(0, 60, (2, 7))
    outputs, graphs = run_compiled(model, schedule, (x,))
    for step, (a, b) in enumerate(outputs):
        assert torch.equal(a[0], b[0]) == (schedule(step) == 0)
    assert graphs <= 10
    with torch.no_grad():  # off is the model without dropout
        evaluated = model.eval()(x)[0]
    off = [a[0] for step, (a, _) in enumerate(outputs) if schedule(step) == 0]
    assert all(torch.allclose(y, evaluated, atol=1e-5) for y in off)


def test_six_layers_take_no_more_graphs_than_two():
    x = torch.randint(0, 60, (2, 7))
    counts = {
        depth: run_compiled(small_models.bert(depth=depth), early(0.2, 4), (x,))[1]
        for depth in (2, 6)
    }
    assert counts[2] == counts[6] <= 8


def test_none_compiles():
    torch._dynamo.reset()
    model = small_models.bert()
    DropoutScheduler(model, earlydrop.none())
    x = torch.randint(0, 60, (2, 7))
    compiled = torch.compile(model.train(), backend="eager")
    assert torch.equal(compiled(x)[0], compiled(x)[0])
