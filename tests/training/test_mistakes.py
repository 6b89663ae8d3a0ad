"""Fifty mistakes, each refused before training by a line with the value and what was expected."""

import pytest

from earlydrop.analysis.arms import config_of
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model

MISTAKES = [
    ({"mode": "trian"}, "mode is 'trian': expected one of train, eval, plan"),
    ({"resume": "always"}, "resume is 'always': expected one of auto, force, never"),
    ({"tracking.mode": "on"}, "tracking.mode is 'on': expected one of offline, online, off"),
    ({"seed": -1}, "seed is -1: expected 0 or more"),
    ({"threads": 0}, "threads is 0: expected more than 0"),
    (
        {"device": "gpu"},
        (
            r"device=gpu is not a device that torch knows "
            r"\(did you mean cuda\?\); on this machine use device=cpu"
        ),
    ),
    ({"device": "cuda:99"}, "device=cuda:99 is not available on this machine; use device=cpu"),
    ({"device": "mps"}, "device=mps is not available on this machine; use device=cpu"),
    ({"schedule.name": "erly"}, "schedule.name is 'erly': expected one of none, constant, early"),
    ({"schedule.kind": "paths"}, "schedule.kind is 'paths': expected one of unit, path, all"),
    ({"schedule.rate": 1.0}, r"schedule: rate is 1.0: expected a drop probability in \[0, 1\)"),
    ({"schedule.rate": -0.1}, "schedule: rate is -0.1"),
    ({"schedule.rate": float("nan")}, "schedule.rate is null: give it a value"),
    ({"schedule.rate": float("inf")}, "schedule.rate is inf: expected a finite number"),
    ({"schedule.cutoff": "120%"}, "cutoff is '120%': past the end of the run"),
    ({"schedule.cutoff": "-5"}, "cutoff is '-5': a duration cannot be negative"),
    ({"schedule.cutoff": "99ep"}, "cutoff is '99ep'.*past the end of the run"),
    ({"schedule.cutoff": "soon"}, "cutoff is 'soon': expected a whole number of steps"),
    (
        {"schedule.shape": "square"},
        "shape is 'square': early takes 'linear' or 'constant' or 'cosine'",
    ),
    (
        {"schedule.name": "piecewise"},
        "schedule.points is null: schedule=piecewise needs points such as",
    ),
    (
        {"schedule.name": "piecewise", "schedule.points": "0.1"},
        "points is '0.1': it needs at least a first and a last rate",
    ),
    (
        {"schedule.name": "piecewise", "schedule.points": "0,0.1@0.9,0.2@0.1,0"},
        "positions must rise",
    ),
    ({"schedule.gamma": 0.0}, "schedule.gamma is 0.0: expected more than 0"),
    (
        {"schedule.kind": "path"},
        "schedule.kind is 'path', model.name is 'mlp': MLP has no path site",
    ),
    ({"optim.name": "adam"}, "optim.name is 'adam': expected one of adamw, sgd, rmsprop"),
    ({"optim.lr": 0.0}, "optim.lr is 0.0: expected more than 0"),
    ({"optim.lr": float("inf")}, "optim.lr is inf: expected a finite number"),
    ({"model.profile": [float("nan")]}, r"model.profile is \[nan\]: expected finite numbers"),
    ({"optim.min_lr": -1.0}, "optim.min_lr is -1.0: expected 0 or more"),
    ({"optim.warmup": "200%"}, "optim.warmup is '200%': past the end of the run"),
    ({"optim.beta1": 1.0}, r"optim.beta1 is 1.0: expected a number in \[0, 1\)"),
    ({"optim.momentum": 1.5}, r"optim.momentum is 1.5: expected a number in \[0, 1\)"),
    ({"optim.clip": -1.0}, "optim.clip is -1.0: expected more than 0"),
    ({"optim.l1": 0.0}, "optim.l1 is 0.0: expected more than 0"),
    ({"optim.max_norm": -3.0}, "optim.max_norm is -3.0: expected more than 0"),
    ({"augment.shift": -1}, "augment.shift is -1: expected 0 or more"),
    ({"augment.shift": 28}, "augment.shift is 28: expected less than the image's 28 pixels"),
    ({"augment.switch": 1.5}, r"augment.switch is 1.5: expected a probability in \[0, 1\]"),
    ({"augment.smoothing": 1.0}, r"augment.smoothing is 1.0: expected a number in \[0, 1\)"),
    ({"augment.erasing": 2.0}, r"augment.erasing is 2.0: expected a probability in \[0, 1\]"),
    (
        {"probe.batches": 1},
        "probe.batches is 1: expected at least 2; gradient direction variance compares",
    ),
    ({"probe.at": ["150%"]}, "a position in probe.at is '150%'"),
    ({"probe.dataset_limit": 0}, "probe.dataset_limit is 0: expected more than 0"),
    ({"trainer.epochs": 0}, "trainer.epochs is 0: expected more than 0"),
    (
        {"trainer.batch_size": 9_999},
        "trainer.batch_size is 9999: the training set has only 300 images",
    ),
    (
        {"trainer.accumulate": 3},
        r"trainer.accumulate is 3: expected a divisor of trainer.batch_size \(32\)",
    ),
    (
        {"trainer.precision": "fp16"},
        "trainer.precision is 'fp16': expected one of float32, tf32, bf16",
    ),
    ({"trainer.masks": "quick"}, "trainer.masks is 'quick': expected one of native, fast"),
    (
        {"trainer.stop_metric": "train/loss"},
        "trainer.stop_metric is 'train/loss': expected one of train_eval/loss",
    ),
    ({"trainer.eval_every": "x"}, "trainer.eval_every is 'x'"),
    (
        {"trainer.mc_passes": 4},
        "trainer.mc_passes is 4: Monte Carlo dropout needs dropout at the end",
    ),
    ({"data.name": "imagenet"}, "data.name is 'imagenet': expected one of fashion_mnist_mini"),
    ({"data.root": "/nowhere/at/all"}, "data.root is '/nowhere/at/all': there is no such folder"),
    (
        {"data.train_images": 4},
        "data.train_images is 4: fashion_mnist_mini has 10000 training images of 10 classes",
    ),
    ({"model.name": "resnet5O"}, "model.name is 'resnet5O': expected vit_micro"),
    ({"model.width": 8}, "model.width is 8: model.name=mlp has no such key; leave it null"),
    ({"model.hidden": []}, r"model.hidden is \[\]: expected the widths"),
    (
        {"model.dropout": "channel"},
        "model.dropout is 'channel': model.name=mlp takes inverted, standard",
    ),
    ({"model.attention": "fused"}, "model.attention is 'fused': model.name=mlp has no attention"),
    (
        {"model.name": "vit_micro", "model.hidden": None, "model.heads": 5},
        "model.heads is 5: expected a divisor of model.width",
    ),
    ({"study": "/"}, "study is '/': expected one plain name for a folder"),
]


@pytest.mark.parametrize(("values", "says"), MISTAKES, ids=[says[:40] for _, says in MISTAKES])
def test_a_mistake_is_refused(values, says, tmp_path):
    base = {
        "out": str(tmp_path),
        "model.name": "mlp",
        "model.hidden": [8],
        "data.train_images": 300,
        "trainer.batch_size": 32,
        "trainer.epochs": 2,
        "probe.at": ["0%"],
    }
    with pytest.raises(ConfigError, match=says):
        scheduled_model(make_plan(config_of(base | values)))
    assert not list(tmp_path.iterdir())


def test_there_are_fifty():
    assert len(MISTAKES) >= 50
