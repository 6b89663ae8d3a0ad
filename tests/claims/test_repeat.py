"""`earlydrop-findings --repeat`: fresh seeds, trained and judged beside the published verdict."""

import dataclasses

import pytest

from earlydrop.claims.declare import Study
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.repeat import (
    FIRST_SEED,
    begin,
    begun_seeds,
    configurations,
    fresh_seeds,
    studies_of,
)
from earlydrop.commands.findings import main
from earlydrop.training.plan import make_plan
from tests.analysis.made_up import make_run
from tests.claims.made_up import LOSS, SAME, declaration, study


def test_fresh_seeds_are_in_no_round_and_no_run(tmp_path):
    make_run(tmp_path, "none", FIRST_SEED + 1, 0.5)
    declared = declaration(LOSS, studies=[study(first=[FIRST_SEED, FIRST_SEED + 3])])
    assert fresh_seeds([declared], tmp_path, 3) == [FIRST_SEED + 2, FIRST_SEED + 4, FIRST_SEED + 5]
    assert fresh_seeds([declared], tmp_path / "nowhere", 1) == [FIRST_SEED + 1]
    for index, text in enumerate(("{}", "[", "seed: one")):
        (tmp_path / f"damaged{index}").mkdir()
        (tmp_path / f"damaged{index}" / "metrics.jsonl").touch()
        (tmp_path / f"damaged{index}" / "config.yaml").write_text(text)
    assert fresh_seeds([declared], tmp_path, 1) == [FIRST_SEED + 2]


def test_a_repetition_that_was_stopped_goes_on_with_its_seeds(tmp_path):
    """Finished seeds stay too: their results must not choose others."""
    notes = tmp_path / "toy" / "repeat-F5.json"
    assert begun_seeds(notes, 3) is None
    begin(notes, [7, 8, 9])
    make_run(tmp_path / "toy", "none", 7, 0.5)
    make_run(tmp_path / "toy", "early-0.1-20%", 7, 0.5)
    assert begun_seeds(notes, 3) == [7, 8, 9]
    with pytest.raises(
        ValueError,
        match=r"with the seeds 7 to 9 was begun and not finished: go on with --seeds 3, or delete ",
    ):
        begun_seeds(notes, 5)
    for damaged in ("[", "[]", "{}", '["a"]'):
        notes.write_text(damaged)
        with pytest.raises(ValueError, match=r"repeat-F5.json holds no seeds of a repetition"):
            begun_seeds(notes, 3)


def test_the_runs_are_those_of_the_claims_arms_each_once_with_the_studys_cadence(tmp_path):
    where = Study("s", {"data.train_images": 300}, {"first": (1,)}, {"trainer.log_every": 7})
    configs = configurations(where, [LOSS, SAME], [5, 6], tmp_path)
    assert [(c.schedule.name, c.seed) for c in configs] == [
        ("early", 5),
        ("none", 5),
        ("early", 6),
        ("none", 6),
    ]
    assert {
        (c.trainer.log_every, c.data.train_images, c.study, c.threads, c.tracking.mode)
        for c in configs
    } == {(7, 300, "s", 1, "off")}


def test_a_finding_that_is_not_claimed_is_refused():
    declared = load_declarations(claims_folder())
    with pytest.raises(
        ValueError, match=r"finding 'F99' is not claimed: expected one of F1, F2, .*F11"
    ):
        studies_of(declared, "F99", None)
    studies = r"finding 'F5' in the study 'dynamics' is not claimed: expected one of glyphs, .*text"
    with pytest.raises(ValueError, match=studies):
        studies_of(declared, "F5", "dynamics")
    assert {where.name for _, where, _ in studies_of(declared, "F5", None)} == {
        "underfitting",
        "glyphs",
        "glyphs-long",
        "text",
    }


def test_what_a_claim_measures_has_to_be_in_the_studys_cadence(tmp_path):
    claim = dataclasses.replace(LOSS, metric="probe/gdv")
    with pytest.raises(
        ValueError,
        match=r"probe.at is empty, so probe/gdv of claim L is not measured; give probe=few in the",
    ):
        configurations(study(first=[1]), [claim], [5], tmp_path)
    against = dataclasses.replace(LOSS, against_metric="ema/train_eval/loss")
    with pytest.raises(ValueError, match=r"trainer.ema is null, so ema/train_eval/loss"):
        configurations(study(first=[1]), [against], [5], tmp_path)


@pytest.mark.parametrize(
    ("metric", "missing"),
    [
        ("probe/critical_sharpness", "probe.curvature is false"),
        ("probe_on/gdv", "probe.compare is false"),
        ("test/ece", "trainer.mc_passes is null"),
    ],
)
def test_every_key_that_a_metric_needs_is_asked_for(metric, missing, tmp_path):
    claim = dataclasses.replace(LOSS, metric=metric)
    probing = dataclasses.replace(study(first=[1]), cadence={"probe.at": [0]})
    with pytest.raises(ValueError, match=missing):
        configurations(probing, [claim], [5], tmp_path)


@pytest.mark.parametrize("name", ["findings", "classic", "quickstart"])
def test_every_main_study_can_be_repeated(name, tmp_path):
    for declared in load_declarations(claims_folder(name)):
        assert configurations(
            declared.studies[declared.main_study], declared.claims, [1], tmp_path
        ), declared.name


def test_a_repeat_trains_judges_and_prints_what_was_published(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        ["earlydrop-findings", "--repeat", "F5-loss", "--study", "smoke", "--seeds", "2"],
    )
    main()
    out = capsys.readouterr().out
    first, last = fresh_seeds(load_declarations(claims_folder()), tmp_path / "none", 2)
    assert f"smoke: F5-loss on the seeds {first} to {last}" in out
    assert any(line.startswith("F5-loss") and "smoke, fresh" in line for line in out.splitlines())
    (where,) = [
        each.studies["smoke"]
        for each in load_declarations(claims_folder())
        if each.name == "underfitting"
    ]
    config = configurations(where, [LOSS], [first], tmp_path / "runs")[1]
    assert (make_plan(config).folder / "status.json").is_file()
    assert not list(tmp_path.rglob("repeat-*.json"))  # judged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3"], "expected 2 or more, with --repeat"),
        (["--repeat", "F5", "--seeds", "1"], "expected 2 or more"),
        (["--repeat", "F5", "--add"], "--repeat takes no --power, --add or --out"),
        (["x", "--power", "--out", "y"], "--power takes no --add and no --out"),
        (["x", "--pow"], "unrecognized arguments: --pow"),
        ([], "give a folder"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["earlydrop-findings", *arguments])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) <= 3
