import pytest
import yaml

from earlydrop.claims.declare import LossWindow
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.summaries import read_summaries


def write(tmp_path, **changes):
    claim = {
        "claim": "c",
        "source": "s",
        "arm": {"schedule.name": "late"},
        "against": {"schedule.name": "none"},
        "metric": "test/loss",
        "window": "final",
        "direction": "lower",
        "smallest": "1%",
    }
    content = {
        "claims": {"X": claim},
        "regime": "underfit",
        "standard": {"schedule.name": "constant"},
        "studies": {"toy": {"first": [1, 2]}},
    }
    for key, value in changes.items():
        node = claim if key in claim or key in ("margin", "test", "sensitivity") else content
        if value is None:
            del node[key]
        else:
            node[key] = value
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(content))
    return load_declarations(tmp_path)


def test_claims_are_read(tmp_path):
    (found,) = write(tmp_path, window=["5%", "50%"])
    (claim,) = found.claims
    assert claim.window == (0.05, 0.5)
    assert (claim.smallest, claim.relative) == (0.01, True)
    (found,) = write(tmp_path, window={"loss": [6.5, 5]}, smallest=0.004)
    (claim,) = found.claims
    assert claim.window == LossWindow(6.5, 5.0)
    assert (claim.smallest, claim.relative) == (0.004, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"direction": "smaller"},
            "claim X: direction is 'smaller': expected lower, higher, equivalent",
        ),
        ({"window": ["50%", "5%"]}, r"window is \['50%', '5%'\]"),
        ({"window": "early"}, "window is 'early': expected 'final', two rising percentages"),
        (
            {"window": {"loss": [5, 6]}},
            r"window is {'loss': \[5, 6\]}: expected two falling losses",
        ),
        ({"window": {"steps": [6, 5]}}, "expected two falling losses"),
        ({"margin": 0.1}, "claim X: margin unknown: expected against, arm"),
        ({"margin": 0.1, "window": None}, "claim X: window missing and margin unknown"),
        ({"metric": ""}, "metric is ''"),
        ({"claim": ""}, "claim X: claim is '': expected a text"),
        ({"families": {"f": ["X", "X"]}}, "family f names the claim X twice: expected once"),
        ({"window": {"loss": [float("inf"), 5]}}, "expected two falling losses"),
        ({"looks": {"seeds": [2, 4]}}, r"such as \[20, 40, 60\] or {seeds: \[20, 40, 60\], bound"),
        (
            {"smallest": None},
            "claim X: smallest is missing: expected the smallest effect that matters, such as 1%",
        ),
        ({"smallest": 0.0}, "smallest is 0.0: expected more than 0"),
        ({"smallest": "-1%"}, "smallest is '-1%': expected more than 0"),
        ({"smallest": "much"}, "smallest is 'much': expected more than 0"),
        ({"regime": "fit"}, "regime is 'fit'"),
        ({"smallest": float("inf")}, "smallest is inf: expected more than 0"),
        ({"metric": "test/los"}, "metric is 'test/los': claims cannot use it; expected one of"),
        (
            {"arm": "late-0.1-20%"},
            "arm is 'late-0.1-20%': expected configuration keys and values.*name of an arm is not",
        ),
        (
            {"arm": {"schedule.nme": "late"}},
            "claim X, arm: 'schedule.nme' is not a key of the configuration",
        ),
        ({"arm": {"schedule.name": "late", "schedule.rate": 2}}, "claim X, arm: rate is 2"),
        ({"standard": "constant-0.1"}, "standard is 'constant-0.1': expected configuration keys"),
        ({"claims": []}, r"claims is \[\]: expected a mapping by name"),
        ({"claims": {"X": None}}, "claim X is None: expected against, arm, claim"),
        ({"studies": {"toy": [1, 2]}}, r"study toy is \[1, 2\]: expected rounds of seeds by name"),
        (
            {"studies": {"toy": {"first": 3}}},
            "study toy, round first: seeds are 3: expected a list of whole numbers",
        ),
        ({"studies": {"toy": {"first": [1, 1]}}}, "a seed stands twice"),
        (
            {"studies": {"toy": {"first": [1], "note": [2]}}},
            r"study toy, note is \[2\]: expected a sentence",
        ),
        (
            {"families": {"one": ["X", "Y"]}},
            "family one names the claim 'Y', which the file does not have",
        ),
        ({"families": {"one": ["X"], "two": ["X"]}}, "claim X is in the families one and two"),
        ({"families": ["X"]}, r"families is \['X'\]: expected lists of claims by name"),
        (
            {"studies": {"toy": {"label": [1, 5], "first": [5, 6]}}},
            "seed 5 of study toy is in round first and in round label",
        ),
    ],
)
def test_bad_claims_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)


def test_the_committed_claims_can_be_read_and_cover_every_finding():
    assert load_declarations(claims_folder("classic"))
    declarations = load_declarations(claims_folder())
    ids = {claim.id.partition("-")[0] for each in declarations for claim in each.claims}
    assert ids == {
        "F1",
        "F2",
        "F3a",
        "F3b",
        "F4a",
        "F4b",
        "F5",
        "F6",
        "F7",
        "F8",
        "F9",
        "F10",
        "F11",
        "F12",
        "F13",
        "D5",
        "D6",
        "W",
    }


