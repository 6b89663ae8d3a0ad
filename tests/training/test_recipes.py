"""The paper's recipes against REFERENCE's constants.

Every cell of its tables is planned on a generated folder and trains for two steps.
"""

import math
import re

import pytest
import torch
from PIL import Image

from earlydrop.sites import find_sites
from earlydrop.training.compose import compose, conf_folder, config_from_dict
from earlydrop.training.models import Task, build_model
from earlydrop.training.optim import learning_rate, make_optimizer
from earlydrop.training.run import run

RECIPES = {  # model, parameters at 1,000 classes, epochs, blocks, published top-1 by arm
    "vit_tiny": (
        "vit_tiny_patch16_224",
        5_717_416,
        300,
        12,
        ["73.9", "67.9", "72.6", "74.3", "74.4"],
    ),
    "mixer_small": ("mixer_s32_224", 19_104_624, 300, 8, ["71.0", "67.1", "70.5", "71.3", "71.7"]),
    "swin_femto": ("swin_femto", 5_126_988, 300, 12, ["74.3", "71.6", "73.7", "74.7", "75.2"]),
    "convnext_femto": ("convnext_femto", 5_217_784, 300, 12, ["76.1", "75.5", "76.3"]),
    "vit_tiny_improved": (
        "vit_tiny_patch16_224",
        5_717_416,
        600,
        12,
        ["76.3", "71.5", "75.6", "76.7", "76.7"],
    ),
    "swin_femto_improved": (
        "swin_femto",
        5_126_988,
        600,
        12,
        ["76.1", "73.5", "75.6", "76.6", "76.6"],
    ),
    "convnext_femto_improved": ("convnext_femto", 5_217_784, 600, 12, ["77.5", "77.4", "77.7"]),
    "vit_base": ("vit_base_patch16_224", 86_567_656, 300, 12, ["81.6", "82.3"]),
    "mixer_base": ("mixer_b16_224", 59_880_472, 300, 12, ["78.0", "78.6"]),
}
UNIT = {
    "vit": {"attn.attn_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2"},
    "swin": {"attn.attn_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2"},
    "mixer": {"mlp_tokens.drop1", "mlp_tokens.drop2", "mlp_channels.drop1", "mlp_channels.drop2"},
    "convnext": set(),
}


def recipe(name, *overrides):
    return config_from_dict(compose([f"experiment=paper/{name}", *overrides]))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (50, 40), (40 * i, 90, 30)).save(root / split / name / f"{i}.jpg")
    return root


