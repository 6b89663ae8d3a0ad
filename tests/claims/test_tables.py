import dataclasses

import pandas as pd
import pytest

from earlydrop.claims.judge import judge_all
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.summaries import Summaries, read_summaries
from earlydrop.claims.tables import short_table
from earlydrop.claims.write import write_findings
from earlydrop.training.compose import results_folder
from tests.claims.made_up import ARMS, LOSS, declaration, made_up, study

DYNAMICS = {"data.name": "fashion_mnist_mini"} | dict(
    load_declarations(claims_folder())[0].studies["dynamics"].config
)


def test_findings_from_summaries(tmp_path, monkeypatch):
    one = made_up(
        "dynamics",
        config=DYNAMICS,
        arms=("none", "constant-0.1"),
        seeds=[*range(3), *range(100, 105)],
    )
    one.history["probe/gdv"] = one.history["train_eval/loss"]
    one.write(tmp_path)
    table, labels, figures = write_findings(tmp_path, tmp_path)
    assert table.loc["F3b", "verdict"] == "**opposite**"
    assert table.loc["F1", "verdict"] == "not run"
    assert table.loc["F3b", "n"] == "5"
    assert labels["dynamics"].startswith("overfit (claimed for underfit)")
    assert {path.name for path in figures} >= {
        "dynamics-probe-gdv.png",
        "dynamics-test-accuracy.png",
    }
    assert 'src="figures/dynamics-probe-gdv.png"' in (tmp_path / "findings.html").read_text()
    prints = pd.read_csv(tmp_path / "fingerprints.csv", index_col="what")["fingerprints"]
    assert prints["dynamics first F3b"].startswith("dynamics-constant-0.1-100")
    assert len(prints["figures/dynamics-probe-gdv.png"].split()) == 10  # not the label's seeds
    text = (tmp_path / "table.md").read_text()
    assert "two tests of every claim" in text
    assert "- dynamics: overfit (claimed for underfit)" in text
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_findings(tmp_path / "nowhere", tmp_path)


def test_what_a_reader_has_to_know_stands_below_the_table(tmp_path, monkeypatch):
    noted = dataclasses.replace(study(first=range(10, 16)), note="seed 12 is strange")
    monkeypatch.setattr(
        "earlydrop.claims.write.load_declarations",
        lambda folder: [declaration(LOSS, studies=[noted])],
    )
    made_up().write(tmp_path)
    write_findings(tmp_path, tmp_path, "classic")
    assert "\nNotes:\n\n- toy: seed 12 is strange\n" in (tmp_path / "table.md").read_text()
    assert "seed 12 is strange" in (tmp_path / "findings.html").read_text()


def test_a_later_round_takes_up_some_claims_and_stands_beside_the_first():
    late = dataclasses.replace(
        LOSS, id="A", arm=ARMS["late"], metric="test/accuracy", direction="higher"
    )
    studies = [study(first=range(10, 16), more=range(20, 25))]
    summaries = made_up(seeds=[*range(10, 16), *range(20, 25)])
    declared = declaration(LOSS, late, studies=studies)
    findings = judge_all([declared], summaries)
    assert [(f.round, f.claim.id, f.verdict) for f in findings] == [
        ("first", "L", "reproduced"), ("first", "A", "not run"), ("more", "L", "reproduced"),
    ]  # fmt: skip
    short = short_table([declared], findings)
    assert short.loc["L", "elsewhere"] == "more: reproduced (n = 5)"
    assert short.loc["A", "elsewhere"] == ""


def test_summaries_are_added_to_summaries(tmp_path):
    """From a folder of summaries as from one of runs: nothing of either is lost."""
    found = read_summaries(results_folder() / "findings")
    for name in ("overfitting", "underfitting-mlp"):
        (tmp_path / name).mkdir()
        Summaries(*(table[table["study"] == name] for table in (found.runs, found.history))).write(
            tmp_path / name
        )
    write_findings(tmp_path / "overfitting", tmp_path / "underfitting-mlp", add=True)
    assert set(read_summaries(tmp_path / "underfitting-mlp").runs["study"]) == {
        "overfitting",
        "underfitting-mlp",
    }
    with pytest.raises(FileNotFoundError, match=r"has no runs\.csv to add to"):
        write_findings(tmp_path / "overfitting", tmp_path / "none", add=True)


def test_summaries_stay_if_no_new_run_has_a_declared_seed(tmp_path, monkeypatch):
    options = {"config": DYNAMICS, "arms": ("none", "constant-0.1")}
    label = made_up("dynamics", seeds=range(3), **options)
    made_up("dynamics", seeds=range(100, 105), **options).write(tmp_path)
    before = (tmp_path / "runs.csv").read_bytes()
    monkeypatch.setattr("earlydrop.claims.write.find_runs", lambda folder: ["a run"])
    monkeypatch.setattr("earlydrop.claims.write.collect", lambda folder, studies: label)
    with pytest.raises(FileNotFoundError, match="choose another set with --claims"):
        write_findings(tmp_path / "runs", tmp_path)
    assert (tmp_path / "runs.csv").read_bytes() == before
