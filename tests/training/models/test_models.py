import random

import numpy as np
import pytest
import torch
from torch import nn

from earlydrop.training.config import ModelConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import BUILDERS, Task, build_model
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.run import run


def test_input_dropout_is_fixed_and_not_driven(config):
    plan = make_plan(config(model__input_dropout=0.2))
    model, scheduler = scheduled_model(plan)
    assert {site.name: site.rate for site in scheduler.sites} == {"network.3": 0.3}
    assert model.input_dropout.p == 0.2
    for _ in range(18):
        scheduler.step()
    assert scheduler.last_rate == 0
    assert model.input_dropout.p == 0.2
    run(
        config(
            model__input_dropout=0.2,
            model__name="vit_micro",
            model__hidden=None,
            model__width=8,
            model__depth=1,
        )
    )


@pytest.mark.parametrize(
    ("name", "dropout", "layer"),
    [
        ("mlp", "standard", "StandardDropout"),
        ("mlp", "shared", "SharedMaskDropout"),
        ("mlp", "gaussian", "GaussianDropout"),
        ("convnet_micro", "element", "Dropout"),
        ("convnet_micro", "channel", "Dropout2d"),
        ("convnet_micro", "block", "DropBlock2d"),
    ],
)
def test_sorts_of_dropout_train(config, name, dropout, layer):
    sizes = {"model__hidden": None, "model__width": 4} if name != "mlp" else {}
    settings = config(model__name=name, model__dropout=dropout, **sizes)
    _, scheduler = scheduled_model(make_plan(settings))
    assert {type(site.module).__name__ for site in scheduler.sites} == {layer}
    assert run(settings)["state"] == "finished"


def test_an_unknown_sort_of_dropout_is_refused(config):
    with pytest.raises(
        ConfigError,
        match=(
            r"model\.dropout is 'gausian': "
            r"model.name=mlp takes inverted, standard, shared, gaussian"
        ),
    ):
        scheduled_model(make_plan(config(model__dropout="gausian")))
    with pytest.raises(
        ConfigError, match=r"model\.dropout is 'block': model.name=vit_micro has no such key"
    ):
        scheduled_model(
            make_plan(config(model__name="vit_micro", model__hidden=None, model__dropout="block"))
        )


def build(name, unit=0.0, path=0.0, seed=0, size=224, **sizes):
    task = Task(3 if size == 224 else 1, 1000 if size == 224 else 10, size, unit, path)
    return build_model(ModelConfig(name=name, **sizes), task, seed)


def test_initial_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    models = [
        build("vit_micro", size=28),
        build("vit_micro", unit=0.5, size=28),
        build("vit_micro", path=0.5, size=28),
    ]
    assert torch.equal(state, torch.get_rng_state())
    other = build("vit_micro", seed=1, size=28)
    for name, p in models[0].named_parameters():
        assert all(torch.equal(p, dict(m.named_parameters())[name]) for m in models[1:])
    assert not torch.equal(models[0].blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)


def test_a_builder_that_draws_from_python_and_numpy_gives_a_seeds_weights(monkeypatch):
    def build(task):
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, np.random.rand())
        nn.init.constant_(model.bias, random.random())
        return model

    monkeypatch.setitem(BUILDERS, "drawn", build)
    random.seed(4)
    np.random.seed(4)
    before = random.getstate(), np.random.get_state()[1].tolist()
    models = []
    for seed in (0, 0, 1):
        models.append(build_model(ModelConfig(name="drawn"), Task(1, 10, 28, 0.0, 0.0), seed))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert models[0].weight[0, 0] == models[1].weight[0, 0] != models[2].weight[0, 0]
    assert models[0].bias[0] == models[1].bias[0] != models[2].bias[0]


def test_text_has_no_input_dropout():
    config = ModelConfig(name="gpt_micro", input_dropout=0.1)
    task = Task(channels=0, classes=65, image_size=0, unit=0.0, path=0.0, context=8)
    with pytest.raises(ConfigError, match=r"input_dropout is 0\.1: the data is text"):
        build_model(config, task, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"name": "resnet5O"},
            (
                r"'resnet5O'.*vit_micro.*timm or torchvision.*module:function of your own: "
                r"did you mean resnet50\?"
            ),
        ),
        (
            {"name": "vit_micro", "args": {"widht": 3}},
            r"model.args.widht is 3.*it takes width, .*did you mean width\?",
        ),
        (
            {"name": "vit_micro", "args": {"width": 3}},
            r"model.args.width is 3: model.width is a key of its own",
        ),
        ({"name": "vit_enormous"}, "'vit_enormous'.*no such model"),
        ({"name": "vit_micro", "patch": 5}, "model.patch is 5.*28"),
        ({"name": "vit_micro", "heads": 3}, "model.heads is 3.*64"),
        ({"name": "mlp", "width": 3}, "model.width is 3"),
        ({"name": "vit_micro", "hidden": [3]}, "model.hidden"),
        ({"name": "mlp", "attention": "fused"}, "model.attention is 'fused'.*mlp has no attention"),
    ],
)
def test_bad_models(options, says):
    with pytest.raises(ConfigError, match=says):
        build_model(ModelConfig(**options), Task(1, 10, 28, 0.0, 0.0), 0)
