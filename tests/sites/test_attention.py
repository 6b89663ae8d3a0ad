import functools

import pytest
import torch
import torch.nn.functional as F
from timm import layers
from timm.layers import RelPosBias
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention2d import Attention2d, MultiQueryAttention2d
from timm.models import beit, cait, swin_transformer, vision_transformer_relpos
from torch import nn
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from earlydrop import DropoutScheduler, constant, early, late, piecewise
from earlydrop.sites import attention
from earlydrop.training.models.gpt import CausalAttention

pytestmark = pytest.mark.skipif(not attention.COMPILED, reason="this torch has no such operator")

TOKENS = torch.linspace(-1, 1, 2 * 16 * 32).sin().reshape(2, 16, 32)
MAPS = TOKENS.transpose(1, 2).reshape(2, 32, 4, 4)
RATE = torch.tensor([0.3], dtype=torch.float64)


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch):
    """The operator serves CPUs too, where it takes torch's plain arithmetic."""
    monkeypatch.setattr(attention, "DEVICES", ("cuda", "cpu"))
    torch._dynamo.reset()


def fused(make):
    torch.manual_seed(3)
    model = nn.Sequential(make())
    for module in model.modules():
        if "fused_attn" in module.__dict__:
            module.fused_attn = True
    return model


def two_layers():
    return nn.Sequential(*(Attention(32, 4, attn_drop=0.3) for _ in range(2)))


def operators(graph):
    return sum(node.target is torch.ops.earlydrop.attention for node in graph.graph.nodes)


def run(make, schedule, x, backend=None, steps=6, evaluate_at=(1, 4), wrap=lambda call: call):
    """Outputs by step, the sum of all gradients, and the operators in each graph."""
    model, counts, outputs = fused(make), [], []
    scheduler = DropoutScheduler(model, schedule)
    called = model
    if backend is not None:
        from torch._dynamo.backends.registry import lookup_backend

        inner = lookup_backend(backend)

        def count(graph, inputs):
            counts.append(operators(graph))
            return inner(graph, inputs)

        called = torch.compile(model, backend=count, fullgraph=True)
    for step in range(steps):
        if step in evaluate_at:
            called.eval()
            with torch.no_grad():
                called(x)
            called.train()
        torch.manual_seed(step)
        out = wrap(called)(x)
        out.float().square().sum().backward()
        outputs.append(out.detach())
        scheduler.step()
    return outputs, [p.grad for p in model.parameters()], counts


