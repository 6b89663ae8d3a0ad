import itertools
import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from earlydrop.analysis import load_runs
from earlydrop.training.endings import TrainingFailed
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import BUILDERS
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_best
from earlydrop.training.record.folder import RunFolder, read_metrics
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.states import assert_same, final_state
from tests.training.stopping import stopping


def test_two_runs_that_differ_only_in_schedule_see_the_same_data(config, monkeypatch):
    seen = []
    original = Trainer.train_step

    def spy(self, parts):
        seen[-1] += [(images.clone(), targets.clone()) for images, targets in parts]
        original(self, parts)

    monkeypatch.setattr(Trainer, "train_step", spy)
    initial = []
    for name in ("none", "constant", "early", "late"):
        seen.append([])
        settings = config(
            schedule__name=name, augment__mixup=0.8, augment__cutmix=1.0, augment__smoothing=0.1
        )
        initial.append(
            {k: v.clone() for k, v in scheduled_model(make_plan(settings))[0].named_parameters()}
        )
        run(settings)
    for other, weights in zip(seen[1:], initial[1:], strict=True):
        assert_same([list(pair) for pair in seen[0]], [list(pair) for pair in other])
        for name, weight in initial[0].items():
            assert torch.equal(weight, weights[name])
    losses = {read_metrics(p)[-1]["train/loss"] for p in Path(config().out).rglob("metrics.jsonl")}
    assert len(losses) == 4


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(config, monkeypatch):
    original = Trainer.train_step

    def poison(self, parts):
        original(
            self,
            [
                (images * float("nan") if self.step == 6 else images, targets)
                for images, targets in parts
            ],
        )

    monkeypatch.setattr(Trainer, "train_step", poison)
    with pytest.raises(TrainingFailed, match="loss is nan at step 6"):
        run(config(trainer__checkpoint_seconds=0.0))
    folder = make_plan(config()).folder
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "step 6" in status["reason"]
    newest = final_state(folder)
    assert newest["step"] == 6
    assert all(v.isfinite().all() for v in newest["model"].values())


def test_precision_compile_optimizer_and_clipping_act(config, monkeypatch):
    base = read_metrics(Path(run(config())["folder"]) / "metrics.jsonl")
    for options in (
        {"trainer__precision": "bf16"},
        {"optim__name": "sgd"},
        {"optim__clip": 0.01},
        {"augment__smoothing": 0.2},
        {"trainer__masks": "native"},
        {"schedule__shape": "cosine"},
    ):
        other = read_metrics(Path(run(config(**options))["folder"]) / "metrics.jsonl")
        assert other[-1]["train_eval/loss"] != base[-1]["train_eval/loss"], options
    compiled = []
    monkeypatch.setattr("earlydrop.training.prepare.compiler_problem", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda model, mode: compiled.append(mode) or model)
    run(config(trainer__compile=True))
    assert compiled == ["default"]
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)
    run(config(trainer__compile=True, trainer__compile_mode="reduce-overhead"))
    assert modes == ["reduce-overhead"]


def test_channels_last_lays_out_the_weights_of_convolutions(config):
    small = {
        "model__name": "convnet_micro",
        "model__hidden": None,
        "model__width": 8,
        "probe__at": [],
    }
    plain, laid = (run(config(**small, trainer__channels_last=each)) for each in (False, True))
    assert plain["folder"] != laid["folder"]
    assert laid["test/loss"] == pytest.approx(plain["test/loss"], rel=1e-3)
    model, _ = scheduled_model(make_plan(config(**small, trainer__channels_last=True)))
    layouts = [
        p.is_contiguous(memory_format=torch.channels_last)
        for p in model.parameters()
        if p.dim() == 4 and p.shape[1] > 1
    ]
    assert layouts
    assert all(layouts)
    with pytest.raises(
        ConfigError, match=r"trainer\.channels_last is true: model\.name=mlp has no convolution"
    ):
        run(config(trainer__channels_last=True))


def test_accumulation_sees_the_same_images_and_gives_nearly_the_same_gradient(config):
    plain = {
        "schedule__name": "none",
        "augment__shift": 0,
        "augment__flip": False,
    }  # what is random is drawn per part
    one, two = (
        read_metrics(Path(run(config(**plain, trainer__accumulate=k))["folder"]) / "metrics.jsonl")
        for k in (1, 4)
    )
    assert one[1]["train/gradient_norm"] == pytest.approx(two[1]["train/gradient_norm"], rel=1e-4)
    assert one[1]["train/loss"] == pytest.approx(two[1]["train/loss"], rel=1e-5)


def test_max_norm_holds_after_every_step(config, monkeypatch):
    from earlydrop.training import trainer as module

    norms = []
    real = module.max_norm_

    def watched(model, limit):
        real(model, limit)
        norms.append(
            max(
                m.weight.norm(dim=1).max().item()
                for m in model.modules()
                if isinstance(m, nn.Linear)
            )
        )

    monkeypatch.setattr(module, "max_norm_", watched)
    run(config(optim__max_norm=0.5))
    assert len(norms) == 18
    assert max(norms) <= 0.5 + 1e-6