def test_every_file_is_a_recipe_of_the_list():
    assert {path.stem for path in (conf_folder() / "experiment" / "paper").glob("*.yaml")} == set(
        RECIPES
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_released_constants(name):
    model, _, epochs, _, _ = RECIPES[name]
    config = recipe(name, "data.root=/x")
    assert config.model.name == model
    assert (
        config.trainer.epochs,
        config.trainer.batch_size,
        config.trainer.batch_size // config.trainer.accumulate,
    ) == (
        epochs,
        4096,
        128,
    )
    optim = config.optim
    assert (optim.name, optim.lr, optim.min_lr, optim.eps, optim.beta1, optim.beta2) == (
        "adamw",
        4e-3,
        1e-6,
        1e-8,
        0.9,
        0.999,
    )
    assert (optim.weight_decay, optim.clip, optim.warmup) == (0.05, None, "50ep")
    a = config.augment
    assert (a.randaugment, a.color_jitter, a.erasing, a.smoothing, a.switch) == (
        "rand-m9-mstd0.5-inc1",
        0.4,
        0.25,
        0.1,
        0.5,
    )
    assert (a.crop, a.flip, a.mixup, a.cutmix) == (
        True,
        True,
        *((0.3, 0.3) if name.endswith("improved") else (0.8, 1.0)),
    )
    assert (config.schedule.cutoff, config.schedule.shape) == ("50ep", None)
    rates = {"vit_base": ("late", "path", 0.4), "mixer_base": ("late", "path", 0.4)}
    expected = rates.get(
        name, ("early", "path", 0.5) if name.startswith("convnext") else ("early", "unit", 0.1)
    )
    assert (config.schedule.name, config.schedule.kind, config.schedule.rate) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_its_header_names_source_commands_and_every_published_number(name):
    text = (conf_folder() / "experiment" / "paper" / f"{name}.yaml").read_text()
    for part in (
        "# Source ",
        "# Differs ",
        f"earlydrop experiment=paper/{name} ",
        "--nproc-per-node=8",
        "--nnodes=4",
        "GPU hours",
        "Not run by us",
    ):
        assert part in text, part
    arms = re.findall(
        r"^#\s+(?:Arms\s+)?(schedule=\S.*?)\s{2,}(\d\d\.\d)( \*)?$", text, re.MULTILINE
    )
    assert [number for _, number, _ in arms] == RECIPES[name][4]
    for overrides, _, _ in arms:
        assert recipe(name, "data.root=/x", *overrides.split()).schedule.name in (
            "none",
            "constant",
            "early",
            "late",
        )
    assert ("* The paper gives no rate" in text) == any(star for _, _, star in arms)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name.endswith("base") else [])
        for name in RECIPES
        if not name.endswith("improved")
    ],
)
def built(request):
    """A recipe's name, configuration and model."""
    config = recipe(request.param, "data.root=/x")
    return request.param, config, build_model(config.model, Task(3, 1000, 224, 0.1, 0.5), 0)


def test_models_sites_and_profile(built):
    name, _, model = built
    model_name, parameters, _, depth, _ = RECIPES[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    family = model_name.split("_")[0]
    units = [site.name for site in find_sites(model) if site.kind == "unit" and site.base_rate > 0]
    assert not any("head" in site for site in units)
    positions = [site for site in units if "pos_drop" in site]
    assert len(positions) == (1 if family in ("vit", "swin") else 0)
    blocks = {}
    for site in set(units) - set(positions):
        where, part = re.fullmatch(
            r"((?:layers\.\d+\.|stages\.\d+\.)?blocks\.\d+)\.(.+)", site
        ).groups()
        blocks.setdefault(where, set()).add(part)
    assert all(parts == UNIT[family] for parts in blocks.values())
    assert len(blocks) == (depth if UNIT[family] else 0)
    paths = {}
    for module_name, module in model.named_modules():
        if type(module).__name__ == "DropPath":
            where = re.match(r"(?:layers\.\d+\.|stages\.\d+\.)?blocks\.\d+", module_name)[0]
            paths.setdefault(where, set()).add(module.drop_prob)
    profile = torch.linspace(0, 0.5, depth, dtype=torch.float64).tolist()
    # timm leaves the first block without one, its rate being 0 whatever the schedule says
    rates = [
        paths.get(where)
        for where in sorted(paths, key=lambda w: [int(i) for i in re.findall(r"\d+", w)])
    ]
    assert rates == [{rate} for rate in profile[-len(rates) :]]
    assert len(rates) in (depth, depth - 1)


NO_DECAY = {
    "vit_tiny": 69_544,
    "mixer_small": 41_840,
    "swin_femto": 43_468,
}  # parameters, of the released models


def test_weight_decay_spares_what_the_released_code_spares(built):
    name, config, model = built
    groups = make_optimizer(model, config.optim).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]
    named = {id(p): n for n, p in model.named_parameters()}
    spared = {named[id(p)] for p in groups[0]["params"]}
    by_name = ("pos_embed", "cls_token", "relative_position_bias_table")
    assert spared == {
        n
        for n, p in model.named_parameters()
        if p.ndim == 1 or n.split(".")[-1] in ("bias", *by_name)
    }
    assert len(spared) + len(groups[1]["params"]) == len(named)
    if name in NO_DECAY:
        assert sum(p.numel() for p in groups[0]["params"]) == NO_DECAY[name]