SCHEDULES = {
    "early": early(0.3, cutoff=4),
    "late": late(0.3, cutoff=2),
    "piecewise": piecewise("0,0@0.2,0.5@0.5,0@0.8,0").resolve(6),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_graphs_over_a_run_and_the_operator_in_the_one_that_drops(schedule):
    _, _, counts = run(two_layers, SCHEDULES[schedule], TOKENS, backend="aot_eager")
    assert sorted(counts) == [0, 0, 2]


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inductor_takes_three_graphs_too(schedule):
    outputs, gradients, counts = run(two_layers, SCHEDULES[schedule], TOKENS, backend="inductor")
    assert sorted(counts) == [0, 0, 2]
    expected = run(two_layers, SCHEDULES[schedule], TOKENS)
    torch.testing.assert_close(outputs, expected[0])
    torch.testing.assert_close(gradients, expected[1])


ATTENTIONS = {
    "Attention": (lambda: Attention(32, 4, attn_drop=0.3), TOKENS),
    "normalised": (
        lambda: Attention(32, 4, qk_norm=True, norm_layer=nn.LayerNorm, attn_drop=0.3),
        TOKENS,
    ),
    "AttentionRope": (lambda: AttentionRope(32, 4, attn_drop=0.3), TOKENS),
    "DiffAttention": (lambda: layers.DiffAttention(32, 4, attn_drop=0.3), TOKENS),
    "Swin": (
        lambda: swin_transformer.WindowAttention(32, 4, window_size=4, attn_drop=0.3),
        TOKENS,
    ),
    "BEiT": (
        lambda: beit.Attention(32, 4, window_size=(3, 5), attn_drop=0.3, qkv_bias=True),
        TOKENS,
    ),
    "RelPosAttention": (
        lambda: vision_transformer_relpos.RelPosAttention(
            32,
            4,
            rel_pos_cls=functools.partial(RelPosBias, window_size=(4, 4)),
            attn_drop=0.3,
        ),
        TOKENS,
    ),
    "CaiT": (lambda: cait.ClassAttn(32, 4, attn_drop=0.3), TOKENS),
    "MultiQueryAttention2d": (
        lambda: MultiQueryAttention2d(32, num_heads=4, attn_drop=0.3),
        MAPS,
    ),
    "Attention2d": (lambda: Attention2d(32, 32, num_heads=4, attn_drop=0.3), MAPS),
    "twice": (two_layers, TOKENS),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_compiled_outputs_and_gradients_are_those_of_eager_to_the_bit(name):
    if name == "DiffAttention" and not hasattr(layers, name):
        pytest.skip("this timm has no DiffAttention")
    make, x = ATTENTIONS[name]
    outputs, gradients, counts = run(make, early(0.3, cutoff=4), x, backend="aot_eager")
    assert len(counts) == 3
    assert sum(count > 0 for count in counts) == 1
    expected_outputs, expected_gradients, _ = run(make, early(0.3, cutoff=4), x)
    assert all(map(torch.equal, outputs, expected_outputs))
    assert all(map(torch.equal, gradients, expected_gradients))


def test_causal_attention_keeps_its_order():
    torch.manual_seed(3)
    model = CausalAttention(32, 4, 0.3)
    model.fused_attn = True
    model.proj_drop.p = 0.0
    DropoutScheduler(model, constant(0.3), sites=["attn_drop"])
    torch.manual_seed(1)
    expected = model(TOKENS)
    torch.manual_seed(1)
    assert torch.equal(torch.compile(model, backend="aot_eager")(TOKENS), expected)


@pytest.mark.parametrize("name", ["Attention", "normalised", "Swin"])
def test_under_bfloat16_autocast_it_casts_as_torch_does(name):
    make, x = ATTENTIONS[name]

    def wrap(call):
        return torch.autocast("cpu", torch.bfloat16)(call)

    outputs, gradients, counts = run(make, constant(0.3), x, backend="aot_eager", wrap=wrap)
    assert sorted(counts) == [0, 1]
    expected_outputs, expected_gradients, _ = run(make, constant(0.3), x, wrap=wrap)
    assert outputs[0].dtype == torch.bfloat16
    assert all(map(torch.equal, outputs, expected_outputs))
    assert all(map(torch.equal, gradients, expected_gradients))


def inputs(*, mask=False, keys=5, dtype=torch.float64, device="cpu", channels=8):
    generator = torch.Generator().manual_seed(4)
    shapes = [(2, 3, 6, channels), (2, 3, keys, channels), (2, 3, keys, channels)]
    shapes += [(3, 6, keys)] if mask else []
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    made = [tensor.to(device, dtype).requires_grad_() for tensor in made]
    return made if mask else [*made, None]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_gradients_are_those_of_the_definition_with_the_same_mask(mask, scale):
    query, key, value, bias = inputs(mask=mask)
    wanted = [tensor for tensor in (query, key, value, bias) if tensor is not None]
    torch.manual_seed(2)
    out = torch.ops.earlydrop.attention(query, key, value, bias, RATE, False, scale)
    # With one-hot values the output is the dropped weights themselves.
    one_hot = torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5)
    torch.manual_seed(2)
    weights = torch.ops.earlydrop.attention(query, key, one_hot, bias, RATE, False, scale)
    keep = (weights != 0).double()
    assert 0 < keep.mean() < 1
    scores = (query @ key.transpose(-2, -1)) * (8**-0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    expected = (scores.softmax(-1) * keep / 0.7) @ value
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    loss = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    ours = torch.autograd.grad((out * loss).sum(), wanted)
    by_definition = torch.autograd.grad((expected * loss).sum(), wanted)
    torch.testing.assert_close(ours, by_definition, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_the_share_dropped_is_the_rate(rate):
    query = key = torch.zeros(4, 8, 64, 8)
    value = torch.eye(64).expand(4, 8, 64, 64)
    p = torch.tensor([rate], dtype=torch.float64)
    torch.manual_seed(1)
    weights = torch.ops.earlydrop.attention(query, key, value, None, p, False, None)
    count = weights.numel()
    spread = (rate * (1 - rate) / count) ** 0.5
    assert abs((weights == 0).float().mean().item() - rate) < 5 * spread
    torch.testing.assert_close(weights.max().item(), 1 / 64 / (1 - rate))


def test_boolean_masks_and_shared_keys_are_taken_as_torch_takes_them():
    query, key, value, _ = inputs(dtype=torch.float32)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def by_operator(key, value, **more):
        rate = RATE.as_subclass(attention.AttentionRate)
        return F.scaled_dot_product_attention(query, key, value, dropout_p=rate, **more)

    for keys, more in (
        ((key, value), {"attn_mask": torch.arange(5) < 4}),
        ((key[:, :1], value[:, :1]), {"enable_gqa": True}),
    ):
        torch.manual_seed(2)
        ours = by_operator(*keys, **more)
        torch.manual_seed(2)
        expected = F.scaled_dot_product_attention(query, *keys, dropout_p=0.3, **more)
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("inside", [True, False])
def test_activation_checkpointing_recomputes_the_mask_of_the_forward(inside):
    make, x = ATTENTIONS["Attention"]
    expected = run(make, constant(0.3), x, steps=1, evaluate_at=())

    def wrap(call):
        return lambda x: checkpoint(call, x, use_reentrant=False)

    if not inside:
        found = run(make, constant(0.3), x, "aot_eager", steps=1, evaluate_at=(), wrap=wrap)
    else:

        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = make()

            def forward(self, x):
                return checkpoint(self.inner, x, use_reentrant=False)

        found = run(Checkpointed, constant(0.3), x, "aot_eager", steps=1, evaluate_at=())
    assert torch.equal(found[0][0], expected[0][0])
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_rate_that_changes_before_the_backward_is_refused(checkpointed):
    model = fused(ATTENTIONS["Attention"][0])
    scheduler = DropoutScheduler(model, early(0.3, cutoff=4))

    def forward(x):
        return checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)

    out = torch.compile(forward, backend="aot_eager", fullgraph=True)(TOKENS)
    scheduler.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_only_the_listed_devices_use_it(monkeypatch):
    monkeypatch.setattr(attention, "DEVICES", ("cuda",))
    _, _, counts = run(two_layers, constant(0.3), TOKENS, backend="aot_eager")
    assert counts == [0, 0]


def test_fast_masks_do_without_it():
    model = fused(two_layers)
    DropoutScheduler(model, constant(0.3), masks="fast")
    counts = []

    def backend(graph, inputs):
        counts.append(operators(graph))
        return graph.forward

    torch.compile(model, backend=backend)(TOKENS)
    assert counts == [0]


@pytest.mark.parametrize("mask", [False, True])
def test_torch_finds_nothing_wrong_with_the_operators(mask):
    arguments = (*inputs(mask=mask), RATE, False, None)
    torch.library.opcheck(torch.ops.earlydrop.math_attention.default, arguments)
    if not mask:
        torch.library.opcheck(torch.ops.earlydrop.attention.default, arguments)


KERNELS = [
    (SDPBackend.FLASH_ATTENTION, "flash", False, 16),
    (SDPBackend.FLASH_ATTENTION, "flash", False, 20),
    (SDPBackend.EFFICIENT_ATTENTION, "efficient", False, 16),
    (SDPBackend.EFFICIENT_ATTENTION, "efficient", True, 16),
    (SDPBackend.MATH, "math", True, 16),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "name", "mask", "channels"), KERNELS)
def test_each_kernel_of_a_gpu_has_gradients_of_the_right_shape(
    kernel, name, mask, channels, dtype, monkeypatch
):
    monkeypatch.setattr(attention, "_choose", lambda *arguments: kernel.value)
    given = inputs(mask=mask, dtype=dtype, device="meta", channels=channels)
    out = torch.ops.earlydrop.attention(*given, RATE, False, None)
    assert name in type(out.grad_fn).__name__
    assert out.shape == given[0].shape
    assert out.dtype == dtype
    wanted = [tensor for tensor in given if tensor is not None]
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), wanted), wanted, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.dtype == dtype


