import numpy as np
import pytest
import timm

from earlydrop.sites import find_sites
from earlydrop.training.config import ModelConfig
from earlydrop.training.models import Task, build_model
from earlydrop.training.models.timm import named


def build(name, unit=0.0, path=0.0, seed=0, size=224, **sizes):
    task = Task(3 if size == 224 else 1, 1000 if size == 224 else 10, size, unit, path)
    return build_model(ModelConfig(name=name, **sizes), task, seed)


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
    return {
        site.name: round(site.rate, 6)
        for site in find_sites(model)
        if site.kind == kind and site.rate > 0
    }


def test_which_sites_exist_in_each_architecture():
    """As in timm 0.4.12: position, attention, projection, twice in the MLP, never the head."""
    vit = rates(build("vit_tiny_patch16_224", unit=0.1), "unit")
    block = ("attn.attn_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2")
    assert set(vit) == {"pos_drop"} | {f"blocks.{i}.{part}" for i in range(12) for part in block}
    swin = rates(build("swin_femto", unit=0.1), "unit")
    layers = [(stage, i) for stage, depth in enumerate((2, 2, 6, 2)) for i in range(depth)]
    assert set(swin) == {"patch_embed.pos_drop"} | {
        f"layers.{s}.blocks.{i}.{part}" for s, i in layers for part in block
    }
    mixer = rates(build("mixer_s32_224", unit=0.1), "unit")
    assert set(mixer) == {
        f"blocks.{i}.mlp_{part}.drop{j}"
        for i in range(8)
        for part in ("tokens", "channels")
        for j in (1, 2)
    }
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
    stages = (
        [(s, i) for s, n in enumerate((2, 2, 6, 2)) for i in range(n)]
        if depth == 12 and where.count("{}") == 2
        else None
    )
    names = [where.format(*(stages[i] if stages else (i,))) for i in range(depth)]
    assert [found.get(n, 0.0) for n in names] == [round(r, 6) for r in np.linspace(0, 0.5, depth)]
    assert rates(build(name), "path") == {}


def test_vision_transformers_with_relative_positions_are_built_by_their_arguments():
    """They have no position dropout, unlike the other models whose names begin with ``vit_``."""
    sites = rates(build("vit_relpos_small_patch16_224", unit=0.1), "unit")
    kinds = {"drop1", "drop2", "attn_drop", "proj_drop"}
    assert {name.rpartition(".")[2] for name in sites} == kinds
    assert set(sites.values()) == {0.1}
    for name in ("vit_relpos_small_patch16_224", "vit_srelpos_small_patch16_224"):
        assert timm.is_model(name)
        assert named(name) is None
