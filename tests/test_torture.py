"""The helpers of ``scripts/torture.py``; what it finds is not tested here."""

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from torture.commands import Outcome, shown
from torture.damage import MUTATIONS, meaning, mutations, named
from torture.faults import Faults
from torture.mistakes import COUNT, all_mistakes, misspelt, wrong_types
from torture.signals import MARK, marked
from torture.tally import Tally

from earlydrop.training.keys import keys


def in_a_fork(before, work):
    """Exit status of a child that has its file operations wrapped."""
    child = os.fork()
    if child == 0:
        before()
        try:
            work()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_kill_and_a_full_disk_leave_half_of_a_write(tmp_path):
    file = tmp_path / "file"
    work = lambda: (file.write_bytes(b"12345678"), file.replace(tmp_path / "other"))  # noqa: E731
    log = tmp_path.parent / f"{tmp_path.name}.log"
    assert in_a_fork(Faults(tmp_path, log=log).install, work) == 0
    assert log.read_text().splitlines() == ["open file", "write file", "replace file"]
    assert in_a_fork(Faults(tmp_path, 1, "kill").install, work) == -9
    assert file.read_bytes() == b"1234"
    assert in_a_fork(Faults(tmp_path, 0, "full").install, work) == 28
    assert file.read_bytes() == b"1234"
    assert in_a_fork(Faults(tmp_path / "elsewhere", 0, "full").install, work) == 0


@pytest.mark.parametrize("how", MUTATIONS)
def test_mutations_change_what_they_are_given(how):
    content = b'{"step": 1}\n{"step": 2}\n'
    changed = MUTATIONS[how](content, random.Random(1))
    assert changed != content
    assert changed == MUTATIONS[how](content, random.Random(1))
    if how in ("flip", "digit"):
        assert len(changed) == len(content)


def test_every_sort_of_file_is_mutated_in_every_way():
    files = [
        f"{run}/{name}"
        for run in "ab"
        for name in ("metrics.jsonl", "status.json", "step-1.pt", "step-2.pt")
    ]
    made = mutations(files, 0, 50)
    assert len(made) == 50
    assert {(Path(file).suffix, how) for file, how, _ in made} >= {
        (suffix, how) for suffix in (".jsonl", ".json", ".pt") for how in MUTATIONS
    }
    assert made == mutations(files, 0, 50)


def test_a_file_means_the_same_with_a_blank_line(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("a: 1\n")
    before = meaning(config)
    config.write_text("\na: 1\n")
    assert meaning(config) == before
    config.write_text("a: 2\n")
    assert meaning(config) != before
    assert named("runs/a/config.yaml", "error: runs/a/con\nfig.yaml")


def test_mistakes_are_400_different_ones_and_misspelt_keys_are_no_keys():
    made = all_mistakes(0)
    assert len(made) == len(set(made)) == COUNT
    assert made == all_mistakes(0)
    for name in keys():
        assert misspelt(name, random.Random(name)) not in keys()
    assert ("1.5", True) in wrong_types(keys()["seed"])
    assert ("null", True) in wrong_types(keys()["seed"])
    assert ("null", True) not in wrong_types(keys()["optim.clip"])


def test_outcomes_and_counts(capsys):
    error = 'Traceback (most recent call last):\n  File "x"\nValueError: no\nbehind\n'
    tally = Tally("kills", short=True)
    assert tally.wants("a")
    assert tally.crash("a", Outcome("earlydrop", 1, "", error, 1.0))
    assert tally.crash("a", Outcome("earlydrop", -11, "", "", 1.0))
    assert not tally.crash("a", Outcome("earlydrop", 1, "", "error: no\n", 1.0))
    assert "ValueError: no" in capsys.readouterr().out
    assert tally.line().startswith("kills: 1 tried, 2 tracebacks, 0 silent acceptances")
    assert len(tally.chosen(list(range(100)), 5)) == 5
    assert shown("report", ["a b"]) == "earlydrop-report 'a b'"


def test_marked_processes_are_found(monkeypatch):
    assert marked("nobody") == []
    child = os.fork()
    if child == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-c", "import time; time.sleep(60)"],
            {MARK: "somebody"},
        )
    try:
        while not marked("somebody"):
            pass
        assert marked("somebody") == [child]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
