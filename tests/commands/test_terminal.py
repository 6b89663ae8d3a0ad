import io
import os
import subprocess
import sys

import pytest

from earlydrop.commands import terminal

RUN = """
import sys, warnings
warnings.simplefilter("ignore", EncodingWarning)  # of other packages
warnings.filterwarnings("error", category=EncodingWarning, module=r"earlydrop\\.")
from earlydrop.commands.run import main
main()
"""
SMALL = [
    "-m",
    "seed=0,1",
    "study=plain",
    "model=mlp",
    "model.hidden=[16]",
    "data.train_images=100",
    "trainer.steps=2",
    "trainer.batch_size=50",
    "probe=none",
    "evaluation.splits=[test]",
]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "2.29 +- 0.01 - 1 x 2, ?, ?"),
        ("latin-1", "2.29 ± 0.01 - 1 × 2, ?, ?"),
        ("utf-8", "2.29 ± 0.01 − 1 × 2, ĝ, ?"),
    ],
)
def test_characters_that_a_terminal_lacks_are_replaced(monkeypatch, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        terminal.print_on_any_terminal()
        print("2.29 ± 0.01 − 1 × 2, ĝ, \udcff")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding).rstrip() == shown


def test_a_sweep_on_an_old_terminal_without_a_home(tmp_path):
    """Its runs, its report and its last line; no file is opened without saying its encoding."""
    gone = (
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_DATA_DIR",
        "MPLCONFIGDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
    )
    machine = {
        "HOME": "/proc/nowhere",
        "PYTHONIOENCODING": "ascii",
        "PYTHONWARNDEFAULTENCODING": "1",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, *SMALL],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="ascii",
        env={name: value for name, value in os.environ.items() if name not in gone} | machine,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "+-" in done.stdout
    assert done.stdout.count("the home folder cannot be written") == 1
    assert "INFO" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next:  open")
    assert "±" in (tmp_path / "runs" / "plain" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("set_by_hand", ["MPLCONFIGDIR", "WANDB_CACHE_DIR"])
def test_a_folder_that_was_set_stays(tmp_path, monkeypatch, set_by_hand):
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(set_by_hand, "/elsewhere")
    monkeypatch.setattr("tempfile.tempdir", None)
    before = dict(os.environ)
    terminal.prepare()
    changed = {name for name, value in os.environ.items() if before.get(name) != value}
    for name in changed:
        monkeypatch.setenv(name, os.environ[name])
        monkeypatch.delenv(name)
    assert len(changed) == 3
    assert os.environ[set_by_hand] == "/elsewhere"


def test_a_home_that_can_be_written_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    terminal.prepare()
    assert dict(os.environ) == before
    assert capsys.readouterr().err == ""
