import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from earlydrop.analysis import load_runs
from earlydrop.training import run as run_module
from earlydrop.training import trainer as trainer_module
from earlydrop.training.compose import config_from_dict
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.folder import RunFolder, changed_files, read_metrics
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.states import assert_same, final_state


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
    expected = {
        "train/loss",
        "train/lr",
        "train/gradient_norm",
        "model/distance",
        "dropout/unit_rate",
        "dropout/path_rate",
    }
    assert expected <= lines[1].keys()
    measured = {
        "test/loss",
        "test/accuracy",
        "train_eval/loss",
        "train_eval/accuracy",
        "train_clean/loss",
        "train_clean/accuracy",
    }
    assert (
        measured | {"probe/gdv", "probe/gde", "probe/gradient_norm", "probe/bias"}
        <= lines[-1].keys()
    )
    assert lines[1]["dropout/unit_rate"] == pytest.approx(
        0.3 * (1 - 3 / 8)
    )  # the rate of the step that was logged
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


@pytest.mark.parametrize("schedule", ["early", "late"])
@pytest.mark.parametrize("model", ["mlp", "vit_micro"])
def test_stopped_after_any_step_it_resumes_to_the_same_bits(config, schedule, model):
    sizes = (
        {"model__hidden": None, "model__depth": 2, "model__width": 16}
        if model == "vit_micro"
        else {}
    )
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


def test_another_environment_needs_force(config):
    settings = config()
    plan = make_plan(settings)
    folder = RunFolder(plan.folder)
    trainer = Trainer(
        plan, *scheduled_model(plan), folder, lambda step, metrics: None, lambda: True
    )
    trainer.environment = trainer.environment | {"threads": 77}
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.train()
    folder.write_status("interrupted", trainer.step, plan.total_steps)
    folder.close()
    before = (plan.folder / "status.json").read_bytes()
    with pytest.raises(ConfigError, match=r"threads 77 there.*resume=force"):
        run(settings)
    assert (plan.folder / "status.json").read_bytes() == before
    assert run(config(resume="force"))["state"] == "finished"


def test_a_signal_saves_and_stops(config, monkeypatch, capsys):
    original = Trainer.train_step

    def kill_at_seven(self, parts):
        original(self, parts)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", kill_at_seven)
    with pytest.raises(Interrupted):
        run(config())
    monkeypatch.undo()
    folder = make_plan(config()).folder
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert "run the same command to resume" in capsys.readouterr().out
    assert run(config())["state"] == "finished"


def test_modes_plan_and_eval(config, capsys):
    planned = run(config(mode="plan"))
    out = capsys.readouterr().out
    assert not Path(planned["folder"]).exists()
    for word in ("fingerprint", "cutoff=9", "sites        1 of 1 driven", "estimated", "0: 0.3"):
        assert word in out
    with pytest.raises(ConfigError, match="no checkpoint"):
        run(config(mode="eval"))
    trained = run(config())
    assert run(config(mode="eval"))["test/loss"] == trained["test/loss"]


def test_failed_runs_say_so(config):
    with pytest.raises(TrainingFailed):
        run(config(optim__name="sgd", optim__lr=1e20, optim__warmup="0%"))


def stop_at(monkeypatch, step):
    """Ask the run to stop as it comes to a step, counted from 0."""
    original = Trainer.train_step

    def train_step(self, parts):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, parts)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_metric_that_is_not_finite_fails_the_run(config, monkeypatch):
    monkeypatch.setattr(
        trainer_module, "evaluate_all", lambda *_, **__: {"test/loss": float("nan")}
    )
    with pytest.raises(TrainingFailed, match="test/loss is nan after step 9"):
        run(config(probe__at=[]))
    assert (
        json.loads((make_plan(config(probe__at=[])).folder / "status.json").read_text())["state"]
        == "failed"
    )


def test_a_record_changed_at_equal_size_is_not_gone_on_from(config, monkeypatch):
    settings = config(trainer__checkpoint_seconds=0.0)
    stop_at(monkeypatch, 9)
    with pytest.raises(Interrupted):
        run(settings)
    monkeypatch.undo()
    path = make_plan(settings).folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"4", b"5", 1))
    with pytest.raises(
        ConfigError,
        match=r"metrics\.jsonl was changed after its checkpoint was written.*resume=never",
    ):
        run(settings)
    settings.resume = "never"
    assert run(settings)["state"] == "finished"


def test_a_stop_asked_for_in_the_last_evaluation_is_heard(config, monkeypatch):
    original = trainer_module.evaluate_all

    def evaluate(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(trainer_module, "evaluate_all", evaluate)
    settings = config(trainer__eval_every="100%")
    with pytest.raises(Interrupted):
        run(settings)
    assert (
        json.loads((make_plan(settings).folder / "status.json").read_text())["state"] == "finished"
    )


def test_starting_over_never_looks_finished(config, monkeypatch):
    settings = config()
    folder = Path(run(settings)["folder"])
    settings.resume = "never"
    monkeypatch.setattr(
        run_module, "write_provenance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    assert not (folder / "status.json").exists()
    monkeypatch.undo()
    settings.resume = "auto"
    assert run(settings)["state"] == "finished"
    assert changed_files(folder) == []


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b""])
def test_a_damaged_status_is_gone_on_from(config, content):
    settings = config()
    folder = Path(run(settings)["folder"])
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "status.json").write_bytes(content)
    assert run(settings)["state"] == "finished"
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_half_line_of_timing_is_cut_off(config, monkeypatch):
    settings = config(trainer__checkpoint_seconds=0.0)
    stop_at(monkeypatch, 9)
    with pytest.raises(Interrupted):
        run(settings)
    monkeypatch.undo()
    timing = make_plan(settings).folder / "timing.jsonl"
    timing.write_bytes(timing.read_bytes() + b'{"step": 12, "imag')
    run(settings)
    assert all(json.loads(line) for line in timing.read_text().splitlines())
    assert len(load_runs(settings.out)) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model__name": "mixer_s32_224", "model__hidden": None}, "'mixer_s32_224': it cannot"),
        (
            {"model__name": "convnext_femto", "model__hidden": None, "schedule__kind": "path"},
            "'convnext_femto': it cannot take 28-pixel images",
        ),
        ({"device": "meta"}, "device=meta is not available on this machine"),
        ({"threads": 100_000}, "threads is 100000: expected more than 0, and at most"),
        ({"optim__min_lr": 1.0}, "optim.min_lr is 1: expected at most optim.lr"),
        ({"study": "../../x"}, "study is '../../x': expected one plain name"),
        ({"label": "a/b"}, "label is 'a/b': expected one plain name"),
        ({"out": ""}, "out is ''"),
    ],
)
def test_what_would_fail_later_is_refused_before_the_folder(config, options, says):
    with pytest.raises(ConfigError, match=says):
        run(config(**options))
    assert not Path(config().out).exists()


def test_a_home_folder_is_a_home_folder(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_plan(config(out="~/x")).folder.is_relative_to(tmp_path / "x")