def test_a_file_with_an_error_of_yaml_is_named(tmp_path):
    (tmp_path / "f.yaml").write_text("claims: [a")
    with pytest.raises(ValueError, match=r"f\.yaml is no valid YAML: while parsing"):
        load_declarations(tmp_path)


def test_a_number_that_yaml_reads_as_text_is_a_bound_of_a_window(tmp_path):
    (found,) = write(tmp_path, window={"loss": ["1e1", 5.5]})
    assert found.claims[0].window == (10.0, 5.5)


@pytest.mark.parametrize("text", ["", "[1, 2]", "3"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(
        ValueError, match=r"f.yaml: expected a mapping with claims, regime, standard, studies"
    ):
        load_declarations(tmp_path)


def test_a_claim_is_tested_alone_unless_a_family_names_it(tmp_path):
    (found,) = write(tmp_path)
    assert found.claims[0].family == "X"
    (found,) = write(tmp_path, families={"f": ["X"]})
    assert found.claims[0].family == "f"


def test_every_committed_study_is_declared_as_its_runs_were(request):
    """Each claim's arms in their study have the settings of committed runs, key by key."""
    root = request.config.rootpath / "results"
    for name in ("findings", "classic"):
        summaries = read_summaries(root / name)
        ran = set(summaries.runs["study"])
        for each in load_declarations(claims_folder(name)):
            for study in (study for study in each.studies.values() if study.name in ran):
                arms = set(summaries.of(study.name)["settings"])
                parts = [part for claim in each.claims for part in claim.parts]
                declared = [settings for part in parts for settings in (part.arm, part.against)]
                found = [study.arm(settings) in arms for settings in declared]
                assert any(found), study.name
                if study.name == each.main_study:
                    missing = [
                        settings
                        for settings, there in zip(declared, found, strict=True)
                        if not there
                    ]
                    for settings in missing:  # declared ahead of its runs: no run has what it names
                        assert not any(
                            all(arm.get(key) == value for key, value in settings.items())
                            for arm in arms
                        ), settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": "mean"},
            r"test is 'mean': expected median, {share above: 2.1} or {steps to: 2.1}",
        ),
        ({"test": {"share above": "2.1"}}, r"test is {'share above': '2.1'}: expected median"),
        (
            {"test": "median", "direction": "equivalent"},
            r"direction is 'equivalent': expected lower or higher for the test median",
        ),
        (
            {"test": {"steps to": 2.1}, "window": ["0%", "50%"]},
            r"window is \['0%', '50%'\]: expected final",
        ),
    ],
)
def test_a_test_that_does_not_exist_or_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("median", ("median", None)),
        ({"share above": 2}, ("share above", 2.0)),
        ({"steps to": 2.1}, ("steps to", 2.1)),
    ],
)
def test_a_test_is_read(tmp_path, value, expected):
    (found,) = write(tmp_path, test=value)
    assert found.claims[0].test == expected


RATES = {"key": "optim.lr", "values": [0.001, 0.002], "at most": 5.5}


def test_a_sensitivity_is_read_and_has_a_comparison_for_each_value(tmp_path):
    (found,) = write(tmp_path, sensitivity=RATES)
    (claim,) = found.claims
    assert claim.sensitivity == ("optim.lr", (0.001, 0.002), 5.5)
    assert [part.arm for part in claim.parts] == [
        {"schedule.name": "late", "optim.lr": 0.001},
        {"schedule.name": "late", "optim.lr": 0.002},
    ]
    assert [part.against["optim.lr"] for part in claim.parts] == [0.001, 0.002]
    assert all(part.sensitivity is None for part in claim.parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sensitivity": "optim.lr"},
            r"sensitivity is 'optim.lr': expected {key: optim.lr, values: ",
        ),
        (
            {"sensitivity": RATES | {"values": [0.001]}},
            r"the values \[0.001\]: expected two or more numbers",
        ),
        (
            {"sensitivity": RATES | {"values": [1, "two"]}},
            r"the values \[1, 'two'\]: expected two or more numbers",
        ),
        ({"sensitivity": RATES | {"values": [1, 1]}}, r"sensitivity has a value twice in \[1, 1\]"),
        (
            {"sensitivity": RATES | {"at most": "ln 256"}},
            r"sensitivity, at most is 'ln 256': expected a number",
        ),
        (
            {"sensitivity": RATES | {"key": "optim.rate"}},
            r"claim X, arm: 'optim.rate' is not a key",
        ),
        (
            {"sensitivity": RATES, "test": "median"},
            r"test is median: a sensitivity is compared by the paired t test",
        ),
    ],
)
def test_a_sensitivity_that_cannot_be_measured_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)


def test_a_file_replaces_one_that_there_is(tmp_path):
    with pytest.raises(
        ValueError, match=r"f.yaml: replaces is 'g': expected the name of a file beside it"
    ):
        write(tmp_path, replaces="g")
    (found,) = write(tmp_path, replaces="f")
    assert found.replaces == "f"
