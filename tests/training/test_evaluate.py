import pytest
import torch

from earlydrop.training.evaluate import calibration_error
from earlydrop.training.run import run


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[0.95, 0.05], [0.75, 0.25], [0.35, 0.65], [0.55, 0.45], [0.57, 0.43]])
    labels = torch.tensor([0, 1, 1, 1, 0])
    # right, wrong, right; and one bin of a wrong and a right one, whose gaps partly cancel
    expected = (0.05 + 0.75 + 0.35 + abs((0 - 0.55) + (1 - 0.57))) / 5
    assert calibration_error(probabilities, labels, bins=10) == pytest.approx(expected)


def test_mc_dropout_is_measured_at_the_end(config):
    result = run(config(schedule__name="constant", trainer__mc_passes=8))
    for name in ("test_mc/loss", "test_mc/accuracy", "test_mc/ece", "test_mc/mutual_information", "test/ece"):
        assert 0 <= result[name] < 10
    assert result["test_mc/mutual_information"] > 0


def test_a_run_that_stops_before_its_late_dropout_leaves_monte_carlo_out(config):
    more = {"trainer__stop_metric": "test/loss", "trainer__stop_patience": 1, "trainer__eval_every": "5%", "trainer__epochs": 20,
            "optim__lr": 0.1, "probe__at": [], "schedule__name": "late", "schedule__cutoff": "95%", "trainer__mc_passes": 2}  # fmt: skip
    result = run(config(**more))
    assert result["state"] == "finished"
    assert "test/loss" in result
    assert "test_mc/loss" not in result


@pytest.mark.parametrize("name", ["early", "late", "constant"])
def test_evaluating_a_checkpoint_gives_the_last_metrics_also_where_evaluation_depends_on_the_rate(config, name):
    settings = {"model__dropout": "standard", "schedule__name": name}
    trained = run(config(**settings))
    evaluated = run(config(**settings, mode="eval"))
    for key in ("test/loss", "train_eval/loss", "train_clean/accuracy"):
        assert evaluated[key] == trained[key]
