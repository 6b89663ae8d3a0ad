"""``earlydrop --help-key``: each key of the schema says what it means."""

import subprocess
import sys

import pytest

from earlydrop.commands.help_key import describe, show_help
from earlydrop.training.keys import keys


@pytest.mark.parametrize("name", keys())
def test_each_key_is_described_in_a_sentence_or_two(name):
    text = keys()[name].help
    assert text.endswith((".", "..."))
    assert len(text) <= 220


def test_a_key_is_shown_with_its_default_its_values_and_its_effect():
    text = " ".join(describe(keys()["optim.beta1"]).split())
    assert text == (
        "optim.beta1 = 0.9 AdamW's decay rate of the mean gradient. A number in [0, 1); "
        "changes what is trained."
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("schedule.kind", "One of unit, path, all;"),
        ("trainer.steps", "A whole number, more than 0, or null;"),
        ("probe.at", "A list;"),
        ("trainer.compile", "True or false;"),
        ("data.root", "Text, or null;"),
        ("data.args", "Keys of your own;"),
    ],
)
def test_values_are_in_words(name, values):
    assert values in " ".join(describe(keys()[name]).split())


def test_a_group_shows_its_keys_and_no_name_shows_all(capsys):
    show_help(["--help-key", "distributed"])
    listed = capsys.readouterr().out
    show_help(["--help-key=distributed"])
    assert capsys.readouterr().out == listed
    show_help(["--help-key", "distributed"])
    assert capsys.readouterr().out.startswith("distributed.timeout = 600.0\n")
    show_help(["--help-key"])
    out = capsys.readouterr().out
    assert all(f"{name} = " in out for name in keys())


def test_a_misspelt_name_is_refused():
    with pytest.raises(
        SystemExit, match=r"there is no key optim\.beta3: did you mean optim\.beta2\?"
    ):
        show_help(["--help-key", "optim.beta3"])
    with pytest.raises(SystemExit, match="there is no key zzz; earlydrop --help-key lists all"):
        show_help(["--help-key", "zzz"])


def test_the_command_takes_it_in_any_place():
    done = subprocess.run(
        [sys.executable, "-m", "earlydrop", "optim.lr", "--help-key"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("optim.lr = 0.002\n    The peak learning rate")
    assert done.stderr == ""


def test_a_key_below_an_open_key_is_shown_as_the_open_key(capsys):
    show_help(["--help-key", "model.args.width"])
    assert capsys.readouterr().out.startswith("model.args = ")
