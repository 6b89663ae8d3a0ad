import pytest
import yaml

from earlydrop.training.compose import conf_folder, config_from_dict
from earlydrop.training.fields import ConfigError
from earlydrop.training.schedule_config import schedule_options


def test_misspelt_keys_and_wrong_types():
    for values, says in (
        ({"schedul": {}}, "schedul"),
        ({"trainer": {"epochs": "many"}}, "trainer.epochs"),
        ({"seed": 1.5}, "seed"),
    ):
        with pytest.raises(ConfigError, match=says):
            config_from_dict(values)


def test_a_foreign_configuration_is_never_interpolated(monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    for text in ("${oc.env:SECRET}", r"\${oc.env:SECRET}", "a ${seed} b", "$x^{$", r"\\${seed}"):
        assert config_from_dict({"label": text}).label == text


def test_every_schedule_has_a_file_with_its_own_defaults():
    folder = conf_folder() / "schedule"
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in folder.glob("*.yaml")
    }
    points = files["piecewise"].pop(
        "points"
    )  # it has no default in Python: the file gives an example
    assert points
    assert files == schedule_options()


def test_nothing_in_a_list_of_a_foreign_configuration_is_interpolated(monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    texts = ["${oc.env:SECRET}", r"\${oc.env:SECRET}", "a ${seed} b"]
    assert config_from_dict({"tags": texts}).tags == texts


def test_a_file_that_gives_a_group_one_value_is_told_its_keys(warm, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "quiet.yaml").write_text(
        '# @package _global_\ntracking: "off"\n'
    )
    done = warm.run(
        "--config-dir",
        "mine",
        "experiment=quiet",
        "mode=plan",
        cwd=tmp_path,
        env={},
        program="earlydrop",
    )
    assert done.returncode == 1
    assert (
        "tracking is a group of keys, such as tracking.mode; write tracking: {mode: ...}, not off"
        in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
