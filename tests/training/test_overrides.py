"""Overrides of keys that a run does not use. Mistyped ones: test_run.py, scripts/torture.py."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from earlydrop.commands.run import main
from earlydrop.training.compose import compose, config_from_dict
from earlydrop.training.overrides import mistake, unused


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optim.momentum=0.5", "optim.lr=0.1"], ["optim.momentum=0.5"]),
        (["optim=sgd", "optim.momentum=0.5"], []),
        (["trainer.steps=50", "trainer.epochs=3"], ["trainer.epochs=3"]),
        (["augment.crop=true", "augment.shift=1"], ["augment.crop=true"]),
        (["data=glyphs", "augment.shift=3"], ["augment.shift=3"]),
        (["probe=none", "probe.batches=3"], ["probe.batches=3"]),
        (["augment.switch=0.9"], ["augment.switch=0.9"]),
        (["schedule=none", "schedule.rate=0.2", "seed=1"], []),
    ],
)
def test_what_a_run_does_not_use_is_named(overrides, expected):
    assert unused(overrides, config_from_dict(compose(overrides))) == expected


def test_a_plan_warns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["earlydrop", "mode=plan", "model=mlp", "optim.momentum=0.5"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: optim.momentum=0.5 is not used by this run"
    ]


@pytest.mark.parametrize(
    "argument",
    [
        "checkpoint=ck/epoch=9-step=1.ckpt",
        "data.root=~/data",
        "out=~/runs (old)",
        "study=caf\u00e9",
        "data.root=/a#b",
        "label=it's",
        "label=a\"b'c",
        "out=back\\\\slash=1",
        "++checkpoint=a=b",
    ],
)
def test_what_needs_quotes_is_said_with_the_quotes(argument):
    """The mend, as a shell gives it, is in Hydra's grammar and means what was typed."""
    said = mistake(["seed=1", argument])
    assert said.startswith(f"{argument} has characters that need quotes: write ")
    assert len(said.splitlines()) == 1
    (mended,) = shlex.split(
        said.partition(" write ")[2].rpartition(", with both pairs of quotes")[0]
    )
    assert mistake([mended]) is None
    (parsed,) = OverridesParser.create().parse_overrides([mended])
    assert parsed.value() == argument.partition("=")[2]


def test_what_quotes_do_not_mend_is_said():
    quoted = mistake(["model.args.file=a(b"])
    assert """write 'model.args.file="a(b"'""" in quoted
    assert mistake(["probe.at=[10%"]).startswith("probe.at=[10% is not in Hydra's grammar: ")
    assert mistake(["chekpoint=a=b"]).startswith(
        "chekpoint is not a key of the configuration: did you mean checkpoint?"
    )
    assert mistake(["data.root=caf\udce9"]) == (
        r"'data.root=caf\udce9' is not UTF-8: "
        r"rename the file that it names, or use a link with another name"
    )
    for argument in (
        "seed=0,1",
        "schedule.points='0,0@0.5,0.1'",
        "tags=[a,b]",
        "~trainer",
        "checkpoint='\"a=b\"'",
        "label=",
    ):
        assert mistake([argument]) is None, argument


def test_a_quoted_home_is_the_home(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "sys.argv", ["earlydrop", "mode=plan", "data=imagefolder", 'data.root="~/data"']
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert (
        "data.root is '~/data': expected a folder with train/ and val/" in capsys.readouterr().err
    )
