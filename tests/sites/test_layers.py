import re

import pytest
import timm
import torch
import torchvision
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, constant, early, late, piecewise
from tests.sites import small_models

X = torch.zeros(2, 3, 64, 64)


RATES = {"proj_drop_rate": 0.1, "drop_path_rate": 0.2}


MODELS = {
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, num_classes=4, attn_drop_rate=0.1, pos_drop_rate=0.1, **RATES
    ),
    "mixer": lambda: timm.models.MlpMixer(img_size=64, patch_size=32, num_blocks=2, embed_dim=32, num_classes=4, **RATES),
    "swin": lambda: timm.models.SwinTransformer(
        img_size=64, window_size=4, embed_dim=16, depths=(1, 2), num_heads=(2, 2), num_classes=4, attn_drop_rate=0.1, **RATES
    ),
    "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=4, drop_path_rate=0.2),
    "efficientnet": lambda: torchvision.models.efficientnet_b0(num_classes=4, stochastic_depth_prob=0.2, dropout=0.2),
    "torchvision_swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 16, [1, 2], [2, 2], [4, 4], num_classes=4, stochastic_depth_prob=0.2
    ),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4)),
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
        pytest.param(name, kind, marks=[] if (name, kind) in (("vit", "unit"), ("mlp", "unit")) else pytest.mark.slow)
        for name, kinds in KINDS.items()
        for kind in kinds
    ],
)
def test_three_graphs_over_a_run(name, kind):
    schedules = ["piecewise"] if name == "efficientnet" else SCHEDULES  # off, on and off again; 8 s a run there
    for schedule in map(SCHEDULES.__getitem__, schedules):
        assert count_graphs(MODELS[name](), schedule, kind) == 3


@pytest.mark.oldest
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_graphs_on_a_small_model(schedule):
    assert count_graphs(MODELS["mlp"](), SCHEDULES[schedule]) == 3


def test_writing_the_attribute_by_hand_makes_a_graph_a_rate():
    """The reason for all this: remove the mechanism when this fails."""
    torch._dynamo.reset()
    graphs = []
    model = nn.Sequential(nn.Dropout(0.1))
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for step in range(4):
        model[0].p = 0.1 + 0.1 * step
        compiled(X)
    assert len(graphs) > 2


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
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
        assert abs((y.double().mean() / x.detach().double().mean()).item() - 1) < 5 * error / (1 - rate) * 1.2 + rounding
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


@pytest.mark.parametrize("layer", [DropBlock2d(0.3, 3), DropBlock2d(0.3, 4), DropBlock2d(0.3, 3, couple_channels=False),
                                   torchvision.ops.DropBlock2d(0.3, 3), torchvision.ops.DropBlock3d(0.3, 3)])  # fmt: skip
def test_drop_block_has_the_same_distribution_compiled(layer):
    torch._dynamo.reset()
    x = torch.ones(400, 4, *([12] * (3 if isinstance(layer, torchvision.ops.DropBlock3d) else 2)))
    native = layer(x)
    model = nn.Sequential(layer)
    DropoutScheduler(model, constant(0.3))
    y = torch.compile(model, backend="eager")(x)
    assert (y == 0).double().mean().item() == pytest.approx((native == 0).double().mean().item(), abs=0.02)
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


@pytest.mark.oldest
@pytest.mark.parametrize(
    "model",
    [nn.MultiheadAttention(8, 2, dropout=0.1), nn.TransformerEncoderLayer(8, 2), ReadsTheRate(), AlwaysOn(0.1), PatchDropout(0.1)],
    ids=lambda model: type(model).__name__,
)
def test_what_cannot_work_compiled_raises_and_says_what_to_do(model):
    torch._dynamo.reset()
    scheduler = DropoutScheduler(model, early(0.1, cutoff=3, shape="constant"))
    compiled = torch.compile(model, backend="eager")
    arguments = (torch.randn(2, 5, 8),) * (3 if isinstance(model, nn.MultiheadAttention) else 1)
    with pytest.raises(RuntimeError, match=r"under torch\.compile.*torch\.compiler\.disable"):
        compiled(*arguments)
    model(*arguments)  # eager mode is fine
    for _ in range(3):
        scheduler.step()
    compiled(*arguments)  # off, so there is no rate to change


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
    loss = torch.compile(model, backend="aot_eager")(torch.randn(8, 4)).sum()
    before = {name: p.clone() for name, p in model.named_parameters()}
    scheduler.step()
    try:
        loss.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:  # the mask was saved, not the rate: then the gradient must be the forward's
        assert before.keys() == dict(model.named_parameters()).keys()


def test_off_computes_nothing():
    torch._dynamo.reset()
    operations = []

    def backend(graph, inputs):
        operations.append([node.target for node in graph.graph.nodes if node.op not in ("placeholder", "output")])
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
    "bert": (small_models.bert, "encoder.layer.0.attention.self"),
    "gpt2": (small_models.gpt2, "h.0.attn"),
    "distilbert": (small_models.distilbert, "transformer.layer.0.attention"),
    "vit": (small_models.vit, "layers.0.attention"),
}


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(early(0.2, 9), id="early"),
        pytest.param(late(0.2, 2), id="late", marks=pytest.mark.slow),
        pytest.param(lambda step: 0.05 * step, id="function", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_compiled_transformer_is_refused_at_step_0_with_advice_that_works(name, schedule):
    torch._dynamo.reset()
    make, parent = TRANSFORMERS[name]
    model = make()
    x = torch.randn(2, 3, 32, 32) if name == "vit" else torch.randint(0, 60, (2, 7))
    scheduler = DropoutScheduler(model, schedule)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(RuntimeError, match=r"torch\.compiler\.disable") as raised:
        compiled(x)
    assert f"model.get_submodule({parent!r})" in str(raised.value)
    for name, module in model.named_modules():  # the advice, for each layer
        if re.sub(r"\d+", "0", name) == parent:
            module.forward = torch.compiler.disable(module.forward)
    torch._dynamo.reset()
    torch.manual_seed(1)
    changing = [compiled(x)[0].detach() for _ in range(2) for _ in range(2) if scheduler.step() is None]
    assert len({tuple(y.flatten().tolist()) for y in changing}) >= 3
    scheduler.set_step(0)
    scheduler.restore()
    assert compiled(x)[0].shape[0] == 2


def test_none_compiles():
    torch._dynamo.reset()
    model = small_models.bert()
    DropoutScheduler(model, earlydrop.none())
    x = torch.randint(0, 60, (2, 7))
    compiled = torch.compile(model.train(), backend="eager")
    assert torch.equal(compiled(x)[0], compiled(x)[0])
