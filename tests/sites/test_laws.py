"""The same four laws for any model of the three libraries."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from earlydrop import DropoutScheduler, constant, find_sites, none
from earlydrop.sites.audit import call
from tests.sites import small_models

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = (
    "transformers:vit", "transformers:bart", "transformers:gpt_neox", "transformers:t5",
    "transformers:swin", "transformers:beit", "transformers:falcon", "transformers:deit",
    "transformers:dinov2", "transformers:segformer", "timm:tinynet_e", "timm:test_vit",
    "timm:test_convnext", "timm:test_byobnet", "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
)  # fmt: skip
TRANSFORMERS = """
bart big_bird blenderbot-small canary clipseg conditional_detr ctrl data2vec-vision dinov2 ernie
falcon flaubert fsmt gpt_neo gte lasr_ctc led llava longformer markuplm mbart mobilevit modernvbert
mpnet mvp openai-gpt owlvit pegasus persimmon phi plbart prophetnet rembert roformer seamless_m4t
segformer squeezebert swin t5gemma timesformer umt5 videomae vit_msn xlm
"""
TIMM = """
test_vit deit_tiny_patch16_224 visformer_tiny convit_tiny crossvit_tiny_240 pit_ti_224
xcit_nano_12_p8_224 cait_xxs24_224 twins_svt_small test_vit_relpos pvt_v2_b0 gcvit_xxtiny
test_byobnet test_resnet mobilevit_xxs skresnet18 hiera_tiny_224 cpubone_nano swiftformer_xs
efficientformerv2_s0 lowformer_b0 gmlp_ti16_224 fastvit_t8 tiny_vit_5m_224 rdnet_tiny test_mambaout
test_convnext cspnext_tiny tinynet_e fasternet_t0 test_coatnet mobilenetv3_small_050 test_nfnet
regnetx_002 starnet_s050 hgnetv2_b0 iformer_t inception_next_atto levit_128s resnetv2_18 rexnet_100
davit_tiny mvitv2_tiny densenet121 efficientvit_b0 efficientvit_m0 ghostnet_050 shvit_s1
"""
TORCHVISION = """
convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet mnasnet0_5 mobilenet_v2
mobilenet_v3_small squeezenet1_1 swin_t swin_v2_t swin3d_t
"""
MANY = [
    f"{library}:{name}"
    for library, names in (
        ("transformers", TRANSFORMERS),
        ("timm", TIMM),
        ("torchvision", TORCHVISION),
    )
    for name in names.split()
]
BUILD = {
    "transformers": small_models.transformers_model,
    "timm": small_models.timm_model,
    "torchvision": small_models.torchvision_model,
}


def build(name):
    library, _, short = name.partition(":")
    model, inputs, *_ = BUILD[library](short)
    return model.train(), inputs


def outputs(model, inputs, seed=1):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    with torch.no_grad():
        found = call(model, inputs)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def equal(a, b):
    return len(a) == len(b) > 0 and all(
        torch.equal(x, y) or bool((x.isnan() == y.isnan()).all() and x.isnan().any())
        for x, y in zip(a, b, strict=True)
    )


def set_by_hand(model, rates):
    for site in find_sites(model):
        if site.name in rates:
            *path, attribute = site.attribute.split(".")
            setattr(site.module.config if path else site.module, attribute, rates[site.name])


def check_laws(name, monkeypatch):
    model, inputs = build(name)
    sites = {site.name: site.base_rate for site in find_sites(model) if site.base_rate > 0}
    if not sites:
        pytest.skip("it has no dropout")
    by_hand, untouched = copy.deepcopy(model), copy.deepcopy(model)
    printed, classes = repr(model), [type(module) for module in model.modules()]
    expected = outputs(copy.deepcopy(model), inputs)

    scheduler = DropoutScheduler(model, none(), kind="all")  # 1: rate 0 is no dropout
    first = outputs(copy.deepcopy(model), inputs, seed=1)
    assert equal(outputs(model, inputs, seed=2), outputs(model, inputs, seed=3))
    scheduler.restore()
    with monkeypatch.context() as patch:
        patch.setattr(small_models, "RATE", 0.0)
        without, _ = build(name)
        without.load_state_dict(untouched.state_dict())
        set_by_hand(
            without, {site.name: 0.0 for site in find_sites(without)}
        )  # what a builder does not take
    assert equal(first, outputs(without, inputs, seed=5))

    scheduler = DropoutScheduler(model, constant(0.3), kind="all")  # 2: as set by hand, to the bit
    rates = scheduler.rates
    assert rates.keys() == sites.keys()
    set_by_hand(by_hand, rates)
    model.load_state_dict(untouched.state_dict())  # statistics as at first
    assert equal(outputs(copy.deepcopy(model), inputs), outputs(copy.deepcopy(by_hand), inputs))
    assert equal(outputs(model, inputs), outputs(by_hand, inputs))

    model.load_state_dict(
        untouched.state_dict()
    )  # 4: copies and pickles are plain models at the rates of the moment
    driven = outputs(copy.deepcopy(model), inputs)
    try:
        data = pickle.dumps(untouched)
    except Exception:
        data = None  # it does not pickle undriven either
    if data is not None:
        assert equal(outputs(pickle.loads(pickle.dumps(model)), inputs), driven)
    scheduler.restore()  # 3: as it was
    assert repr(model) == printed
    assert [type(module) for module in model.modules()] == classes
    assert {site.name: site.base_rate for site in find_sites(model) if site.base_rate > 0} == sites
    assert equal(outputs(model, inputs), expected)
    assert not any("earlydrop" in key for module in model.modules() for key in vars(module))


@pytest.mark.parametrize("name", QUICK)
def test_the_laws_hold(name, monkeypatch):
    check_laws(name, monkeypatch)


@pytest.mark.sweep
@pytest.mark.parametrize("name", MANY)
def test_the_laws_hold_for_a_hundred_models(name, monkeypatch):
    check_laws(name, monkeypatch)
