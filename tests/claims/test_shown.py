import dataclasses
import re

import pytest
import yaml

from earlydrop.analysis.stats import paired
from earlydrop.claims import shown as module
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.shown import sentences, shown
from earlydrop.claims.verdict import Verdict
from tests.claims.made_up import LOSS, declaration, made_up, study


@pytest.fixture
def declared(monkeypatch):
    claims = [LOSS, dataclasses.replace(LOSS, id="H", claim="higher loss", direction="higher")]
    studies = [study(label=[1, 2], first=range(10, 16))]
    monkeypatch.setattr(
        module, "load_declarations", lambda folder: [declaration(*claims, studies=studies)]
    )
    monkeypatch.setattr(module, "SETS", ("one",))


def runs(**made):
    return made_up(**made).of("toy")


def test_a_line_a_claim_with_its_answer_and_interval(declared):
    lower, higher = shown(runs(effect=-0.2))
    assert re.match(
        r"Confirmed: lower loss\.\n  Measured -0\.\d+ "
        r"\(95% interval -0\.\d+ to -0\.\d+; lower in 6 of 6 seeds\)\.$",
        lower,
    )
    assert higher.startswith(
        'Opposite: the runs show the reverse of "higher loss".\n  Measured -0.2'
    )
    assert shown(runs(effect=0.0))[0].startswith(
        'No effect that matters: "lower loss".\n  Measured '
    )


def test_what_few_seeds_cannot_tell_says_how_many_could(declared):
    line, _ = shown(runs(effect=0.0, noise=0.3))
    assert re.match(
        r'Undecided with 6 seeds \(about \d+ needed\): "lower loss"\.\n  Measured ', line
    )


def test_a_window_is_named_beside_the_number(declared, monkeypatch):
    claim = dataclasses.replace(LOSS, window=(0.05, 0.5))
    studies = [study(first=range(10, 16))]
    monkeypatch.setattr(
        module, "load_declarations", lambda folder: [declaration(claim, studies=studies)]
    )
    (line,) = shown(runs(effect=-0.2))
    assert "lower in 0 of 6 seeds, over 5% to 50%)." in line


def test_seeds_that_are_not_declared_say_nothing(declared):
    assert shown(runs(seeds=range(50, 53))) == []
    assert shown(made_up(study="other").of("other")) == []


@pytest.mark.parametrize("name", ["quickstart", "early_gain"])
def test_the_claims_of_a_demonstration_are_about_its_own_configuration(name):
    """Each arm that a claim names is one of the experiment's runs, key by key."""
    from earlydrop.analysis.arms import Arm, flat
    from earlydrop.training.compose import compose, conf_folder
    from earlydrop.training.keys import keys

    declared = next(
        each for each in load_declarations(claims_folder("quickstart")) if each.name == name
    )
    experiment = yaml.safe_load(
        (conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    )
    schedules = re.findall(r"{[^}]*}", experiment["hydra"]["sweeper"]["params"]["schedule"])
    ran = set()
    for schedule in schedules:
        values = flat(compose([f"experiment={name}", f"schedule={schedule}"]))
        ran.add(Arm.of({key: value for key, value in values.items() if key in keys()}))
    main = declared.studies[declared.main_study]
    assert {
        main.arm(settings) for claim in declared.claims for settings in (claim.arm, claim.against)
    } == ran


def test_a_demonstration_says_what_is_expected(declared, monkeypatch):
    where = dataclasses.replace(study(first=range(10, 16)), note="expected is a lower loss")
    monkeypatch.setattr(
        module, "load_declarations", lambda folder: [declaration(LOSS, studies=[where])]
    )
    assert shown(runs(effect=-0.2))[1:] == ["Expected is a lower loss."]
    where = dataclasses.replace(where, note="some seeds were added")
    monkeypatch.setattr(
        module, "load_declarations", lambda folder: [declaration(LOSS, studies=[where])]
    )
    assert len(shown(runs(effect=-0.2))) == 1


@pytest.mark.parametrize(
    "name", ["glyphs", "glyphs_long", "text", "dynamics_early", "dynamics_fashion", "text_rates"]
)
def test_the_studies_of_the_findings_are_declared_as_their_experiments_run_them(name):
    from earlydrop.analysis.arms import Arm, config_of, flat
    from earlydrop.training.compose import compose
    from earlydrop.training.fields import CADENCE
    from earlydrop.training.keys import keys

    declared = next(each for each in load_declarations(claims_folder()) if each.name == name)
    main = declared.studies[declared.main_study]
    values = flat(compose([f"experiment=findings/{name}", "schedule=none"]))
    assert values["study"] == main.name
    values = {key: value for key, value in values.items() if key in keys()}
    assert main.arm({"schedule.name": "none"}) == Arm.of(values)
    ran, again = config_of(values), config_of({**main.config, **main.cadence})
    for key in keys().values():
        if key.role == CADENCE:
            assert key.of(again) == key.of(ran), key.name


def test_equal_seeds_count_in_neither_direction():
    values = {0: 0.0, 1: 0.0, 2: 0.02}
    claim = dataclasses.replace(LOSS, direction="higher")
    verdict = Verdict(
        study="toy",
        round="first",
        claim=claim,
        arms=("a", "b"),
        expected=3,
        paired=paired(values),
        smallest=0.01,
        p=1.0,
        price=None,
        verdict="not resolved",
        bootstrap=None,
        fingerprints=(),
        lower=0,
        higher=1,
    )
    assert "higher in 1 of 3 seeds" in sentences(verdict)
