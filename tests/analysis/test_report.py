import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from earlydrop.analysis import load_history, load_runs
from earlydrop.analysis.cite import command
from earlydrop.analysis.figures import interval
from earlydrop.analysis.report import paired_table, report_sweep, summary_table, to_markdown, write_report
from earlydrop.analysis.reproduce import first_difference
from earlydrop.analysis.runs import tell_apart


def make_run(study: Path, arm: str, seed: int, loss: float, state: str = "finished") -> None:
    folder = study / f"{arm}-seed{seed}-abc{seed}"
    folder.mkdir(parents=True)
    config = {
        "study": study.name,
        "seed": seed,
        "tracking": "off",
        "project": "p",
        "model": {"name": "mlp"},
        "data": {"name": "toy"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.json").write_text(json.dumps({"arm": arm, "fingerprint": f"abc{seed}"}))
    reason = {"reason": "the training loss is nan at step 7"} if state == "failed" else {}
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 100, "total_steps": 100} | reason))
    (folder / "timing.jsonl").write_text(
        '{"step": 50, "images_per_second": 10, "seconds": 1}\n{"step": 100, "images_per_second": 30, "seconds": 2}\n'
    )
    lines = [
        {"step": 0, "probe/gdv": 9.0},
        {"step": 10, "train/loss": 2.0, "probe/gdv": 0.1, "dropout/unit_rate": 0.1, "dropout/path_rate": 0.0},
        {"step": 20, "train/loss": 1.5, "probe/gdv": 0.3, "dropout/unit_rate": 0.1, "dropout/path_rate": 0.0},
        {"step": 100, "train/loss": 1.0, "train_eval/loss": loss, "test/accuracy": 0.5, "probe/gdv": 0.7},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')


@pytest.fixture
def study(tmp_path):
    for arm, shift in (("none", 0.0), ("early-0.1-20%", -0.1)):
        for seed, loss in enumerate((0.5, 0.6, 0.9)):
            make_run(tmp_path / "study", arm, seed, loss + shift)
    return tmp_path / "study"


def test_runs_as_a_data_frame(study):
    runs = load_runs(study)
    assert len(runs) == 6
    row = runs[(runs["arm"] == "none") & (runs["seed"] == 1)].iloc[0]
    assert row["final/train_eval/loss"] == 0.6
    assert row["early/probe/gdv"] == pytest.approx(0.2)  # steps 10 and 20, not 0
    assert row["config/model.name"] == "mlp"
    assert row["seconds"] == 2
    assert row["images_per_second"] == 20
    assert load_history(row["folder"])["step"].tolist() == [0, 10, 20, 100]  # the half-written line is left out
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_runs(study / "nothing")
    (study / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        load_runs(study / "empty")


def test_table_of_means_with_students_interval(study):
    table = summary_table(load_runs(study))
    half = scipy.stats.t.interval(0.95, 2, loc=0, scale=scipy.stats.sem([0.5, 0.6, 0.9]))[1]
    assert table.loc["none", "train_eval loss"] == f"{np.mean([0.5, 0.6, 0.9]):.4f} ± {half:.4f}"
    assert interval(np.array([0.5, 0.6, 0.9])) == pytest.approx((2 / 3, half))
    assert np.isnan(interval(np.array([1.0]))[1])
    assert to_markdown(table).splitlines()[2].startswith("| early-0.1-20% | 3 ")


def test_unfinished_and_failed_runs_are_shown_and_left_out_of_the_means(study):
    make_run(study, "none", 3, 99.0, "failed")
    make_run(study, "none", 4, 99.0, "interrupted")
    (study / "failures").mkdir()
    (study / "failures" / "x.json").write_text(json.dumps({"overrides": ["schedule.rate=2"], "reason": "rate is 2"}))
    table, trouble, figures = write_report(study)
    assert table.loc["none", "runs"] == "3 of 5"
    assert table.loc["none", "train_eval loss"].startswith("0.6667")
    assert len(trouble) == 3
    page = (study / "report.html").read_text()
    for text in (
        "nan at step 7",
        "interrupted at step 100",
        "schedule.rate=2: rate is 2",
        "data:image/png;base64",
        "early-0.1-20%",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    assert {path.stem for path in figures} == {"drop_rate", "training_loss", "train_eval_loss", "test_accuracy", "gdv"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert pd.read_csv(study / "table.csv", index_col=0).index.tolist() == ["early-0.1-20%", "none"]


def test_a_sweep_without_any_run_prints_its_failures(tmp_path, capsys):
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "x.json").write_text(json.dumps({"overrides": ["a=1"], "reason": "because"}))
    report_sweep(tmp_path)
    assert "failed: a=1: because" in capsys.readouterr().out


def test_where_two_records_part():
    a = [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]
    assert first_difference(a, [dict(line) for line in a]) is None
    assert first_difference(a, [a[0], {"step": 2, "x": 2.5}]) == "step 2, x: 2.0 there, 2.5 here"
    assert first_difference(a, a[:1]) == "2 lines there, 1 here"


def test_the_command_that_reproduces_a_run():
    import dataclasses

    from earlydrop.training.run import config_from_dict

    settings = config_from_dict(
        {"seed": 3, "schedule": {"name": "piecewise", "points": "0,0@0.2,0.5@0.5,0"}, "probe": {"at": ["0%", "5ep"]}}
    )
    line = command(dataclasses.asdict(settings))
    for part in ("seed=3", "schedule.name=piecewise", "0,0@0.2,0.5@0.5,0", "probe.at=[0%,5ep]"):
        assert part in line
    assert "out=" not in line


def test_the_workspace_serialises_without_a_network():
    pytest.importorskip("wandb_workspaces")
    script = Path(__file__).parents[2] / "scripts" / "wandb_workspace.py"
    done = subprocess.run([sys.executable, str(script), "--entity", "someone"], capture_output=True, text=True, check=True)
    workspace, report = json.loads(done.stdout)
    for made in (workspace, report):
        text = json.dumps(made)
        for metric in (
            "train_eval/loss",
            "test/accuracy",
            "dropout/unit_rate",
            "probe/gradient_norm",
            "model/distance",
            "probe/gdv",
            "probe/gde",
        ):
            assert metric in text
        assert "stddev" in text
        assert "trainer/step" in text


def test_arms_differ_by_every_setting_that_varies(study):
    runs = load_runs(study)
    assert set(tell_apart(runs)["arm"]) == {"none", "early-0.1-20%"}
    runs["config/optim.lr"] = [1e-3 if seed == 0 else 2e-3 for seed in runs["seed"]]
    runs["config/model.dropout"] = [
        None if arm == "none" else "shared" if seed else "gaussian" for arm, seed in zip(runs["arm"], runs["seed"], strict=True)
    ]
    runs["config/data.train_images"] = np.nan
    arms = set(tell_apart(runs)["arm"])
    assert {"none · optim.lr=0.001", "none · optim.lr=0.002"} < arms
    assert {"early-0.1-20% · model.dropout=gaussian, optim.lr=0.001"} < arms
    runs["config/optim.max_norm"] = [None if seed == 0 else 3.0 for seed in runs["seed"]]
    assert "none · optim.lr=0.001" in set(tell_apart(runs)["arm"])  # what is not used is not named


def test_paired_differences_against_none(study):
    table = paired_table(tell_apart(load_runs(study)))
    row = table.loc["early-0.1-20% minus none"]
    assert row["seeds"] == "3"
    assert row["train_eval loss"] == "-0.1000 ± 0.0000"
    write_report(study)
    assert "early-0.1-20% minus none" in (study / "table.md").read_text()
    assert "Paired differences" in (study / "report.html").read_text()


def test_one_seed_gives_no_paired_table(study):
    runs = load_runs(study)
    assert paired_table(runs[runs["seed"] == 0]).empty


def test_runs_made_before_a_key_existed_have_its_default(study):
    (path, *_) = study.glob("none-seed0-*/config.yaml")
    config = yaml.safe_load(path.read_text()) | {"trainer": {"stop_patience": 3}}
    path.write_text(yaml.safe_dump(config))
    assert set(tell_apart(load_runs(study))["arm"]) == {"none", "early-0.1-20%"}


def test_a_seed_run_twice_counts_once(study):
    runs = load_runs(study)
    twice = pd.concat([runs, runs])
    assert summary_table(twice).loc["none", "train_eval loss"] == summary_table(runs).loc["none", "train_eval loss"]
