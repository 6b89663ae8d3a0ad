"""An objective is refused before any work if the run would not measure it."""

import dataclasses
import re
from pathlib import Path

import pytest

from earlydrop.metrics import METRICS
from earlydrop.training.checks import check
from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.fields import ConfigError
from earlydrop.training.record.folder import read_metrics
from earlydrop.training.run import run

OPTIONS = [
    "tracking=off",
    "device=cpu",
    "model.width=16",
    "model.depth=1",
    "data.train_images=100",
    "trainer.batch_size=20",
    "trainer.steps=4",
    "evaluation.train_images=40",
    "schedule=constant",
]
MAY_BE_UNDEFINED = {
    "probe/bias_corrected",
    "probe/noise_scale",
    "probe/bias_floor",
    "probe/critical_sharpness",
    "probe/preconditioned_sharpness",
}
SETTINGS = [
    ["probe=none"],
    ["probe=few", "evaluation.splits=[test]"],
    ["probe=few", "probe.compare=true", "trainer.ema=0.9", "evaluation.splits=[train_clean,test]"],
    ["probe=few", "probe.compare=true", "probe.curvature=true", "trainer.mc_passes=2"],
    ["probe=none", "evaluation.splits=[train_eval]", "trainer.mc_passes=2"],
]


def settings(*overrides):
    return config_from_dict(compose([*OPTIONS, *overrides]))


def accepted(name, config):
    try:
        check(dataclasses.replace(config, objective=name))
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("overrides", SETTINGS, ids=" ".join)
def test_the_metrics_that_are_accepted_are_those_that_a_run_records(overrides, tmp_path):
    small = ["probe.batches=2", "probe.dataset_limit=40"] if "probe=few" in overrides else []
    result = run(settings(*overrides, *small, f"out={tmp_path}"))
    recorded = set().union(*read_metrics(Path(result["folder"]) / "metrics.jsonl")) - {"step"}
    config = settings(*overrides)
    taken = {name for name in METRICS if accepted(name, config)}
    assert recorded <= taken
    missing = taken - recorded
    assert {re.sub("probe_(on|off)", "probe", name) for name in missing} <= MAY_BE_UNDEFINED


def test_a_measure_of_the_users_is_refused_where_none_is_named():
    with pytest.raises(ConfigError, match=r"'probe/gdvv': probe.measures is empty, so it is not"):
        check(settings("probe=few", "objective=probe/gdvv"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("test_mc/accuracy", "trainer.mc_passes=20"),
        ("test/ece", "trainer.mc_passes=20"),
        ("ema/test/loss", "trainer.ema=0.999"),
        ("train_clean/loss", "evaluation.splits=[test,train_clean]"),
        ("probe_on/gdv", "probe.compare=true"),
        ("probe/critical_sharpness", "probe.curvature=true"),
    ],
)
def test_the_remedy_that_the_message_gives_works(name, remedy):
    options = ["probe=few", "evaluation.splits=[test]"]
    with pytest.raises(ConfigError, match=f"not measured; give {re.escape(remedy)}"):
        check(settings(*options, f"objective={name}"))
    assert accepted(name, settings(*options, remedy))
