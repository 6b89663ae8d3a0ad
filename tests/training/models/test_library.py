"""Models of timm and torchvision whose dropout arguments are found from their signatures."""

import warnings

import pytest
import timm
import torch
import torchvision

from earlydrop import DropoutScheduler, audit, early, find_sites
from earlydrop.training.config import ModelConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import Task, build_model, library
from earlydrop.training.models import timm as explicit
from tests.sites import small_models


def build(name, task, **keys):
    return build_model(ModelConfig(name=name, **keys), task, 0)


def rates(model):
    return {site.name: site.base_rate for site in find_sites(model) if site.base_rate > 0}


def test_a_resnet_of_timm_has_what_its_own_arguments_give():
    task = Task(1, 10, 28, 0.25, 0.5)
    ours = build("resnet18", task)
    theirs = timm.create_model(
        "resnet18", in_chans=1, num_classes=10, drop_block_rate=0.25, drop_path_rate=0.5
    )
    assert rates(ours) == rates(theirs)
    assert ours.drop_rate == 0
    assert ours(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    words = library.in_words("resnet18", task)
    assert words[0] == "drop_block_rate=0.25: layer*.*.drop_block (4)"
    assert "drop_rate=0: the classifier's head, which does not drop" in words


def test_the_head_of_a_torchvision_model_does_not_drop():
    model = build("torchvision/efficientnet_b0", Task(3, 10, 32, 0.25, 0.5))
    assert model.classifier[0].p == 0
    assert {name.rpartition(".")[2] for name in rates(model)} == {"stochastic_depth"}
    vgg = library.find_dropout("torchvision/vgg11")
    assert (vgg.unit, vgg.path, vgg.head) == ({}, {}, ("dropout",))


def test_a_rate_that_no_argument_sets_is_set_in_its_proportions():
    peak = 0.4
    model = build("torchvision/swin_t", Task(3, 10, 32, 0.0, peak))
    theirs = torchvision.models.swin_t()  # 0.2 at the last block, in its own code
    expected = {
        site.name: site.base_rate * peak / 0.2 for site in find_sites(theirs) if site.kind == "path"
    }
    assert {
        site.name: site.base_rate for site in find_sites(model) if site.kind == "path"
    } == pytest.approx(expected)
    off = build("torchvision/swin_t", Task(3, 10, 32, 0.2, 0.0))
    assert all(site.base_rate == 0 for site in find_sites(off) if site.kind == "path")


def test_a_torchvision_model_is_adapted_to_other_channels():
    model = build("torchvision/regnet_y_400mf", Task(1, 10, 32, 0.0, 0.0)).eval()
    assert model.stem[0].in_channels == 1
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_arguments_of_a_librarys_model_are_typed_and_passed_on():
    model = build("resnet18", Task(3, 10, 32, 0.1, 0.0), args={"stem_width": 16})
    assert model.conv1.out_channels in (16, 64)
    with pytest.raises(
        ConfigError,
        match=r"model.args.block_reduce_frist is 2: .*did you mean block_reduce_first\?",
    ):
        build("resnet18", Task(3, 10, 32, 0.1, 0.0), args={"block_reduce_frist": 2})


def test_weights_are_the_same_for_every_rate():
    one, other = (build("test_resnet", Task(3, 5, 32, rate, rate)) for rate in (0.0, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


NOTHING_DROPS = (
    "convmixer_768_32", "dla46x_c", "dpn48b", "efficientvit_b0", "efficientvit_m0", "ghostnet_050",
    "hrnet_w18_small", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small",
    "legacy_seresnet18", "legacy_xception", "nasnetalarge", "pnasnet5large", "repghostnet_050",
    "repvit_m1", "selecsls42", "shvit_s1", "vgg11",
)  # fmt: skip
"""Models without an argument that gives a site: they train under schedule=none alone."""
NOT_TRAINED = {
    "deepseek_vit_412m": "412 million parameters: two steps take 7 GB and minutes",
    "tnt_s_legacy_patch16_224": (
        "timm drops its attention in place, so that its own backward fails, "
        "with dropout set by hand too"
    ),
}
"""Why a model is audited, but does not train two steps here."""


def smallest():
    return [
        small_models.timm_smallest(module, names)
        for module, names in small_models.timm_modules().items()
    ]


def train_two_steps(model, images):
    scheduler = DropoutScheduler(model, early(0.2, 2), kind="all")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    labels = torch.tensor([1, 4])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no scheduler drives")
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
            assert loss.isfinite()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", smallest())
def test_the_smallest_of_every_timm_module_trains_two_steps(name):
    if name in NOT_TRAINED:
        assert not audit(*small_models.timm_model(name)[:2]).undriven
        pytest.skip(NOT_TRAINED[name])
    size = small_models.timm_size(name)
    model = build(name, Task(3, 5, size, 0.2, 0.2))
    images = torch.randn(2, 3, size, size)
    if name in NOTHING_DROPS:  # its training is timm's alone
        assert not rates(model)
    else:
        train_two_steps(model, images)
    assert not audit(model, images).undriven
    assert explicit.named(name) is not None or library.is_known(name)


def test_an_argument_that_a_model_ignores_is_not_named():
    """torchvision's ConvNeXt accepts any keyword."""
    assert library.in_words("torchvision/convnext_tiny", Task(3, 10, 32, 0.0, 0.5)) == [
        "stochastic_depth_prob=0.5: features.*.*.stochastic_depth (17)"
    ]


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "swinv2_cr_tiny_224"])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_a_rate_that_timm_fixes_follows_the_others(name, rate):
    """The MLP of relative positions has the rate .125, which no argument sets."""
    model = build(name, Task(3, 10, 224, rate, 0.0))
    found = [site.base_rate for site in find_sites(model) if site.name.endswith(".drop1")]
    assert found
    assert set(found) == {rate}
    words = library.in_words(name, Task(3, 10, 224, rate, 0.0))
    assert any(line.startswith("no argument, so set in place: ") for line in words)
