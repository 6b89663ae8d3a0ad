import re
import shlex
import subprocess
import sys

import pytest
import yaml

from earlydrop.commands.list import TIMES, list_studies
from earlydrop.training.compose import conf_folder
from tests.analysis.made_up import make_run


def test_every_experiment_is_listed_with_its_first_sentence():
    rows = {name: what for name, _, _, what in list_studies()}
    root = conf_folder() / "experiment"
    assert set(rows) == {
        path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")
    }
    assert all(len(what) > 10 for what in rows.values())
    assert rows["findings/glyphs"].startswith("F5, F6, F7 and F9 where no overfitting is possible")
    assert rows["early_gain"] == "Does early dropout help a small language model?"


def test_a_study_has_the_time_of_its_key(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# Mine.\n# Time      a comment\nstudy: mine\n"
    )
    times = {study.name: study.time for study in list_studies(folders=[tmp_path])}
    assert times["mine"] == ""
    (tmp_path / TIMES).write_text("mine: about 4 minutes\n")
    times = {study.name: study.time for study in list_studies(folders=[tmp_path])}
    assert times["mine"] == "about 4 minutes"
    (tmp_path / TIMES).write_text("mine: 4\n")
    with pytest.raises(ValueError, match=r"times\.yaml: expected a line for each study"):
        list_studies(folders=[tmp_path])


def test_times_agree_with_the_headers():
    root = conf_folder() / "experiment"
    times = yaml.safe_load((conf_folder() / TIMES).read_text())
    for path in root.rglob("*.yaml"):
        header = re.search(r"^# (?:Time|Cost) +(.+)$", path.read_text(), re.MULTILINE)
        name = path.relative_to(root).with_suffix("").as_posix()
        assert (header is None) == (name not in times), name
        assert header is None or header[1].startswith(times[name]), name
    assert all((root / f"{name}.yaml").is_file() for name in times)


def test_times_and_what_has_been_run_stand_beside(tmp_path):
    make_run(tmp_path / "regimes", "none", 0, 0.5)
    make_run(tmp_path / "regimes", "none", 1, 0.5, "failed")
    rows = {name: (time, done) for name, time, done, _ in list_studies(str(tmp_path))}
    assert rows["findings/regimes"] == ("about 8 minutes", "1 failed, 1 finished")
    assert "GPU hours" in rows["paper/vit_tiny"][0]
    assert rows["findings/dynamics"][1] == ""


def test_the_command_prints_and_refuses_what_it_does_not_take(tmp_path, warm):
    done = warm.run("list", cwd=tmp_path)
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160
    done = warm.run("list", "study=x", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "error: earlydrop list takes out=FOLDER and --config-dir FOLDER alone, not study=x"
    )


def test_help_fits_a_screen_and_names_what_people_do(tmp_path, warm):
    done = warm.run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24
    assert max(map(len, done.stdout.splitlines())) <= 140
    for what in (
        "experiment=quickstart",
        "schedule=late",
        "-m schedule=none,early",
        "mode=plan",
        "earlydrop list",
        "--shell-completion",
    ):
        assert what in done.stdout


def test_output_that_is_cut_ends_quietly(tmp_path):
    for arguments in (["--help"], ["--cfg", "job"], ["list"]):
        command = f"'{sys.executable}' -m earlydrop {' '.join(arguments)} | head -1"
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stderr == "", arguments


COMMAND = re.compile(
    r"^# .*?((?:torchrun .*-m )?earlydrop experiment=.*?)(?:  +\(.*\).*)?$", re.MULTILINE
)


def test_the_commands_of_the_headers_are_words_of_a_shell():
    """Each is one command whose brackets and braces are quoted, for experiments that exist."""
    commands = [
        found[1]
        for path in sorted((conf_folder() / "experiment").rglob("*.yaml"))
        for found in COMMAND.finditer(path.read_text())
    ]
    assert len(commands) > 40
    script = "".join(f"printf '%s\\n' {command}\necho --\n" for command in commands)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert [
        each.split("\n") for each in done.stdout.removesuffix("\n--\n").split("\n--\n")
    ] == list(map(shlex.split, commands))
    for command in commands:
        (experiment,) = re.findall(r"experiment=(\S+)", command)
        assert (conf_folder() / "experiment" / f"{experiment}.yaml").is_file(), command
