import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from earlydrop.training.evaluate import calibration_error, fixed_subset, usual_limit
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_checkpoint
from earlydrop.training.run import run
from tests.training.stopping import STOPPING


def test_calibration_error_by_hand():
    probabilities = torch.tensor(
        [[0.95, 0.05], [0.75, 0.25], [0.35, 0.65], [0.55, 0.45], [0.57, 0.43]]
    )
    labels = torch.tensor([0, 1, 1, 1, 0])
    # right, wrong, right; and one bin of a wrong and a right one, whose gaps partly cancel
    expected = (0.05 + 0.75 + 0.35 + abs((0 - 0.55) + (1 - 0.57))) / 5
    assert calibration_error(probabilities, labels, bins=10) == pytest.approx(expected)


def test_mc_dropout_is_measured_at_the_end(config):
    result = run(config(schedule__name="constant", trainer__mc_passes=8))
    for name in (
        "test_mc/loss",
        "test_mc/accuracy",
        "test_mc/ece",
        "test_mc/mutual_information",
        "test/ece",
    ):
        assert 0 <= result[name] < 10
    assert result["test_mc/mutual_information"] > 0


def test_a_run_that_stops_before_its_late_dropout_leaves_monte_carlo_out(config):
    more = STOPPING | {
        "schedule__name": "late",
        "schedule__cutoff": "95%",
        "trainer__mc_passes": 2,
    }
    result = run(config(**more))
    assert result["state"] == "finished"
    assert "test/loss" in result
    assert "test_mc/loss" not in result


@pytest.mark.parametrize("name", ["early", "late", "constant"])
def test_evaluating_a_checkpoint_gives_the_last_metrics_also_where_evaluation_depends_on_the_rate(
    config, name
):
    settings = {"model__dropout": "standard", "schedule__name": name}
    trained = run(config(**settings))
    evaluated = run(config(**settings, mode="eval"))
    for key in ("test/loss", "train_eval/loss", "train_clean/accuracy"):
        assert evaluated[key] == trained[key]


def lines(result):
    return [
        json.loads(line)
        for line in (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()
    ]


def test_fewer_images_before_the_last_evaluation_change_no_weights_and_not_the_last_metrics(config):
    whole, fewer = run(config()), run(config(evaluation__interim_images=50))
    assert whole["folder"] != fewer["folder"]
    first, last = ([line for line in lines(each) if "test/loss" in line] for each in (whole, fewer))
    assert first[-1] == last[-1]
    assert first[0]["train_eval/loss"] != last[0]["train_eval/loss"]
    assert [line.get("train/loss") for line in lines(whole)] == [
        line.get("train/loss") for line in lines(fewer)
    ]


def test_the_images_of_a_bounded_evaluation_are_the_same_for_every_run():
    subset = fixed_subset("evaluation-images", 1000, 100)
    assert torch.equal(subset, fixed_subset("evaluation-images", 1000, 100))
    assert len(subset.unique()) == 100
    assert torch.equal(subset, subset.sort().values)
    assert torch.equal(fixed_subset("evaluation-images", 10, 100), torch.arange(10))
    assert (usual_limit(100_000), usual_limit(1_281_167)) == (100_000, 50_000)


def test_only_the_splits_that_are_asked_for_are_evaluated(config):
    result = run(config(evaluation__splits=["train_eval"]))
    assert {name for line in lines(result) for name in line if name.endswith("/accuracy")} == {
        "train_eval/accuracy"
    }


@pytest.mark.parametrize("splits", [[], ["test", "test"], ["validation"]])
def test_splits_that_there_are_not_are_refused(config, splits):
    with pytest.raises(
        ConfigError,
        match=r"evaluation.splits is .*: expected one or more of test, train_eval, train_clean",
    ):
        run(config(evaluation__splits=splits))


def test_a_watched_metric_has_to_be_measured(config):
    with pytest.raises(
        ConfigError, match=r"trainer\.stop_metric is 'test/loss': evaluation.splits"
    ):
        run(config(evaluation__splits=["train_eval"], trainer__stop_metric="test/loss"))


def test_text_counts_every_place(config):
    """The loss of a text's test set against the mean over all places, by hand."""
    settings = {
        "model": {"name": "gpt_micro", "width": 16, "depth": 1},
        "data": {"name": "text", "train_images": 64},
        "probe__at": [],
        "trainer__epochs": 1,
        "evaluation__batch_size": 300,
    }
    result = run(config(**settings))
    plan = make_plan(config(**settings))
    model, _ = scheduled_model(plan)
    content = load_checkpoint(plan.folder / "checkpoints", plan.fingerprint)
    model.load_state_dict(content["model"])
    with torch.no_grad():
        ((tokens, following),) = plan.source.batches(
            [(0, torch.arange(plan.source.sizes["test"]))], "test", None
        )
        losses = F.cross_entropy(
            model.eval()(tokens).double().flatten(0, 1), following.flatten(), reduction="none"
        )
    assert result["test/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert losses.numel() == plan.source.sizes["test"] * 128


def test_a_run_that_stops_early_ends_with_numbers_on_all_images(config):
    more = STOPPING | {
        "evaluation__interim_images": 40,
    }
    result = run(config(**more))
    ended = lines(result)[-1]
    assert ended["step"] < make_plan(config(**more)).total_steps
    assert (
        run(config(**more, mode="eval"))["test/loss"] == result["test/loss"] == ended["test/loss"]
    )
