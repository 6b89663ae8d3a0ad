import json
import random
import re
import shlex
from pathlib import Path

import pytest

from earlydrop.commands.cite import citation, command_line, main
from earlydrop.training.compose import compose
from earlydrop.training.run import run
from tests.analysis.made_up import make_run, seal


def test_mappings_in_a_list_come_back_through_the_command_line():
    blocks = [{"width": 3, "name": "a b"}, {"on": True, "sizes": [1, 2], "none": None}]
    line = command_line({"model": {"args": {"blocks": blocks}}})
    assert compose(shlex.split(line)[1:])["model"]["args"]["blocks"] == blocks


def test_the_command_that_reproduces_a_run():
    import dataclasses

    from earlydrop.training.compose import config_from_dict

    settings = config_from_dict(
        {
            "seed": 3,
            "schedule": {"name": "piecewise", "points": "0,0@0.2,0.5@0.5,0"},
            "probe": {"at": ["0%", "5ep"]},
        }
    )
    line = command_line(dataclasses.asdict(settings))
    for part in ("seed=3", "schedule.name=piecewise", "0,0@0.2,0.5@0.5,0", "probe.at=[0%,5ep]"):
        assert part in line
    assert "out=" not in line


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 40))]
)
def test_any_text_comes_back_through_the_command_line(seed):
    """Random text of characters that mean something to a shell, to Hydra or to interpolation."""
    draw = random.Random(seed)
    text = "".join(
        draw.choice("ab1 ~é#&'!;:,=()[]{}$\\\"%@+-*?|<>\t./_`^") for _ in range(draw.randint(1, 12))
    )
    line = command_line({"data": {"root": text}, "label": None})
    words = shlex.split(line)[1:]
    assert compose(words)["data"]["root"] == text, line


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "true",
        "1",
        "1e3",
        "0x1",
        "inf",
        "nan",
        "none",
        "${seed}",
        r"\${seed}",
        "a'b",
        'a"b',
        "a\\'b",
        "\\",
        "'",
        " ",
    ],
)
def test_texts_that_look_like_something_else_come_back(text):
    assert compose(shlex.split(command_line({"data": {"root": text}}))[1:])["data"]["root"] == text


def test_a_run_without_its_provenance_is_named(study, capsys, monkeypatch):
    (study / "none-seed0" / "provenance.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["earlydrop-cite", str(study)])
    with pytest.raises(
        SystemExit, match=r"error: .*provenance\.json is missing or damaged: it has no earlydrop"
    ):
        main()


def test_a_changed_configuration_is_named_and_the_other_runs_are_cited(
    tmp_path, capsys, monkeypatch
):
    facts = {"earlydrop": "1", "commit": None, "environment": {}, "arm": "none"}
    for seed in (0, 1):
        make_run(tmp_path, "none", seed, 0.5, model={"name": "mlp"})
        (run,) = tmp_path.glob(f"none-seed{seed}*")
        (run / "provenance.json").write_text(json.dumps(facts | {"fingerprint": f"print{seed}"}))
        seal(run)
    config = next(tmp_path.glob("none-seed0*")) / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    monkeypatch.setattr("sys.argv", ["earlydrop-cite", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .*config\.yaml does not match its digest"):
        main()
    out = capsys.readouterr().out
    assert "earlydrop-print1" in out
    assert "print0" not in out


def test_a_null_of_the_users_own_is_in_the_command():
    line = command_line({"model": {"args": {"pool": None, "w": 3}}})
    assert compose(shlex.split(line)[1:])["model"]["args"] == {"pool": None, "w": 3}


@pytest.mark.parametrize("text", ["naïve", "Bücher/text.txt", "данные"])
def test_letters_beyond_ascii_are_quoted(text):
    line = command_line({"data": {"root": text}})
    assert compose(shlex.split(line)[1:])["data"]["root"] == text


def test_the_entry_of_a_run_can_be_set_by_latex(config):
    entry = citation(Path(run(config())["folder"]))
    title = next(line for line in entry.splitlines() if ", seed 0}" in line)
    assert re.search(r"(?<!\\)[_%&#$]", title) is None
    assert r"fashion\_mnist\_mini" in title
    assert r"50\%" in title
