import pytest

from earlydrop.analysis import load_runs
from earlydrop.analysis.arms import Arm, config_of, label_arms, text
from earlydrop.commands.report import write_report
from tests.analysis.made_up import make_run


def test_arms_are_named_by_every_setting_that_varies(study):
    assert set(load_runs(study)["arm"]) == {"none", "early-0.1-20%"}
    for seed in range(2):
        make_run(study, "none", seed, 0.5, optim={"lr": 1e-3})
        make_run(
            study,
            "early-0.1-20%",
            seed,
            0.5,
            optim={"lr": 1e-3},
            model={"name": "mlp", "dropout": "shared"},
        )
    arms = set(load_runs(study)["arm"])
    assert arms == {
        "none · optim.lr=0.001", "none · optim.lr=0.002", "early-0.1-20% · optim.lr=0.002",
        "early-0.1-20% · model.dropout=shared, optim.lr=0.001",
    }  # fmt: skip


def test_an_arm_is_what_acts_and_nothing_else():
    none = Arm.of({"schedule.name": "none"})
    assert (
        Arm.of(
            {
                "schedule.name": "none",
                "schedule.rate": 0.7,
                "trainer.masks": "native",
                "model.dropout": "shared",
            }
        )
        == none
    )
    assert Arm.of({"schedule.name": "constant", "schedule.rate": 0.0}) == none  # never drops
    assert (
        Arm.of(
            {
                "schedule.name": "none",
                "seed": 3,
                "out": "x",
                "probe.at": ["0%"],
                "optim.momentum": 0.1,
            }
        )
        == none
    )
    early = Arm.of({"schedule.name": "early"})
    assert early != none
    assert early.base == none.values
    assert Arm.of({"schedule.name": "early", "schedule.cutoff": "21%"}) != early
    assert Arm.of({"schedule.name": "early", "optim.lr": 0.1}).base != none.values


def test_values_come_back_from_the_texts_of_a_table():
    config = config_of(
        {
            "model.hidden": "[16, 8]",
            "data.train_images": 250.0,
            "augment.flip": "False",
            "optim.clip": float("nan"),
        }
    )
    assert (
        config.model.hidden,
        config.data.train_images,
        config.augment.flip,
        config.optim.clip,
    ) == ([16, 8], 250, False, None)
    with pytest.raises(ValueError, match=r"'optim\.learning_rate' is not a key"):
        config_of({"optim.learning_rate": 1})


def test_names_are_never_shared():
    arms = [
        Arm.of({"schedule.name": "piecewise", "schedule.points": points})
        for points in ("0,0.1@0.5,0", "0,0.1@0.50,0")
    ]
    names = label_arms(dict(enumerate((arm, "mine") for arm in arms)))
    assert len(set(names.values())) == 2


def test_null_is_told_from_an_argument_that_is_not_given():
    given, left_out = Arm.of({"model.args.k": None}), Arm.of({})
    assert len(set(label_arms({0: (given, None), 1: (left_out, None)}).values())) == 2
    number, word = Arm.of({"model.args.w": 1}), Arm.of({"model.args.w": "1"})
    assert len(set(label_arms({0: (number, "m"), 1: (word, "m")}).values())) == 2


def test_whole_numbers_are_written_in_full():
    assert text(1_281_167) == "1281167"
    assert text(0.1 + 0.2) == "0.3"


@pytest.mark.parametrize("values", [{"model.width": 96.5}, {"optim.lr": "[1"}], ids=str)
def test_values_of_another_kind_are_refused(values):
    with pytest.raises(ValueError, match=r"96\.5|YAML"):
        Arm.of(values)


VALUES = ([[1, 2], [3, 4]], [{"a": [1]}], "*.png", "%d.png", "[ab", "a: b", "010", 8, "off", None)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_of_a_users_code_make_arms_of_their_own(value, study):
    """They keep their type, and no text is read as YAML."""
    arm = Arm.of({"model.args.own": value})
    assert arm in {arm}
    for other in VALUES:
        assert (arm == Arm.of({"model.args.own": other})) == (value is other)
    for seed in range(2):
        model = {"name": "own:net", "args": {"own": value}}
        make_run(study, "none", seed + 9, 0.5, model=model)
    runs = load_runs(study)
    own = runs[runs["config/model.name"] == "own:net"]
    assert set(own["settings"]) == {Arm.of(dict(own["settings"].iloc[0].values))}


def test_a_report_of_any_values_of_a_users_code_is_written(study):
    for seed, value in enumerate(VALUES):
        model = {"name": "own:net", "args": {"own": value}}
        make_run(study, "none", seed + 9, 0.5, model=model)
    write_report(study)
    assert load_runs(study)["settings"].nunique() == len(VALUES) + 2
