"""What a report says of how its runs were made."""

import json

from earlydrop.analysis import load_runs
from earlydrop.analysis.facts import arms_table, facts, run_rows


def record(study, **values):
    for file in study.rglob("provenance.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


def said(study):
    return dict(facts(load_runs(study), study))


def test_what_the_runs_recorded_is_said(study):
    record(
        study,
        commit="f9f314dfe7f6a9d58fdfdcc0367003fe489da5c4",
        diff="+",
        earlydrop="0.1.0",
        began="2026-11-27T17:58:21+00:00",
        processor="AMD EPYC",
        cpu_count=2,
        environment={"device": "cpu x86_64", "torch": "2.14"},
        data={"classes": 10, "images": {"train": 1000, "test": 200}, "steps_per_epoch": 20},
        command=["/usr/bin/earlydrop", "-m", "schedule=none,early", "seed=0,1,2"],
    )
    assert said(study) == {
        "runs": ["6: 2 arms, 3 seeds"],
        "model": ["mlp"],
        "data": ["toy (1,000 and 200 examples, 10 classes)"],
        "length": ["100 steps"],
        "machine": ["AMD EPYC, 2 CPU threads, cpu x86_64, torch 2.14"],
        "time": ["12 s of training in all, 2 s per run (median); begun 2026-11-27 17:58 UTC"],
        "speed": ["20 images/s in a typical run"],
        "commit": ["f9f314dfe7f6 (earlydrop 0.1.0, with uncommitted changes)"],
        "command": ["earlydrop -m schedule=none,early seed=0,1,2"],
    }


def test_the_speed_is_the_median_run_and_the_memory_the_largest(study):
    """Two lines a run, by hand: medians over lines and runs, the largest memory of all."""
    for i, file in enumerate(sorted(study.rglob("timing.jsonl"))):
        lines = [
            {"step": 50, "images_per_second": 100 + i, "seconds": 1, "data_wait": 0.02},
            {"step": 100, "images_per_second": 300 + i, "seconds": 2, "data_wait": 0.04},
        ]
        lines[1] |= {"mfu": 0.4, "peak_memory": (i + 1) * 10**9}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert said(study)["speed"] == [
        "202 images/s in a typical run; 3.0% of the time spent waiting for data; "
        "40.0% model FLOP utilisation; at most 6.0 GB of tensors on a GPU"
    ]
    for file in study.rglob("timing.jsonl"):
        file.unlink()
    assert said(study)["speed"] == ["not recorded"]


def test_runs_without_a_record_are_no_error(study):
    found = said(study)
    assert found["machine"] == found["commit"] == ["not recorded"]
    assert found["data"] == ["toy"]
    assert found["command"] == [f"earlydrop-cite {study}"]
    record(study, data=3, environment=None, command=["/x/earlydrop/__main__.py", "seed=1"])
    assert said(study)["command"] == ["python -m earlydrop seed=1"]


def test_a_resumed_runs_time_is_that_of_all_its_processes(study):
    for file in study.rglob("timing.jsonl"):
        seconds = [50, 100, 1, 3]  # of the first process, then of the second
        lines = [{"step": s, "images_per_second": 9, "seconds": s} for s in seconds]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert said(study)["time"] == ["10 min of training in all, 2 min per run (median)"]


def test_a_script_in_a_folder_named_earlydrop_is_not_the_command(study):
    record(study, command=["/x/earlydrop/sweep.py", "3"])
    assert said(study)["command"] == [f"earlydrop-cite {study}"]


def test_the_name_of_a_gpu_stands_once(study):
    record(study, processor="NVIDIA H200", environment={"device": "cuda NVIDIA H200"})
    assert said(study)["machine"] == ["cuda NVIDIA H200"]


def test_the_table_of_arms_has_the_settings_that_differ(study):
    table = arms_table(load_runs(study))
    assert table.loc["none", "schedule.name"] == "none"
    assert table.loc["early-0.1-20%", "schedule.rate"] == "0.1"
    assert table.loc["none", "schedule.rate"] == "-"
    assert "optim.lr" not in table
    assert next(iter(table)) == "runs"


def test_runs_have_their_addresses(study):
    (study / "none-seed0" / "wandb").mkdir()
    (study / "none-seed0" / "wandb" / "url.txt").write_text("https://wandb.ai/me/p/runs/x\n")
    (study / "none-seed1" / "wandb" / "offline-run-x").mkdir(parents=True)
    (study / "none-seed2" / "wandb").mkdir()
    (study / "none-seed2" / "wandb" / "url.txt").write_text("javascript:alert(1)\n")
    rows = {row["folder"]: row for row in run_rows(load_runs(study), study)}
    assert rows["none-seed2"]["tracked"] is None
    assert rows["none-seed0"]["tracked"] == "https://wandb.ai/me/p/runs/x"
    assert (rows["none-seed1"]["tracked"], rows["none-seed1"]["offline"]) == (None, True)
    (alone,) = run_rows(load_runs(study / "none-seed2"), study / "none-seed2")
    assert alone["folder"] == "."