def test_early_stopping_stops_when_the_metric_no_longer_improves(config):
    result = run(stopping(config))
    folder = Path(result["folder"])
    losses = [
        line["test/loss"] for line in read_metrics(folder / "metrics.jsonl") if "test/loss" in line
    ]
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
    trainer = Trainer(
        plan,
        *scheduled_model(plan),
        folder,
        track=lambda step, metrics: None,
        stop=lambda: trainer.step == last - 3,
    )
    trainer.resume()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    folder.close()
    resumed = Path(run(stopping(config, out=str(tmp_path / "b")))["folder"])
    assert (resumed / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("images", [None, 30])
def test_a_run_killed_after_its_early_stop_does_not_train_on(config, images):
    """Also where all images have a lower loss than those of the evaluations before the last."""

    def stopping_soon():
        return stopping(config, evaluation__interim_images=images, trainer__stop_patience=1)

    folder = Path(run(stopping_soon())["folder"])
    before = (folder / "metrics.jsonl").read_bytes()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert run(stopping_soon())["state"] == "finished"
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "status.json").read_text())["step"] == status["step"]


def test_weights_that_do_not_change_are_not_best_at_the_last_evaluation(config):
    """The last evaluation is of all images, the one before of 5: its accuracy is higher."""
    settings = stopping(
        config,
        optim__lr=1e-12,
        optim__min_lr=0.0,
        evaluation__interim_images=5,
        trainer__stop_metric="test/accuracy",
        trainer__stop_patience=99,
        trainer__epochs=2,
        trainer__eval_every="50%",
    )
    folder = Path(run(settings)["folder"])
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "test/accuracy" in line]
    first, last = lines
    assert last["test/accuracy"] > first["test/accuracy"]
    kept = load_best(folder / "checkpoints", make_plan(settings).fingerprint)
    assert (kept["step"], kept["value"]) == (first["step"], first["test/accuracy"])


def test_early_stopping_keeps_the_best_weights_beside_the_last_and_says_which_were_evaluated(
    config, capsys, monkeypatch
):
    settings = stopping(config, optim__lr=3e-2, trainer__stop_patience=2)
    result = run(settings)
    folder = Path(result["folder"])
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "test/loss" in line]
    best = min(lines, key=lambda line: line["test/loss"])
    kept = load_best(folder / "checkpoints", make_plan(settings).fingerprint)
    assert (kept["step"], kept["metric"], kept["value"]) == (
        best["step"],
        "test/loss",
        best["test/loss"],
    )
    assert kept["step"] < lines[-1]["step"]
    assert (
        f"the metrics are those of the last weights; test/loss was best after step {best['step']} "
        f"({best['test/loss']:.4f})" in capsys.readouterr().out
    )
    settings.mode = "eval"
    evaluated = run(settings)
    out = capsys.readouterr().out
    assert f"best weights, step {best['step']} (test/loss was best)" in out
    assert f"{best['test/loss']:.6f}" in out
    assert evaluated["test/loss"] == lines[-1]["test/loss"]
    assert load_best(folder / "checkpoints", "another") is None


def test_a_model_that_still_drops_at_rate_0_is_refused(config, monkeypatch):
    """A builder that leaves a dropout on, as a function that no site stands for."""

    class Leaky(torch.nn.Module):
        def __init__(self, task):
            super().__init__()
            self.inner = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Dropout(task.unit), torch.nn.Linear(784, task.classes)
            )

        def forward(self, x):
            return torch.nn.functional.dropout(self.inner(x), 0.2, self.training)

    monkeypatch.setitem(BUILDERS, "leaky", lambda task: Leaky(task))
    for schedule in ("none", "early"):
        settings = config(model__name="leaky", model__hidden=None, schedule__name=schedule)
        with pytest.raises(
            ConfigError, match=r"model.name is 'leaky': it has drops that no schedule drives"
        ):
            run(settings)
        assert not Path(settings.out).exists()


class Casts(TorchDispatchMode):
    """Counts the casts of float32 weights to bfloat16, by their number of elements."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", ["mlp", "vit_micro", "convnet_micro"])
def test_in_bf16_weights_are_cast_once_a_step_and_the_bits_are_those_of_a_cast_a_part(
    config, model, monkeypatch
):
    sizes = {"mlp": {}, "vit_micro": {"model__hidden": None, "model__depth": 2, "model__width": 16}}
    options = {"model__name": model, **sizes.get(model, {"model__hidden": None, "model__width": 8})}
    plan = make_plan(config(trainer__precision="bf16", trainer__accumulate=4, **options))

    def trained(count_casts):
        trainer = Trainer(plan, *scheduled_model(plan), None, track=lambda step, metrics: None)
        trainer.model.train()
        steps = itertools.islice(trainer.batches(), 3)
        for parts in steps:
            with count_casts if trainer.step == 2 else nullcontext():
                trainer.train_step(parts)
        return trainer

    casts = Casts()
    ours = trained(casts)
    weights = [p.data_ptr() for p in ours.model.parameters() if p.dim() > 1]
    assert {casts.counts[weight] for weight in weights if casts.counts[weight]} == {1}
    assert any(casts.counts[weight] for weight in weights)
    # A context for each part: the cache of casts is emptied whenever one ends.
    original = ours.objective.loss
    monkeypatch.setattr(
        type(ours.objective),
        "loss",
        lambda self, logits, targets: torch.clear_autocast_cache() or original(logits, targets),
    )
    casts = Casts()
    theirs = trained(casts)
    assert max(casts.counts[p.data_ptr()] for p in theirs.model.parameters()) == 4
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
