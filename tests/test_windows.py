"""A rehearsal of Windows (tests/windows.py): commands run without what it lacks and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.training.data.pictures import make_folder

ROOT = Path(__file__).parents[1]
SITE = "from tests.windows import rehearse\nrehearse()\n"
COMMANDS = """
import signal
import sys


def typed(command, *arguments):
    sys.argv = ["earlydrop", *arguments]
    try:
        command()
    except SystemExit as stop:
        return stop.code
    return 0


def stop_after_one_step():
    from earlydrop.training.trainer import Trainer

    original = Trainer.train_step

    def train_step(self, parts):
        original(self, parts)
        signal.raise_signal(signal.SIGINT)
        Trainer.train_step = original

    Trainer.train_step = train_step


if __name__ == "__main__":  # workers, which are spawned, import this file
    from earlydrop.commands import cite, report, run
    from earlydrop.training.record import files

    assert not hasattr(signal, "SIGUSR1")
    small = ["trainer.batch_size=4", "trainer.eval_every=100%", "evaluation.splits=[test]"]
    quickstart = [
        "experiment=quickstart",
        "schedule=none,early",
        "seed=0",
        "trainer.steps=4",
        "data.train_images=50",
        "probe.batches=2",
        "probe.dataset_limit=8",
        "probe.at=[100%]",
        *small,
    ]
    assert typed(run.main, *quickstart) == 0
    folder = [
        "data=imagefolder",
        "data.root=images",
        "data.image_size=16",
        "data.workers=1",
        "model=mlp",
        "model.hidden=[4]",
        "study='folder: <aux>?'",
        "augment=paper",
        "probe=none",
        "trainer.steps=3",
        *small,
    ]
    stop_after_one_step()
    assert typed(run.main, *folder) == 130
    assert typed(run.main, *folder) == 0
    assert typed(report.main, "runs/folder-aux") == 0
    assert typed(cite.main, "runs/folder-aux") == 0
    long = "/".join(["x" * 40] * 5)
    files.LONGEST_PATH = 259
    assert typed(run.main, f"out={long}", "model=mlp", "tracking=off") == 1
"""


def test_a_persons_commands(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    (tmp_path / "commands.py").write_text(COMMANDS, encoding="utf-8")
    make_folder(tmp_path / "images")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "commands.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for study, count in (("quickstart", 2), ("folder-aux", 1)):
        states = [
            json.loads(file.read_text())["state"]
            for file in (tmp_path / "runs" / study).glob("*/status.json")
        ]
        assert states == ["finished"] * count
        assert (tmp_path / "runs" / study / "report.html").is_file()
    assert "stopped after step 1 of 3" in done.stdout
    assert "liu2023dropout" in done.stdout
    assert "and Windows allows 259: use a folder with a shorter path" in done.stderr
    assert "Traceback" not in done.stderr
