"""A notebook trains, shows its progress, is interrupted and goes on, and shows what it made."""

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

CELLS = [
    """
import os, signal
import torch
from torch import nn
import earlydrop
from earlydrop import experiment

WIDTH = 8

class Net(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, WIDTH),
            nn.Dropout(task.unit),
            nn.Linear(WIDTH, task.classes),
        )

    def forward(self, x):
        return self.layers(x)

overrides = [
    "data.train_images=200",
    "trainer.epochs=1",
    "trainer.batch_size=50",
    "trainer.log_every=1",
    "probe=none",
    "tracking=off",
    "schedule.cutoff=50%",
    "device=cpu",
]

def press_stop(step, metrics):
    if step == 2:
        os.kill(os.getpid(), signal.SIGINT)  # what the button of a notebook does
""",
    "experiment.train(overrides, model=Net, callbacks=[press_stop])",
    (
        "run = experiment.train(overrides, model=Net)\n"
        "print(list(run.metrics['step']), run.state, run.folder.name)\n"
        "run"
    ),
    "run.plot()",
    "earlydrop.early(0.1, '20%')",
    (
        "WIDTH = 9\n"
        "other = experiment.train(overrides, model=Net)\n"
        "print('another run:', other.folder != run.folder)"
    ),
    "experiment.compare([run, other])",
]


def texts(cell, name):
    return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == name)


def shown(cell):
    return next(output.data for output in cell.outputs if output.output_type == "execute_result")


@pytest.mark.slow
def test_a_notebook_trains_stops_and_goes_on(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    book.cells[1].metadata["tags"] = ["raises-exception"]
    nbclient.NotebookClient(
        book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    _, stopped, rest, picture, schedule, other, compared = book.cells
    assert "stopped after step 2 of 4; run the same command to resume" in texts(stopped, "stdout")
    assert stopped.outputs[-1].ename in ("Interrupted", "KeyboardInterrupt")
    assert "4/4" in texts(rest, "stderr")
    assert "[1, 2, 3, 4] finished" in texts(rest, "stdout")
    assert len(list((tmp_path / "runs" / "default").iterdir())) == 2
    assert "finished at step 4" in shown(rest)["text/html"]
    assert shown(picture)["image/png"]
    assert "<svg" in shown(schedule)["text/html"]
    assert "another run: True" in texts(other, "stdout")
    assert "<table" in shown(compared)["text/html"]
