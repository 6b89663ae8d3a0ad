"""Trackers beside W&B: what they wrote, read back with their own libraries."""

import csv
import os
import signal

import pytest

from earlydrop.training.endings import Interrupted
from earlydrop.training.fields import ConfigError
from earlydrop.training.record.folder import read_metrics, read_timing
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer


def settings(config, backend, **more):
    return config(**{"tracking": {"backend": backend}, "probe__at": [], **more})


def lines(folder):
    return (
        read_metrics(f"{folder}/metrics.jsonl")
        if isinstance(folder, str)
        else read_metrics(folder / "metrics.jsonl")
    )


def from_csv(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    with (folder / "summary.csv").open(newline="") as file:
        summary = {row["name"]: row["value"] for row in csv.DictReader(file)}
    return {
        (int(row["step"]), name): value
        for row in rows
        for name, value in row.items()
        if name != "step"
    }, summary


def from_tensorboard(folder):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    values, summary = {}, {}
    for name in found.Tags()["scalars"]:
        for event in found.Scalars(name):
            (summary if name.startswith(("final/", "best/")) else values)[
                name if name.startswith(("final/", "best/")) else (event.step, name)
            ] = event.value
    (state,) = [
        event.tensor_proto.string_val[0].decode() for event in found.Tensors("state/text_summary")
    ]
    return values, summary | {"state": state}


def from_mlflow(folder):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(folder.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("earlydrop")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == folder.name.rpartition("-")[0]
    assert found.info.status == "FINISHED"
    assert found.data.params["schedule.rate"] == "0.3"
    values, summary = {}, {}
    for name in found.data.metrics:
        for each in client.get_metric_history(found.info.run_id, name):
            if name.startswith(("final/", "best/")):
                summary[name] = each.value
            else:
                values[(each.step, name)] = each.value
    return values, summary | {"state": found.data.tags["state"]}


READ = {"csv": from_csv, "tensorboard": from_tensorboard, "mlflow": from_mlflow}


def check(folder, backend):
    values, summary = READ[backend](folder)
    expected = {
        (line["step"], name): value
        for line in lines(folder)
        for name, value in line.items()
        if name != "step"
    }
    for line in read_timing(folder / "timing.jsonl"):
        for name in line.keys() - {"step"}:
            expected[line["step"], f"timing/{name}"] = line[name]
    assert values.keys() == expected.keys()
    assert all(
        values[key] == pytest.approx(expected[key], rel=1e-6) for key in expected
    )  # TensorBoard has 32 bits
    assert summary["state"] == "finished"
    last = [line for line in lines(folder) if "test/loss" in line][-1]
    assert float(summary["final/test/loss"]) == pytest.approx(last["test/loss"], rel=1e-6)


@pytest.mark.parametrize("backend", list(READ))
def test_what_a_tracker_wrote_is_the_runs_record(backend, config):
    from pathlib import Path

    if backend != "csv":
        pytest.importorskip(backend)
    done = run(settings(config, backend))
    folder = Path(done["folder"])
    check(folder, backend)
    assert not (folder / "wandb").exists()


@pytest.mark.parametrize("backend", list(READ))
def test_a_run_that_goes_on_is_whole_in_its_tracker(backend, config, monkeypatch):
    if backend != "csv":
        pytest.importorskip(backend)
    original = Trainer.train_step

    def train_step(self, parts):
        original(self, parts)
        if self.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(Interrupted):
        run(settings(config, backend))
    monkeypatch.setattr(Trainer, "train_step", original)
    from pathlib import Path

    check(Path(run(settings(config, backend))["folder"]), backend)


def test_a_tracker_that_cannot_be_used_is_refused_before_a_folder_is_made(
    config, monkeypatch, tmp_path
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        ConfigError,
        match=r"'csv', tracking is online: it writes files on this machine and sends nothing; use",
    ):
        run(settings(config, "csv", tracking__mode="online"))
    with pytest.raises(ConfigError, match=r"expected one of wandb, tensorboard, csv, mlflow"):
        run(settings(config, "tensorbord"))
    monkeypatch.setattr("earlydrop.training.checks.missing", lambda backend: True)
    with pytest.raises(
        ConfigError, match=r"'mlflow': mlflow is not installed; pip install 'earlydrop\[mlflow\]'"
    ):
        run(settings(config, "mlflow"))
    assert run(settings(config, "mlflow", tracking__mode="off"))["state"] == "finished"
    monkeypatch.setattr("earlydrop.training.checks.missing", lambda backend: False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        run(settings(config, "mlflow", tracking__mode="online"))


def test_a_tracker_that_fails_costs_no_run(config, monkeypatch, capfd):
    monkeypatch.setattr("earlydrop.training.record.trackers.CsvRun.log", lambda *_, **__: 1 / 0)
    assert run(settings(config, "csv"))["state"] == "finished"
    told = capfd.readouterr().err
    assert "tracking failed (division by zero): going on without it; the files in the" in told


def test_one_word_for_tracking_is_read_as_before(config):
    assert config(tracking="online").tracking.mode == "online"
    assert config(tracking=False).tracking.mode == "off"  # YAML's reading of off
    assert config(tracking={"mode": "offline"}).tracking.mode == "offline"
