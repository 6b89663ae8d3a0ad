import numpy as np
import pytest
import torch
from torch import nn

from earlydrop.sites import find_sites
from earlydrop.training.config import ConfigError, ModelConfig, OptimConfig
from earlydrop.training.models import build_model
from earlydrop.training.optim import learning_rate, make_optimizer


def build(name, unit=0.0, path=0.0, seed=0, size=224, **sizes):
    return build_model(
        ModelConfig(name=name, **sizes), 3 if size == 224 else 1, 1000 if size == 224 else 10, size, unit, path, seed
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_base_patch16_224", 86_567_656),
        ("mixer_s32_224", 19_104_624),
        ("mixer_b16_224", 59_880_472),
        ("swin_femto", 5_126_988),
        ("convnext_femto", 5_217_784),
    ],
)
def test_the_papers_models_have_the_papers_sizes(name, parameters):
    assert sum(p.numel() for p in build(name).parameters()) == parameters


def rates(model, kind):
    return {site.name: round(site.rate, 6) for site in find_sites(model) if site.kind == kind and site.rate > 0}


def test_which_sites_exist_in_each_family():
    """As timm 0.4.12 had them: position, attention, projection, twice in the MLP, never the head."""
    vit = rates(build("vit_tiny_patch16_224", unit=0.1), "unit")
    block = ("attn.attn_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2")
    assert set(vit) == {"pos_drop"} | {f"blocks.{i}.{part}" for i in range(12) for part in block}
    swin = rates(build("swin_femto", unit=0.1), "unit")
    layers = [(stage, i) for stage, depth in enumerate((2, 2, 6, 2)) for i in range(depth)]
    assert set(swin) == {"patch_embed.pos_drop"} | {f"layers.{s}.blocks.{i}.{part}" for s, i in layers for part in block}
    mixer = rates(build("mixer_s32_224", unit=0.1), "unit")
    assert set(mixer) == {f"blocks.{i}.mlp_{part}.drop{j}" for i in range(8) for part in ("tokens", "channels") for j in (1, 2)}
    assert rates(build("convnext_femto", unit=0.1), "unit") == {}
    assert set(rates(build("mlp", unit=0.1, size=28), "unit")) == {"3", "6", "9"}


@pytest.mark.parametrize(
    ("name", "depth", "where"),
    [
        ("vit_tiny_patch16_224", 12, "blocks.{}.drop_path1"),
        ("mixer_s32_224", 8, "blocks.{}.drop_path"),
        ("swin_femto", 12, "layers.{}.blocks.{}.drop_path1"),
        ("convnext_femto", 12, "stages.{}.blocks.{}.drop_path"),
    ],
)
def test_path_rates_rise_linearly_with_depth(name, depth, where):
    found = rates(build(name, path=0.5), "path")
    stages = [(s, i) for s, n in enumerate((2, 2, 6, 2)) for i in range(n)] if depth == 12 and where.count("{}") == 2 else None
    names = [where.format(*(stages[i] if stages else (i,))) for i in range(depth)]
    assert [found.get(n, 0.0) for n in names] == [round(r, 6) for r in np.linspace(0, 0.5, depth)]
    assert rates(build(name), "path") == {}


def test_initial_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    models = [build("vit_micro", size=28), build("vit_micro", unit=0.5, size=28), build("vit_micro", path=0.5, size=28)]
    assert torch.equal(state, torch.get_rng_state())
    other = build("vit_micro", seed=1, size=28)
    for name, p in models[0].named_parameters():
        assert all(torch.equal(p, dict(m.named_parameters())[name]) for m in models[1:])
    assert not torch.equal(models[0].blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "resnet50"}, "'resnet50'.*vit_micro.*families"),
        ({"name": "vit_enormous"}, "'vit_enormous'.*no such model"),
        ({"name": "vit_micro", "patch": 5}, "model.patch is 5.*28"),
        ({"name": "vit_micro", "heads": 3}, "model.heads is 3.*64"),
        ({"name": "mlp", "width": 3}, "model.width is 3"),
        ({"name": "vit_micro", "hidden": [3]}, "model.hidden"),
    ],
)
def test_bad_models(options, says):
    with pytest.raises(ConfigError, match=says):
        build_model(ModelConfig(**options), 1, 10, 28, 0.0, 0.0, 0)


@pytest.mark.parametrize(("warmup", "total"), [(5, 20), (1, 7), (0, 9), (50, 300)])
def test_the_released_learning_rate_as_a_complete_list(warmup, total):
    base, minimum = 4e-3, 1e-6
    m = total - warmup
    cosine = [minimum + 0.5 * (base - minimum) * (1 + np.cos(np.pi * i / m)) for i in range(m)]
    expected = np.concatenate((np.linspace(0, base, warmup), cosine))
    assert [learning_rate(s, base, minimum, warmup, total) for s in range(total)] == pytest.approx(expected.tolist(), rel=1e-12)


def test_weight_decay_spares_what_the_release_spares():
    model = build("vit_micro", size=28)
    optimizer = make_optimizer(model, OptimConfig())
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        spared = p.ndim <= 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        assert decay[id(p)] == (0 if spared else 0.05), name
    assert isinstance(make_optimizer(nn.Linear(2, 2), OptimConfig(name="sgd")), torch.optim.SGD)
