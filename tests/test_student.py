"""A student's tasks from an empty folder outside the repository, each in under ten lines."""

import os
import shlex
import subprocess
import sys

import pytest

from earlydrop.analysis import load_runs

# Added to a student's command, so that a test is quick.
SHORT = "tracking=off trainer.steps=2 trainer.batch_size=8 probe=none device=cpu"
MODEL = """
from torch import nn

def build(task, width: int = 16):
    inputs = task.channels * task.image_size**2
    hidden = nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(task.unit)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, task.classes))
"""
DATA = """
import torch

def faces(count: int = 60):
    images, labels = torch.rand(count, 1, 8, 8), torch.arange(count) % 3
    train = torch.utils.data.TensorDataset(images, labels)
    return train, torch.utils.data.TensorDataset(images[:30], labels[:30])
"""
SCHEDULE = """
def falling(peak: float, total_steps: int):
    return lambda step: peak * (1 - step / total_steps)
"""
LIGHTNING = """
import lightning, torch, torch.nn as nn, torch.utils.data as data
from earlydrop.integrations.lightning import ProbeCallback
class Module(lightning.LightningModule):
    training_step = lambda self, batch: nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    configure_optimizers = lambda self: torch.optim.AdamW(self.parameters())
module, loader = Module(), data.DataLoader([(torch.rand(1, 8, 8), i % 3) for i in range(64)], 8)
module.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.1), nn.Linear(8, 3))
lightning.Trainer(max_epochs=2, callbacks=[ProbeCallback(every=2, batches=3)]).fit(module, loader)
"""
NOTEBOOK = """
from earlydrop import experiment
import mymodel
run = experiment.train("data.name=mydata:faces schedule.rate=0.2", model=mymodel.build)
run.plot()
"""


class Folder:
    """The student's folder: what is written into it and typed in it, line by line."""

    def __init__(self, path, warm):
        self.path, self.warm, self.lines = path, warm, 0

    def write(self, name, text):
        self.lines += sum(bool(line.strip()) for line in text.splitlines())
        (self.path / name).write_text(text)

    def type(self, line, short=""):
        self.lines += 1
        program, *words = shlex.split(f"{line} {short}")
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("WANDB")
        }
        if program == "python":
            done = subprocess.run(
                [sys.executable, *words],
                cwd=self.path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        else:
            command = program.replace("earlydrop-", "earlydrop.commands.")
            done = self.warm.run(*words, cwd=self.path, env=environment, program=command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def task(self):
        """What the last task took, in lines."""
        took, self.lines = self.lines, 0
        assert 0 < took < 10, took
        return took


@pytest.mark.slow
def test_a_students_tasks(tmp_path, warm):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    import nbclient
    import nbformat
    import timm
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    here = Folder(tmp_path, warm)
    here.write("mymodel.py", MODEL)
    assert "test/accuracy" in here.type(
        "earlydrop model.name=mymodel:build +model.args.width=8", f"data.train_images=100 {SHORT}"
    )
    here.task()

    here.write("mydata.py", DATA)
    assert "test/accuracy" in here.type(
        "earlydrop data.name=mydata:faces model=mlp", f"model.hidden=[8] {SHORT}"
    )
    here.task()

    here.write("myschedule.py", SCHEDULE)
    assert "test/accuracy" in here.type(
        "earlydrop schedule.name=myschedule:falling +schedule.args.peak=0.2 model=mlp",
        f"data.train_images=100 model.hidden=[8] {SHORT}",
    )
    here.task()

    own = "model.name=mymodel:build data.name=mydata:faces"
    here.type(f"earlydrop -m study=mine {own} schedule.name=none,early,late seed=0,1", SHORT)
    here.task()
    assert set(load_runs(tmp_path / "runs" / "mine")["state"]) == {"finished"}
    assert len(load_runs(tmp_path / "runs" / "mine")) == 6

    (tmp_path / "runs" / "mine" / "report.html").unlink()
    assert "late-0.1-20%" in here.type("earlydrop-report runs/mine")
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    here.task()

    tuned = here.type(
        f"earlydrop -m study=tuned {own} hydra/sweeper=optuna hydra.sweeper.n_trials=2 "
        "objective=test/loss "
        "'schedule.rate=interval(0.1,0.5)' 'schedule.cutoff=choice(50%,100%)'",
        SHORT,
    )
    assert "Best value" in tuned
    here.task()

    torch.save(
        timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "theirs.pth"
    )
    said = here.type(
        "earlydrop model.name=test_resnet model.pretrained=theirs.pth",
        f"data.train_images=100 {SHORT}",
    )
    assert "begins with" in said
    assert "new, for 10 classes: fc.weight, fc.bias (7 classes there)" in said
    here.task()

    here.write("train.py", LIGHTNING)
    here.type("python -W ignore train.py")
    here.task()
    logged = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"))
    logged.Reload()
    assert [event.step for event in logged.Scalars("probe/gdv")] == list(range(0, 17, 2))

    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(NOTEBOOK.replace('rate=0.2"', f'rate=0.2 {SHORT}"'))]
    )
    nbclient.NotebookClient(
        book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    here.lines += len(NOTEBOOK.strip().splitlines())
    here.task()
    assert book.cells[0].outputs[-1].data["image/png"]
