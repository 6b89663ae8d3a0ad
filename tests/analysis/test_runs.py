import pytest
import yaml

from earlydrop.analysis import load_history, load_runs
from earlydrop.analysis.compare import problems
from earlydrop.analysis.facts import run_rows


def test_runs_as_a_data_frame(study):
    runs = load_runs(study)
    assert len(runs) == 6
    row = runs[(runs["arm"] == "none") & (runs["seed"] == 1)].iloc[0]
    assert row["final/train_eval/loss"] == 0.6
    assert row["early/probe/gdv"] == pytest.approx(0.2)  # steps 10 and 20, not 0
    assert row["config/model.name"] == "mlp"
    assert row["seconds"] == 2
    assert row["images_per_second"] == 20
    assert load_history(row["folder"])["step"].tolist() == [
        0,
        10,
        20,
        100,
    ]  # the half-written line is left out
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_runs(study / "nothing")
    (study / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        load_runs(study / "empty")


def test_a_history_is_of_one_run(study):
    with pytest.raises(
        FileNotFoundError,
        match=r"study holds 6 runs: load_history takes one of them, such as .*seed0",
    ):
        load_history(study)
    for nothing in ("nothing", "empty"):
        with pytest.raises(FileNotFoundError, match=rf"{nothing} is not a run's folder"):
            load_history(study / nothing)
        (study / "empty").mkdir(exist_ok=True)
    (run, *_) = (path.parent for path in study.glob("*/metrics.jsonl"))
    (run / "metrics.jsonl").unlink()
    assert load_history(run).empty  # it has begun, and measured nothing


def test_runs_made_before_a_key_existed_have_its_default(study):
    (path, *_) = study.glob("none-seed0/config.yaml")
    config = yaml.safe_load(path.read_text()) | {"trainer": {"stop_patience": 3}}
    path.write_text(yaml.safe_dump(config))
    assert set(load_runs(study)["arm"]) == {"none", "early-0.1-20%"}


def test_a_key_of_another_version_is_named_and_its_run_left_out(study):
    path = study / "none-seed0" / "config.yaml"
    path.write_text(path.read_text() + "optim: {warp: 9}\n")
    runs = load_runs(study)
    assert len(runs) == 5
    assert (
        f"{path} is damaged: it has keys that this version does not know: optim.warp"
        in runs.attrs["damaged"][0]
    )


def test_a_value_that_cannot_be_is_named_with_its_file(study):
    (path,) = study.glob("early*seed0/config.yaml")
    for before, after in (
        ("name: early", "name: eerly"),
        ("cutoff: 20%", "cutoff: 2x%"),
        ("seed: 0", "seed: }0"),
    ):
        whole = path.read_text()
        assert before in whole
        path.write_text(whole.replace(before, after))
        runs = load_runs(study)
        assert len(runs) == 5, after
        assert str(path) in runs.attrs["damaged"][0], after
        path.write_text(whole)


def test_a_run_without_a_status_leaves_the_steps_of_the_others_whole(study):
    (study / "none-seed0" / "status.json").unlink()
    runs = load_runs(study)
    totals = dict(zip(runs["folder"], runs["total_steps"], strict=True))
    assert totals.pop(str(study / "none-seed0")) is None
    assert {type(total) for total in totals.values()} == {int}
    steps = {row["step"] for row in run_rows(runs, study)}
    assert steps == {"100 of 100", "0"}
    assert "unknown, since it has no status.json: none-seed0" in problems(runs, study)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("status.json", '{"state": "running", "step": 3, "total_steps": "10"}'),
        ("config.yaml", "study: null\nseed: 0\n"),
        ("config.yaml", "study: study\nseed: 0\noptim: {lr: '[1'}\n"),
        ("config.yaml", "study: study\nseed: 0\nmodel: {width: 96.5}\n"),
    ],
)
def test_one_odd_file_leaves_out_one_run(study, file, content):
    path = study / "none-seed0" / file
    path.write_text(content)
    runs = load_runs(study)
    assert len(runs) == 5
    assert str(path) in runs.attrs["damaged"][0]
