"""Each name has one folder: what is too long is refused, not cut."""

import pytest

from earlydrop.training.fields import ConfigError
from earlydrop.training.names import LONGEST, printable, run_label, slug, study_folder
from earlydrop.training.plan import make_plan
from earlydrop.training.record.tracking import run_id


@pytest.mark.parametrize("key", ["study", "label"])
@pytest.mark.parametrize("name", ["p" * 120 + "A", "50%" * 25, "é" * 101 + "a"])
def test_a_name_that_is_too_long_is_refused(config, key, name):
    with pytest.raises(
        ConfigError, match=rf"{key} is '.*':.* it has \d+ characters, expected at most {LONGEST}"
    ):
        make_plan(config(**{key: name}))
    assert make_plan(config(**{key: name[-33:]}))


def test_a_name_whose_folder_is_too_long_is_told_so():
    """A percent sign becomes three letters in the folder."""
    with pytest.raises(
        ConfigError, match=r"study is '%+': as a folder, '(pct){40}', it has 120 characters"
    ):
        slug("%" * 40, "study")


def test_names_of_the_longest_sort_have_two_folders_and_two_runs_on_the_dashboard(config):
    names = ["p" * (LONGEST - 1) + end for end in "AB"] + [
        end + "p" * (LONGEST - 1) for end in "AB"
    ]
    folders = [study_folder("runs", name) for name in names]
    assert len(set(folders)) == 4
    ids = [run_id(name, "0123456789ab") for name in names]
    assert len(set(ids)) == 4
    assert {len(each) for each in ids} == {60}
    assert run_id("a-study", "0123456789ab") == "a-study-0123456789ab"
    ids = {run_id(name, "0123456789ab") for name in ("lr-1", "lr_1", "lr.1", "lr 1", "lr+1")}
    assert len(ids) == 5
    assert run_id("s" * 47, "0123456789ab") == "s" * 47 + "-0123456789ab"


def test_long_words_of_a_schedule_are_cut_before_the_fingerprint(config):
    points = ",".join(f"0.1@{i / 100:.2f}" for i in range(1, 40))
    plans = [
        make_plan(config(schedule__name="piecewise", schedule__points=f"0,{points},{last}"))
        for last in ("0", "0.2")
    ]
    one, other = (plan.folder.name for plan in plans)
    assert one != other
    assert one[:LONGEST] == other[:LONGEST]
    assert {len(one), len(other)} == {LONGEST + 13}


def test_what_a_label_becomes():
    assert run_label("my 5% label!", "early-0.1-20%", 3) == "my-5pct-label"
    assert run_label(None, "early-0.1-20%", 3) == "early-0.1-20pct-seed3"
    with pytest.raises(
        ConfigError, match=r"label is '\?': it cannot name a folder; use letters and digits"
    ):
        slug("?", "label")


def test_bytes_that_are_not_utf8_are_shown():
    assert printable("caf\udce9 é") == r"caf\udce9 é"


@pytest.mark.parametrize("key", ["study", "out", "data__root", "project"])
def test_values_that_are_not_utf8_are_refused(config, key):
    with pytest.raises(
        ConfigError, match=rf"{key.replace('__', '.')} is 'caf\\udce9': expected UTF-8"
    ):
        make_plan(config(**{key: "caf\udce9"}))


FORBIDDEN = '<>:"/\\|?*'  # in names of files, on Windows


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("early 20%", "early-20pct"),
        (f"a{FORBIDDEN}b", "a-b"),
        ("ends with dots...", "ends-with-dots"),
        ("con", "_con"),
        ("Aux.1", "_Aux.1"),
        ("LPT3", "_LPT3"),
        ("console", "console"),
        ("com", "com"),
    ],
)
def test_a_name_that_every_system_takes(text, name):
    assert slug(text, "study") == name
