"""Overrides of keys that a run does not use. Mistyped ones: test_run.py, scripts/torture.py."""

import pytest

from earlydrop.commands.overrides import unused
from earlydrop.commands.run import main
from earlydrop.training.compose import compose, config_from_dict


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
    assert capsys.readouterr().err.splitlines() == ["warning: optim.momentum=0.5 is not used by this run"]
