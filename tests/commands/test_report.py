import json

import pandas as pd
import pytest

from earlydrop.commands.report import main, report_sweep, write_report
from tests.analysis.made_up import make_run, seal


def test_unfinished_and_failed_runs_are_shown_and_left_out_of_the_means(study):
    make_run(study, "none", 3, 99.0, "failed")
    make_run(study, "none", 4, 99.0, "interrupted")
    (study / "failures" / "0-0").mkdir(parents=True)
    (study / "failures" / "0-0" / "x.json").write_text(
        json.dumps({"overrides": ["schedule.rate=2"], "reason": "rate is 2"})
    )
    table, trouble, figures, *_ = write_report(study)
    assert table.loc["none", "runs"] == "3 of 5"
    assert table.loc["none", "train_eval loss"].startswith("0.6667")
    assert len(trouble) == 3
    page = (study / "report.html").read_text()
    for text in (
        "nan at step 7",
        "interrupted at step 100",
        "schedule.rate=2: rate is 2",
        "<svg",
        "early-0.1-20%",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    assert {path.stem for path in figures} == {
        "differences",
        "drop_rate",
        "training_loss",
        "train_eval_loss",
        "test_accuracy",
        "gdv",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert pd.read_csv(study / "table.csv", index_col=0).index.tolist() == ["early-0.1-20%", "none"]


def test_a_sweep_without_any_run_prints_its_failures(tmp_path, capsys):
    (tmp_path / "failures" / "0-0").mkdir(parents=True)
    (tmp_path / "failures" / "0-0" / "x.json").write_text(
        json.dumps({"overrides": ["a=1"], "reason": "because"})
    )
    report_sweep(tmp_path)
    assert "failed: a=1: because" in capsys.readouterr().out
    (tmp_path / "failures" / "0-0" / "y.json").write_text(
        json.dumps({"overrides": ["a=2"], "reason": "because"})
    )
    report_sweep(tmp_path)
    assert capsys.readouterr().out == "failed: a=1 and 1 more: because\n"


DAMAGE = {
    "config.yaml": [None, b"", b"[1, 2]", b"a: [", b"\xff\xfe", b"model: 3\n"],
    "metrics.jsonl": [b"garbage\n", b"\n", b'{"step": 1, "x": "y"}\n', b"\xff\n", b"[]\n"],
    "status.json": [
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{",
        b'{"state": "finishee"}',
        b'{"stbte": "finished"}',
        b'{"state": "finished", "step": 100, "total_steps": 900}',
    ],
    "provenance.json": [None, b"[]", b"{"],
}


def test_damaged_runs_are_named_and_left_out(study):
    """Each run is damaged in a way of its own; one report names all of them."""
    ways = [(file, content) for file, contents in DAMAGE.items() for content in contents]
    for seed, (file, content) in enumerate(ways, 100):
        make_run(study, "none", seed, 99.0)
        damaged = study / f"none-seed{seed}" / file
        damaged.unlink()
        if content is not None:
            damaged.write_bytes(content)
    table, trouble, *_ = write_report(study)
    assert table.loc["none", "runs"] == "3"
    assert table.loc["none", "train_eval loss"].startswith("0.6667")
    assert len(trouble) == len(ways) == 21
    page = (study / "report.html").read_text()
    for seed, (file, content) in enumerate(ways, 100):
        (line,) = [line for line in trouble if f"none-seed{seed}/{file}" in line]
        assert line.startswith("left out: "), content
        assert f"none-seed{seed}/{file}" in page, content


def test_a_run_without_a_status_is_named(study):
    (study / "none-seed0" / "status.json").unlink()
    table, trouble, *_ = write_report(study)
    assert table.loc["none", "runs"] == "2 of 3"
    assert trouble == ["unknown, since it has no status.json: none-seed0"]


def test_what_harms_no_number_is_passed_over(study):
    timing = study / "none-seed0" / "timing.jsonl"
    timing.write_bytes(b'{"step": 5, "imag\n' + timing.read_bytes() + b'{"step')
    metrics = study / "none-seed1" / "metrics.jsonl"
    metrics.write_bytes(
        metrics.read_bytes()
        .replace(b'"probe/gdv": 0.7', b'"probe/gdv": NaN')
        .replace(b"0.1,", b"NaN,")
        .replace(b"0.3,", b"NaN,")
    )
    table, trouble, *_ = write_report(study)
    assert table.loc["none", "runs"] == "3"
    assert trouble == []


def test_a_folder_of_damaged_runs_only_is_one_line(study, monkeypatch):
    for path in study.glob("*/config.yaml"):
        path.write_text("")
    monkeypatch.setattr("sys.argv", ["earlydrop-report", str(study)])
    with pytest.raises(SystemExit, match=r"error: .*config\.yaml is damaged"):
        main()


def test_labels_are_text_everywhere(study):
    names = ["$x^{$", "_hidden", "a|b", "<b>", "x" * 300]
    for i, name in enumerate(names):
        make_run(study, "none", 10 + i, 0.5, label=name, optim={"lr": 0.1 + i})
    table, _, figures, *_ = write_report(study)
    assert {"$x^{$", "_hidden", "a|b", "<b>"} < {name.partition(" ·")[0] for name in table.index}
    assert (
        len(
            {
                line.count("|") - line.count(r"\|")
                for line in (study / "table.md").read_text().splitlines()[:3]
            }
        )
        == 1
    )
    assert "&lt;b&gt;" in (study / "report.html").read_text()
    assert len(figures) == 6


def test_a_changed_record_of_a_finished_run_is_named(study):
    folder = study / "none-seed0"
    seal(folder)
    assert write_report(study)[1] == []
    (folder / "metrics.jsonl").write_bytes(
        (folder / "metrics.jsonl").read_bytes().replace(b"0.5", b"0.4")
    )
    assert write_report(study)[1] == [
        ("changed after the run finished, as its status.json shows: metrics.jsonl of none-seed0")
    ]
