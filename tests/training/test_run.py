"""Whole runs: paired streams, resuming, the folder's files, failures."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from earlydrop.analysis import load_runs
from earlydrop.training import trainer as trainer_module
from earlydrop.training.checkpoint import load_checkpoint
from earlydrop.training.config import ConfigError
from earlydrop.training.files import RunFolder, read_metrics
from earlydrop.training.plan import make_plan
from earlydrop.training.run import config_from_dict, run
from earlydrop.training.trainer import Interrupted, Trainer, TrainingFailed, scheduled_model


def final_state(folder):
    return torch.load(max((Path(folder) / "checkpoints").glob("*.pt")), weights_only=True)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_a_run_leaves_what_it_should(config):
    result = run(config())
    folder = Path(result["folder"])
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert folder.name == f"early-0.3-50pct-seed0-{provenance['fingerprint']}"
    assert provenance["packages"]["torch"]
    assert config_from_dict(yaml.safe_load((folder / "config.yaml").read_text())) == config()
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 4, 8, 9, 12, 16, 18]
    assert "probe/gdv" in lines[0]
    assert "train/loss" not in lines[0]
    expected = {"train/loss", "train/lr", "train/gradient_norm", "model/distance", "dropout/unit_rate", "dropout/path_rate"}
    assert expected <= lines[1].keys()
    measured = {"test/loss", "test/accuracy", "train_eval/loss", "train_eval/accuracy", "train_clean/loss", "train_clean/accuracy"}
    assert measured | {"probe/gdv", "probe/gde", "probe/gradient_norm", "probe/bias"} <= lines[-1].keys()
    assert lines[1]["dropout/unit_rate"] == pytest.approx(0.3 * (1 - 3 / 8))  # the rate of the step that was logged
    assert lines[-1]["dropout/unit_rate"] == 0
    assert len(list((folder / "checkpoints").glob("*.pt"))) == 1
    runs = load_runs(folder)
    assert runs.loc[0, "final/test/accuracy"] == lines[-1]["test/accuracy"]
    assert runs.loc[0, ["arm", "seed", "state"]].tolist() == ["early-0.3-50%", 0, "finished"]


def test_a_finished_run_is_skipped(config, capsys):
    first = run(config())
    before = (Path(first["folder"]) / "metrics.jsonl").stat().st_mtime_ns
    again = run(config())
    assert again["state"] == "skipped"
    assert again["folder"] == first["folder"]
    assert (Path(first["folder"]) / "metrics.jsonl").stat().st_mtime_ns == before
    assert "finished before" in capsys.readouterr().out


def test_two_runs_that_differ_only_in_schedule_see_the_same_data(config, monkeypatch):
    seen = []
    original = Trainer._train_step

    def spy(self, images, targets):
        seen[-1].append((images.clone(), targets.clone()))
        original(self, images, targets)

    monkeypatch.setattr(Trainer, "_train_step", spy)
    initial = []
    for name in ("none", "constant", "early", "late"):
        seen.append([])
        settings = config(schedule__name=name, augment__mixup=0.8, augment__cutmix=1.0, augment__smoothing=0.1)
        initial.append({k: v.clone() for k, v in scheduled_model(make_plan(settings))[0].named_parameters()})
        run(settings)
    for other, weights in zip(seen[1:], initial[1:], strict=True):
        assert_same([list(pair) for pair in seen[0]], [list(pair) for pair in other])
        for name, weight in initial[0].items():
            assert torch.equal(weight, weights[name])
    losses = {read_metrics(p)[-1]["train/loss"] for p in Path(config().out).rglob("metrics.jsonl")}
    assert len(losses) == 4


def test_the_probe_changes_nothing(config):
    with_probe = final_state(run(config())["folder"])
    without = final_state(run(config(probe__at=[]))["folder"])
    assert_same(with_probe["model"], without["model"])
    assert_same(with_probe["optimizer"], without["optimizer"])


@pytest.mark.parametrize("schedule", ["early", "late"])
@pytest.mark.parametrize("model", ["mlp", "vit_micro"])
def test_stopped_after_any_step_it_resumes_to_the_same_bits(config, schedule, model):
    sizes = {"model__hidden": None, "model__depth": 2, "model__width": 16} if model == "vit_micro" else {}
    options = {"schedule__name": schedule, "model__name": model, "trainer__accumulate": 2, **sizes}
    whole = Path(run(config(**options))["folder"])
    settings = config(out=str(Path(config().out) / "stopped"), **options)
    plan = make_plan(settings)
    for stop_at in (1, 4, 8, 9, 10, 17):
        folder = RunFolder(plan.folder)
        trainer = Trainer(plan, *scheduled_model(plan), folder, lambda step, metrics: None)
        trainer.stop = lambda trainer=trainer, stop_at=stop_at: trainer.step >= stop_at
        trainer.resume()
        with pytest.raises(Interrupted):
            trainer.train()
        # What a kill leaves behind: lines after the checkpoint, and a half-written one.
        with (plan.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99, "train/loss": 1}\n{"step": 1')
        folder.close()
    finished = Path(run(settings)["folder"])
    assert (finished / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same(final_state(finished), final_state(whole))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, monkeypatch, caplog):
    whole = Path(run(config())["folder"])
    settings = config(out=str(Path(config().out) / "damaged"), trainer__checkpoint_seconds=0.0)
    plan = make_plan(settings)
    folder = RunFolder(plan.folder)
    trainer = Trainer(plan, *scheduled_model(plan), folder, lambda step, metrics: None, lambda: trainer.step >= 12)
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.train()
    folder.close()
    newest, before = sorted((plan.folder / "checkpoints").glob("*.pt"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    monkeypatch.setattr(trainer_module.log, "propagate", True)
    assert load_checkpoint(plan.folder / "checkpoints", plan.fingerprint)["step"] == int(before.stem[5:])
    assert "is damaged" in caplog.text
    newest.write_bytes(b"")
    finished = Path(run(settings)["folder"])
    assert (finished / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_checkpoint_of_another_configuration_is_refused(config):
    one, other = Path(run(config())["folder"]), make_plan(config(seed=1)).folder
    other.mkdir(parents=True)
    (one / "checkpoints").rename(other / "checkpoints")
    with pytest.raises(TrainingFailed, match="belongs to configuration"):
        run(config(seed=1))


def test_another_environment_needs_force(config):
    settings = config()
    plan = make_plan(settings)
    folder = RunFolder(plan.folder)
    trainer = Trainer(plan, *scheduled_model(plan), folder, lambda step, metrics: None, lambda: True)
    trainer.environment = trainer.environment | {"threads": 77}
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.train()
    folder.close()
    with pytest.raises(TrainingFailed, match=r"threads 77 there.*resume=force"):
        run(settings)
    assert run(config(resume="force"))["state"] == "finished"


def test_one_process_a_folder(config):
    held = RunFolder(make_plan(config()).folder)
    with pytest.raises(ConfigError, match="another process"):
        run(config())
    held.close()
    assert run(config())["state"] == "finished"


def test_a_signal_saves_and_stops(config, monkeypatch, capsys):
    original = Trainer._train_step

    def kill_at_seven(self, images, targets):
        original(self, images, targets)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", kill_at_seven)
    with pytest.raises(Interrupted):
        run(config())
    monkeypatch.undo()
    folder = make_plan(config()).folder
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert "the same command goes on" in capsys.readouterr().out
    assert run(config())["state"] == "finished"


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(config, monkeypatch):
    original = Trainer._train_step

    def poison(self, images, targets):
        original(self, images * float("nan") if self.step == 6 else images, targets)

    monkeypatch.setattr(Trainer, "_train_step", poison)
    with pytest.raises(TrainingFailed, match="loss is nan at step 6"):
        run(config(trainer__checkpoint_seconds=0.0))
    folder = make_plan(config()).folder
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "step 6" in status["reason"]
    newest = final_state(folder)
    assert newest["step"] == 6
    assert all(v.isfinite().all() for v in newest["model"].values())


def test_a_full_disk_fails_the_run_and_keeps_the_last_checkpoint(config, monkeypatch):
    import earlydrop.training.checkpoint as module

    original = module.write_atomically

    def full(path, content):
        if path.name.startswith("step-000000009"):
            raise OSError(28, "No space left on device")
        original(path, content)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(TrainingFailed, match="No space left"):
        run(config(trainer__checkpoint_seconds=0.0))
    monkeypatch.undo()
    folder = make_plan(config()).folder
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert final_state(folder)["step"] == 8
    assert run(config())["state"] == "finished"


def test_precision_compile_optimizer_and_clipping_act(config, monkeypatch):
    base = read_metrics(Path(run(config())["folder"]) / "metrics.jsonl")
    for options in ({"trainer__precision": "bf16"}, {"optim__name": "sgd"}, {"optim__clip": 0.01}, {"augment__smoothing": 0.2},
                    {"trainer__masks": "native"}, {"schedule__shape": "cosine"}):  # fmt: skip
        other = read_metrics(Path(run(config(**options))["folder"]) / "metrics.jsonl")
        assert other[-1]["train_eval/loss"] != base[-1]["train_eval/loss"], options
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    run(config(trainer__compile=True))
    assert len(compiled) == 1


def test_accumulation_sees_the_same_images_and_gives_nearly_the_same_gradient(config):
    one, two = (
        read_metrics(Path(run(config(schedule__name="none", trainer__accumulate=k))["folder"]) / "metrics.jsonl") for k in (1, 4)
    )
    assert one[1]["train/gradient_norm"] == pytest.approx(two[1]["train/gradient_norm"], rel=1e-4)
    assert one[1]["train/loss"] == pytest.approx(two[1]["train/loss"], rel=1e-5)


def test_modes_plan_and_eval(config, capsys):
    planned = run(config(mode="plan"))
    out = capsys.readouterr().out
    assert not Path(planned["folder"]).exists()
    for word in ("fingerprint", "cutoff=9", "sites        1 driven", "estimated", "0: 0.3"):
        assert word in out
    with pytest.raises(ConfigError, match="no checkpoint"):
        run(config(mode="eval"))
    trained = run(config())
    assert run(config(mode="eval"))["test/loss"] == trained["test/loss"]


def test_the_fingerprint_is_of_what_determines_the_numbers(config):
    def fingerprint(**options):
        return make_plan(config(**options)).fingerprint

    base = fingerprint()
    same = ({"out": "elsewhere"}, {"tracking": "offline"}, {"threads": 1}, {"study": "x"}, {"label": "x"}, {"data__workers": 3},
            {"resume": "force"}, {"tags": ["a"]}, {"optim__momentum": 0.5}, {"schedule__points": "0,0"},
            {"trainer__checkpoint_seconds": 3.0}, {"trainer__steps": 18}, {"schedule__cutoff": "9"})  # fmt: skip
    for options in same:
        assert fingerprint(**options) == base, options
    other = ({"seed": 1}, {"schedule__rate": 0.2}, {"schedule__cutoff": "10"}, {"trainer__batch_size": 16}, {"trainer__log_every": 2},
             {"probe__batches": 4}, {"augment__shift": 1}, {"trainer__precision": "bf16"}, {"trainer__masks": "native"},
             {"model__attention": "fused"}, {"optim__lr": 1e-3}, {"data__train_images": 301}, {"trainer__compile": True})  # fmt: skip
    assert len({fingerprint(**options) for options in other} | {base}) == len(other) + 1
    none = fingerprint(schedule__name="none")
    assert none == fingerprint(schedule__name="none", schedule__rate=0.7, trainer__masks="native", schedule__kind="path")


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
        ({"trainer__precision": "fp16"}, "'fp16'.*float32, bf16"),
        ({"trainer__epochs": 0}, "trainer.epochs is 0"),
        ({"optim__warmup": "101%"}, "optim.warmup"),
        ({"probe__at": ["x"]}, "probe.at"),
        ({"probe__batches": 1}, "probe.batches is 1"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
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


def test_misspelt_keys_and_wrong_types():
    for values, says in (
        ({"schedul": {}}, "schedul"),
        ({"trainer": {"epochs": "many"}}, "trainer.epochs"),
        ({"seed": 1.5}, "seed"),
    ):
        with pytest.raises(ConfigError, match=says):
            config_from_dict(values)