@pytest.mark.parametrize("name", ["flash", "efficient"])
def test_a_graph_for_a_gpu_can_be_made_without_one(name):
    from torch._subclasses import FakeTensorMode

    forward = getattr(torch.ops.earlydrop, f"{name}_attention")
    backward = getattr(torch.ops.earlydrop, f"{name}_attention_backward")
    with FakeTensorMode():
        made = [torch.empty(2, 3, 6, 16, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        given = made if name == "flash" else [*made, None]
        rate, more = torch.empty(1, dtype=torch.float64), () if name == "flash" else (False,)
        kept = forward(*given, rate, False, None)
        gradients = backward(kept[0], *given, *kept, rate, False, None, *more)
    assert all(tensor.device.type == "cuda" for tensor in (kept[0], *gradients))
    assert [gradient.shape for gradient in gradients[:3]] == [tensor.shape for tensor in made]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Attention", "Swin", "BEiT"])
def test_on_a_gpu_compiled_equals_eager(name):
    make, x = ATTENTIONS[name]

    def wrap(call):
        return torch.autocast("cuda", torch.bfloat16)(call)

    def on_gpu():
        return make().cuda()

    # cuDNN's attention draws other masks, and the operator does not call it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        expected = run(on_gpu, constant(0.3), x.cuda(), wrap=wrap)
        found = run(on_gpu, constant(0.3), x.cuda(), backend="aot_eager", wrap=wrap)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=2e-2, atol=2e-2)
