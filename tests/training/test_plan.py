from pathlib import Path

import pytest

from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run
from tests.training.stopping import stopping


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule__rate": 1.2}, r"schedule: rate is 1.2.*\[0, 1\)"),
        ({"schedule__cutoff": "5000"}, "cutoff is 5000.*past the end of the run of 18 steps"),
        ({"schedule__cutoff": "9ep"}, "past the end"),
        ({"schedule__name": "erly"}, "'erly'.*early"),
        ({"schedule__kind": "path"}, "schedule.kind is 'path'.*no path site"),
        ({"schedule__kind": "paths"}, "'paths'.*unit, path, all"),
        ({"schedule__name": "piecewise"}, "schedule.points is null"),
        ({"schedule__name": "late", "schedule__shape": "linear"}, "shape is 'linear'"),
        ({"trainer__batch_size": 301}, "batch_size is 301.*only 300"),
        ({"trainer__accumulate": 5}, "accumulate is 5.*divisor"),
        ({"trainer__precision": "fp16"}, "'fp16'.*float32, tf32, bf16"),
        ({"trainer__epochs": 0}, "trainer.epochs is 0"),
        ({"optim__warmup": "101%"}, "optim.warmup"),
        ({"probe__at": ["x"]}, "probe.at"),
        ({"probe__batches": 1}, "probe.batches is 1"),
        (
            {"device": "tpu9"},
            "device=tpu9 is not a device that torch knows; on this machine use device=cpu",
        ),
        ({"model__name": "vit_bogus"}, "vit_bogus"),
        ({"data__name": "bogus"}, "bogus"),
        ({"optim__lr": float("nan")}, "optim.lr is nan"),
        ({"out": "/proc/nowhere"}, "cannot be written"),
    ],
)
def test_bad_input_is_refused_before_training(config, options, says):
    settings = config(**options)
    with pytest.raises(ConfigError, match=says):
        run(settings)
    assert not Path(config().out).exists()


@pytest.mark.parametrize(
    ("key", "value"), [("max_norm", 0.0), ("max_norm", -1.0), ("l1", -1e-3), ("l2", 0.0)]
)
def test_bad_constraints_are_refused(config, key, value):
    with pytest.raises(ConfigError, match=rf"optim\.{key} is {value}: expected more than 0"):
        make_plan(config(**{f"optim__{key}": value}))


def test_early_stopping_on_what_is_not_measured_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"stop_metric is 'val/loss': expected one of train_eval/loss"
    ):
        make_plan(stopping(config, trainer__stop_metric="val/loss"))


def test_input_dropout_out_of_range_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"model\.input_dropout is 1\.0: expected a rate in \[0, 1\)"
    ):
        make_plan(config(model__input_dropout=1.0))


@pytest.mark.parametrize("name", ["none", "early"])
def test_mc_dropout_without_dropout_at_the_end_is_refused(config, name):
    with pytest.raises(
        ConfigError, match=r"trainer\.mc_passes is 8: Monte Carlo dropout needs dropout at the end"
    ):
        make_plan(config(schedule__name=name, trainer__mc_passes=8))
    with pytest.raises(ConfigError, match=r"trainer\.mc_passes is 0: expected more than 0"):
        make_plan(config(schedule__name="constant", trainer__mc_passes=0))
