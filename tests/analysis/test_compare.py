import numpy as np
import pandas as pd
import pytest
import scipy.stats

from earlydrop.analysis import load_runs
from earlydrop.analysis.compare import paired_table, summary_table
from earlydrop.analysis.page import to_markdown
from earlydrop.analysis.stats import interval
from earlydrop.commands.report import write_report
from tests.analysis.made_up import make_run


def test_table_of_means_with_students_interval(study):
    table = summary_table(load_runs(study))
    half = scipy.stats.t.interval(0.95, 2, loc=0, scale=scipy.stats.sem([0.5, 0.6, 0.9]))[1]
    assert table.loc["none", "train_eval loss"] == f"{np.mean([0.5, 0.6, 0.9]):.4f} ± {half:.4f}"
    assert interval(np.array([0.5, 0.6, 0.9])) == pytest.approx((2 / 3, half))
    assert np.isnan(interval(np.array([1.0]))[1])
    assert to_markdown(table).splitlines()[2].startswith("| early-0.1-20% | 3 ")


def test_paired_differences_against_none(study):
    table = paired_table(load_runs(study))
    row = table.loc["early-0.1-20% minus none"]
    assert row["seeds"] == "3"
    assert row["train_eval loss"] == "-0.1000 ± 0.0000"
    write_report(study)
    assert "early-0.1-20% minus none" in (study / "table.md").read_text()
    assert "Paired differences" in (study / "report.html").read_text()


def test_one_seed_gives_no_paired_table(study):
    runs = load_runs(study)
    assert paired_table(runs[runs["seed"] == 0]).empty


def test_a_seed_run_twice_counts_once(study):
    runs = load_runs(study)
    twice = pd.concat([runs, runs])
    assert (
        summary_table(twice).loc["none", "train_eval loss"]
        == summary_table(runs).loc["none", "train_eval loss"]
    )


def test_two_runs_that_differ_only_in_what_their_name_leaves_out_are_two_rows(study):
    make_run(
        study,
        "early-0.1-20%",
        0,
        0.3,
        schedule={"name": "early", "rate": 0.1 + 1e-9, "cutoff": "20%"},
    )
    make_run(
        study, "none", 0, 0.3, schedule={"name": "late", "rate": 0.1, "cutoff": "20%"}, label="mine"
    )
    make_run(
        study, "none", 1, 0.3, schedule={"name": "ramp", "rate": 0.1, "cutoff": "20%"}, label="mine"
    )
    runs = load_runs(study)
    table = summary_table(runs)
    assert runs.groupby("arm")["settings"].nunique().max() == 1
    assert table.loc["early-0.1-20% (schedule.rate=0.100000001)", "runs"] == "1"
    assert table.loc["early-0.1-20% (schedule.rate=0.1)", "runs"] == "3"
    assert {"mine (schedule.name=late)", "mine (schedule.name=ramp)"} < set(table.index)


def test_runs_of_another_configuration_change_no_other_rows(study):
    before = summary_table(load_runs(study))
    for seed in range(3):
        make_run(study, "none", seed, 0.3, optim={"lr": 0.5})
    after = summary_table(load_runs(study))
    assert (
        after.loc["none · optim.lr=0.002", "train_eval loss"]
        == before.loc["none", "train_eval loss"]
    )
    paired = paired_table(load_runs(study))
    assert list(paired.index) == ["early-0.1-20% · optim.lr=0.002 minus none"]


def test_studies_side_by_side_keep_their_arms_apart(study, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "other", "none", seed, 0.1, model={"name": "vit_micro"})
        make_run(tmp_path / "other", "early-0.1-20%", seed, 0.4, model={"name": "vit_micro"})
    table = write_report(tmp_path).table
    assert set(table.index) == {
        "other: none",
        "other: early-0.1-20%",
        "study: none",
        "study: early-0.1-20%",
    }
    assert table.loc["study: none", "runs"] == "3"
    text = (tmp_path / "table.md").read_text()
    assert "other: early-0.1-20% minus none" in text
    assert "+0.3000" in text


def test_a_measure_of_somebodys_own_has_its_column_and_figure(study):
    for number, run in enumerate(sorted(path for path in study.iterdir() if path.is_dir())):
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            text.replace(
                '"probe/gdv": 0.1', f'"probe/gdv": 0.1, "probe/spread": {number}, "probe/../x": 1'
            )
        )
    report = write_report(study)
    assert report.table.loc["none", "early spread"].startswith("4.0000")
    assert {path.name for path in report.figures} >= {"probe_spread.png", "gdv.png"}
    assert not any("x" in heading.split("/") for heading in report.table)