def released_initial_values(family, name, shape):
    """What the released code draws a parameter from: a sort of distribution and its scale."""
    module, _, kind = name.rpartition(".")
    fan_in = math.prod(shape[1:])
    if "norm" in module.split(".")[-1] or re.fullmatch(
        r"stem\.1|stages\.\d\.downsample\.0", module
    ):
        return "constant", float(kind == "weight")
    if family == "mixer":
        if module == "stem.proj":
            return (
                ("truncated at 2", 1 / math.sqrt(fan_in)) if kind == "weight" else ("constant", 0.0)
            )
        if module == "head":
            return "constant", 0.0
        return ("normal", 1e-6) if kind == "bias" else ("uniform", math.sqrt(6 / sum(shape)))
    if kind == "gamma":
        return "constant", 1e-6
    if module == "patch_embed.proj":
        return "uniform", 1 / math.sqrt(3 * {"vit": 16, "swin": 4}[family] ** 2)
    return ("constant", 0.0) if kind == "bias" else ("normal", 0.02)


def distance(values, sort, scale):
    """Kolmogorov-Smirnov statistic against a distribution, times the root of the sample size."""
    values = values.double().flatten()[:: max(1, values.numel() // 50_000)].sort().values
    if sort == "uniform":
        expected = ((values / scale + 1) / 2).clamp(0, 1)
    elif sort == "normal":
        expected = torch.special.ndtr(values / scale)
    else:
        # A normal distribution cut off at two of its standard deviations; `scale` is the standard
        # deviation after the cut.
        uncut = torch.special.ndtr(values / (scale / 0.87962566103423978))
        edge = torch.special.ndtr(torch.tensor(-2.0, dtype=torch.float64))
        expected = ((uncut - edge) / (1 - 2 * edge)).clamp(0, 1)
    below = torch.arange(len(values), dtype=torch.float64) / len(values)
    gap = torch.maximum(expected - below, below + 1 / len(values) - expected).max()
    return float(gap) * math.sqrt(len(values))


def test_every_initial_value_has_the_distribution_of_the_released_code(built):
    name, _, model = built
    family = RECIPES[name][0].split("_")[0]
    for parameter, values in model.named_parameters():
        sort, scale = released_initial_values(family, parameter, tuple(values.shape))
        if sort == "constant":
            assert (values == torch.tensor(scale)).all(), parameter
        else:
            assert distance(values.detach(), sort, scale) < 2.5, (
                parameter,
                sort,
                scale,
            )  # by chance once in 100,000 parameters


def test_schedules_and_learning_rate_per_step_are_the_released_arrays():
    """One rate an optimizer step, as numpy's linspace gives it; 312 steps an epoch of ImageNet."""
    import numpy as np

    import earlydrop

    n = 1_281_167 // 4096
    early = earlydrop.early(0.1, "50ep").resolve(300 * n, n)
    expected = np.linspace(0.1, 0, 50 * n)
    assert [early(step) for step in (0, 1, 50 * n - 2, 50 * n - 1, 50 * n)] == pytest.approx(
        [*expected[[0, 1, -2, -1]], 0.0]
    )
    rates = [
        learning_rate(step, 4e-3, 1e-6, 50 * n, 300 * n) for step in (0, 1, 50 * n - 1, 50 * n)
    ]
    assert rates == pytest.approx([*np.linspace(0, 4e-3, 50 * n)[[0, 1, -1]], 4e-3])


@pytest.mark.sweep
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_two_steps(name, images, tmp_path):
    small = [
        "trainer.steps=2", "trainer.batch_size=2", "trainer.accumulate=1", "schedule.cutoff=1",
        "optim.warmup=1", "data.workers=0", "tracking=off", "device=cpu",
        "trainer.precision=float32", "trainer.log_every=1", "trainer.eval_every=2",
        "evaluation.splits=[test]", f"out={tmp_path}", f"data.root={images}",
    ]  # fmt: skip
    result = run(recipe(name, *small))
    assert result["state"] == "finished"
    assert 0 < result["test/loss"] < 10
