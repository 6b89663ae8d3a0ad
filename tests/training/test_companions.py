"""What goes with dropout: L1, L2, max-norm, early stopping, input dropout, profiles, other layers, Monte Carlo dropout."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from earlydrop.analysis import load_runs
from earlydrop.sites import find_sites
from earlydrop.training.config import ConfigError, ModelConfig, OptimConfig
from earlydrop.training.files import RunFolder, read_metrics
from earlydrop.training.measure import calibration_error
from earlydrop.training.models import build_model
from earlydrop.training.optim import add_penalties, make_optimizer
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer, TrainingFailed, scheduled_model


@pytest.mark.parametrize("decay", [0.05, 0.0])
def test_penalties_are_the_gradients_of_their_formulas(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(16, 4).double(), torch.randint(3, (16,))
    weights = [p for p in model.parameters() if p.dim() > 1]
    loss = F.cross_entropy(model(x), y)
    penalty = sum(0.01 * w.abs().sum() + 0.02 * w.square().sum() for w in weights)
    expected = torch.autograd.grad(loss + penalty, list(model.parameters()))
    optimizer = make_optimizer(model, OptimConfig(weight_decay=decay))
    F.cross_entropy(model(x), y).backward()
    add_penalties(optimizer, 0.01, 0.02)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_rmsprop_is_torchs(config):
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig(name="rmsprop", eps=1e-7))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.defaults["alpha"] == 0.9


def test_max_norm_holds_after_every_step(config, monkeypatch):
    from earlydrop.training import trainer as module

    norms = []
    real = module.max_norm_

    def watched(model, limit):
        real(model, limit)
        norms.append(max(m.weight.norm(dim=1).max().item() for m in model.modules() if isinstance(m, nn.Linear)))

    monkeypatch.setattr(module, "max_norm_", watched)
    run(config(optim__max_norm=0.5))
    assert len(norms) == 18
    assert max(norms) <= 0.5 + 1e-6


@pytest.mark.parametrize(("key", "value"), [("max_norm", 0.0), ("max_norm", -1.0), ("l1", -1e-3), ("l2", 0.0)])
def test_bad_constraints_are_refused(config, key, value):
    with pytest.raises(ConfigError, match=rf"optim\.{key} is {value}: expected more than 0"):
        make_plan(config(**{f"optim__{key}": value}))


def stopping(config, **more):
    settings = {"trainer__stop_metric": "test/loss", "trainer__stop_patience": 2, "trainer__eval_every": "5%", "trainer__epochs": 20,
                "optim__lr": 0.05, "trainer__log_every": 3, "probe__at": []}  # fmt: skip
    return config(**(settings | more))


def test_early_stopping_stops_when_the_metric_no_longer_improves(config):
    result = run(stopping(config))
    folder = Path(result["folder"])
    losses = [line["test/loss"] for line in read_metrics(folder / "metrics.jsonl") if "test/loss" in line]
    assert len(losses) < 20
    assert min(losses) == losses[-3]  # two evaluations without improvement, no more
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["step"] < status["total_steps"]
    assert run(stopping(config))["state"] == "skipped"
    assert load_runs(folder).loc[0, "state"] == "finished"


def test_early_stopping_is_the_same_after_a_resume(config, tmp_path):
    undisturbed = Path(run(stopping(config, out=str(tmp_path / "a")))["folder"])
    last = read_metrics(undisturbed / "metrics.jsonl")[-1]["step"]
    plan = make_plan(stopping(config, out=str(tmp_path / "b")))
    folder = RunFolder(plan.folder)
    trainer = Trainer(plan, *scheduled_model(plan), folder, track=lambda step, metrics: None, stop=lambda: trainer.step == last - 3)
    trainer.resume()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    folder.close()
    resumed = Path(run(stopping(config, out=str(tmp_path / "b")))["folder"])
    assert (resumed / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_early_stopping_on_what_is_not_measured_is_refused(config):
    with pytest.raises(ConfigError, match=r"stop_metric is 'val/loss': not measured at evaluations; expected one of test/loss"):
        make_plan(stopping(config, trainer__stop_metric="val/loss"))


def test_input_dropout_is_fixed_and_not_driven(config):
    plan = make_plan(config(model__input_dropout=0.2))
    model, scheduler = scheduled_model(plan)
    assert {site.name: site.rate for site in scheduler.sites} == {"network.3": 0.3}
    assert model.input_dropout.p == 0.2
    for _ in range(18):
        scheduler.step()
    assert scheduler.last_rate == 0
    assert model.input_dropout.p == 0.2
    run(config(model__input_dropout=0.2, model__name="vit_micro", model__hidden=None, model__width=8, model__depth=1))


def test_input_dropout_out_of_range_is_refused(config):
    with pytest.raises(ConfigError, match=r"model\.input_dropout is 1\.0: expected a rate in \[0, 1\)"):
        make_plan(config(model__input_dropout=1.0))


def test_a_profile_keeps_its_shape(config):
    plan = make_plan(config(model__hidden=[16, 16], model__profile=[0.5, 0.3], schedule__name="constant", schedule__rate=0.5))
    _, scheduler = scheduled_model(plan)
    assert [site.rate for site in scheduler.sites] == pytest.approx([0.5, 0.3])
    with pytest.raises(ConfigError, match=r"model\.profile is \[0.5\]: expected 2 rates"):
        scheduled_model(make_plan(config(model__hidden=[16, 16], model__profile=[0.5])))


@pytest.mark.parametrize(
    ("name", "dropout", "layer"),
    [("mlp", "standard", "StandardDropout"), ("mlp", "shared", "SharedMaskDropout"), ("mlp", "gaussian", "GaussianDropout"),
     ("convnet_micro", "element", "Dropout"), ("convnet_micro", "channel", "Dropout2d"), ("convnet_micro", "block", "DropBlock2d")],
)  # fmt: skip
def test_sorts_of_dropout_train(config, name, dropout, layer):
    sizes = {"model__hidden": None, "model__width": 4} if name != "mlp" else {}
    settings = config(model__name=name, model__dropout=dropout, **sizes)
    _, scheduler = scheduled_model(make_plan(settings))
    assert {type(site.module).__name__ for site in scheduler.sites} == {layer}
    assert run(settings)["state"] == "finished"


def test_an_unknown_sort_of_dropout_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"model\.dropout is 'gausian': model.name=mlp takes inverted, standard, shared, gaussian"
    ):
        scheduled_model(make_plan(config(model__dropout="gausian")))
    with pytest.raises(ConfigError, match=r"model\.dropout is 'block': model.name=vit_micro has no such key"):
        scheduled_model(make_plan(config(model__name="vit_micro", model__hidden=None, model__dropout="block")))


def test_the_convnet_has_units_and_a_path_profile():
    model = build_model(ModelConfig(name="convnet_micro"), 1, 10, 28, 0.0, 0.2, 0)
    assert [site.rate for site in find_sites(model) if site.kind == "path"] == pytest.approx([0.0, 0.1, 0.2])
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_choices_that_mean_nothing_without_dropout_share_a_fingerprint(config):
    prints = {make_plan(config(schedule__name="none", model__dropout=d)).fingerprint for d in (None, "standard", "gaussian")}
    assert len(prints) == 1
    assert make_plan(config(model__dropout="standard")).fingerprint != make_plan(config()).fingerprint


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


@pytest.mark.parametrize("name", ["none", "early"])
def test_mc_dropout_without_dropout_at_the_end_is_refused(config, name):
    with pytest.raises(ConfigError, match=r"trainer\.mc_passes is 8: Monte Carlo dropout needs dropout at the end"):
        make_plan(config(schedule__name=name, trainer__mc_passes=8))
    with pytest.raises(ConfigError, match=r"trainer\.mc_passes is 0: expected more than 0"):
        make_plan(config(schedule__name="constant", trainer__mc_passes=0))


def test_failed_runs_say_so(config):
    with pytest.raises(TrainingFailed):
        run(config(optim__name="sgd", optim__lr=1e20, optim__warmup="0%"))


def test_a_run_killed_after_its_early_stop_does_not_train_on(config):
    folder = Path(run(stopping(config))["folder"])
    before = (folder / "metrics.jsonl").read_bytes()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert run(stopping(config))["state"] == "finished"
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "status.json").read_text())["step"] == status["step"]


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


@pytest.mark.parametrize("hidden", [[], [-5], [0]])
def test_hidden_layers_that_are_none_are_refused(config, hidden):
    with pytest.raises(ConfigError, match=r"model\.hidden is .*: expected the widths"):
        scheduled_model(make_plan(config(model__hidden=hidden)))
