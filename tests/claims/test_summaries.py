import pandas as pd

from earlydrop.analysis.arms import Arm
from earlydrop.claims.summaries import Summaries, collect, merged, read_summaries
from tests.analysis.made_up import make_run, seal
from tests.claims.made_up import made_up


def test_summaries_come_back_as_they_were_written(tmp_path):
    summaries = made_up()
    summaries.write(tmp_path)
    again = read_summaries(tmp_path)
    again.write(tmp_path / "again")
    for name in ("runs.csv", "history.csv.xz"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_settings_are_written_exactly(tmp_path):
    summaries = made_up(config={"optim.lr": 0.00123456789012})
    summaries.write(tmp_path)
    assert set(read_summaries(tmp_path).runs["config/optim.lr"]) == {0.00123456789012}


def test_further_runs_are_added_and_what_both_have_is_taken_anew(tmp_path):
    before, more = made_up(seeds=range(10, 13)), made_up(seeds=range(12, 15), effect=0.5)
    both = merged(before, more)
    assert sorted(both.runs["seed"]) == sorted([*range(10, 15)] * 2)
    losses = {
        (r.arm, r.seed): r.history["train_eval/loss"].iloc[-1] for r in both.of("toy").itertuples()
    }
    anew = {
        (r.arm, r.seed): r.history["train_eval/loss"].iloc[-1] for r in more.of("toy").itertuples()
    }
    assert losses["early", 12] == anew["early", 12]
    both.write(tmp_path)
    read_summaries(tmp_path).write(tmp_path / "again")
    assert (tmp_path / "runs.csv").read_bytes() == (tmp_path / "again" / "runs.csv").read_bytes()


def test_a_run_from_before_a_key_has_its_default_also_beside_runs_that_have_the_key(tmp_path):
    """An empty cell of a key that cannot be null is no setting of its own."""
    before, more = (
        made_up(seeds=range(10, 13)),
        made_up(seeds=range(20, 23), config={"augment.erasing": 0.0}),
    )
    more.runs["fingerprint"] += "x"
    more.history["fingerprint"] += "x"
    merged(before, more).write(tmp_path)
    arms = set(read_summaries(tmp_path).runs["settings"])
    assert arms == set(before.runs["settings"])


def test_damaged_and_changed_runs_are_named_and_left_out(study, caplog):
    whole = collect(study, {"study"})
    assert (len(whole.runs), whole.left_out) == (6, ())
    (study / "none-seed0" / "config.yaml").write_text("[")
    (study / "none-seed1" / "metrics.jsonl").write_text("garbage\n")
    changed = study / "none-seed2"
    seal(changed)
    (changed / "metrics.jsonl").write_bytes(
        (changed / "metrics.jsonl").read_bytes().replace(b"0.5", b"0.4")
    )
    found = collect(study, {"study"})
    assert len(found.runs) == 3
    assert len(found.left_out) == 3
    for name in (
        "none-seed0/config.yaml",
        "none-seed1/metrics.jsonl",
        "none-seed2: metrics.jsonl changed after",
    ):
        assert name in caplog.text


def test_collected_runs_are_in_order_whatever_their_folders_are_called(study):
    for place, run in enumerate(sorted(study.iterdir(), reverse=True)):
        run.rename(study / f"{place}-run")
    found = collect(study, {"study"})
    pd.testing.assert_frame_equal(found.runs, found.runs.sort_values(["arm", "seed"]))
    pd.testing.assert_frame_equal(found.history, found.history.sort_values(["arm", "seed", "step"]))
    assert len(found.history) > len(found.runs) == 6


def test_an_arm_keeps_its_name_when_runs_are_added():
    before = made_up(seeds=range(10, 13))
    more = made_up(seeds=range(13, 16))
    more.runs["arm"] += " · optim.lr=0.002"
    more.history["arm"] += " · optim.lr=0.002"
    both = merged(before, more)
    assert set(both.runs["arm"]) == set(both.history["arm"]) == {"none", "early"}
    other = made_up(seeds=range(13, 16), config={"optim.clip": 1.0})
    other.runs["arm"] += " · optim.clip=1.0"
    other.history["arm"] += " · optim.clip=1.0"
    both = merged(before, other)
    assert set(both.runs["arm"]) == {
        "none",
        "early",
        "none · optim.clip=1.0",
        "early · optim.clip=1.0",
    }
    assert set(both.history["arm"]) == set(both.runs["arm"])


VALUES = ([[1, 2], [3, 4]], "*.png", "010", 8, "off", True, 0.1, "null", "")


def test_values_of_a_users_code_keep_their_type(tmp_path):
    """In one column, with an empty cell where a run does not have the key."""
    parts = [made_up(seeds=[10])]
    for index, value in enumerate(VALUES):
        part = made_up(seeds=[11 + index], config={"model.args.own": str(index)})
        part.runs["config/model.args.own"] = [value] * len(part.runs)
        settings = {"data.name": "d", "schedule.name": "none", "model.args.own": value}
        part.runs["settings"] = [Arm.of(settings)] * len(part.runs)
        parts.append(part)
    whole = Summaries(
        pd.concat([part.runs for part in parts], ignore_index=True),
        pd.concat([part.history for part in parts], ignore_index=True),
    )
    whole.write(tmp_path)
    again = read_summaries(tmp_path)
    own = [arm.get("model.args.own") for arm in again.runs["settings"]]
    kept = [None, ((1, 2), (3, 4)), *VALUES[1:]]
    assert [(value, type(value)) for value in own[::2]] == [(v, type(v)) for v in kept]
    again.write(tmp_path / "again")
    assert (tmp_path / "runs.csv").read_bytes() == (tmp_path / "again" / "runs.csv").read_bytes()


def test_two_arms_never_share_a_name_when_runs_are_added():
    before, more = made_up(), made_up(config={"optim.lr": 0.5})
    both = merged(before, more)
    names = both.runs.groupby("arm")["settings"].nunique()
    assert set(names) == {1}
    assert "early (optim.lr=0.5)" in set(names.index)
    assert set(both.history["arm"]) == set(names.index)


def test_null_and_no_value_stay_apart_beside_numbers(study, tmp_path):
    for seed, args in enumerate(({"x": 0.5}, {"x": None}, {"x": 32}, {})):
        make_run(study, "none", seed + 9, 0.5, model={"name": "own:net", "args": args})
    before = collect(study, {"study"})
    before.write(tmp_path / "out")
    after = read_summaries(tmp_path / "out")
    own = [arm for arm in after.runs["settings"] if arm.get("model.name") == "own:net"]
    assert len(set(own)) == 4
    assert set(after.runs["settings"]) == set(before.runs["settings"])
    cells = pd.read_csv(tmp_path / "out" / "runs.csv", dtype=str, na_filter=False)
    assert sorted(set(cells["config/model.args.x"])) == ["", "0.5", "32", "null"]
