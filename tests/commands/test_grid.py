"""``mode=plan`` of a sweep and of data that is not here: it runs, fetches and writes nothing."""

import socket

import pytest

from earlydrop.commands.run import main

SMALL = [
    "model=mlp",
    "model.hidden=[16]",
    "data.train_images=200",
    "trainer.epochs=1",
    "trainer.batch_size=50",
    "probe=none",
    "plan.images_per_second=100",
    "device=cpu",
]


@pytest.fixture
def earlydrop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def refuse(*_, **__):
        raise AssertionError("a plan went to the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["earlydrop", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


def lines(out):
    return {line[:13].strip(): line[13:] for line in out.splitlines() if line[:13].strip()}


def test_a_sweep_over_a_glob_is_planned(earlydrop):
    code, out, err = earlydrop("-m", *SMALL, "mode=plan", "augment=glob(*)", "study=s")
    assert code == 0, err
    assert "augment" in out
    assert lines(out)["total"].split()[0] == "3"


def test_a_sweep_is_planned_as_one(earlydrop, tmp_path):
    code, out, _ = earlydrop(
        "-m", *SMALL, "mode=plan", "schedule=none,late", "seed=0,1,2", "study=s"
    )
    assert code == 0
    said = lines(out)
    assert said["runs"] == "6 in runs/s"
    assert said["varies"] == "seed: 0, 1, 2"
    assert "schedule.name: none, late" in out
    assert said["arms"] == "none: 3 runs"
    assert "late-0.1-20%: 3 runs" in out
    # 200 training images, and 2,900 to evaluate after each of 4 steps, at 100 images a second. An
    # image to evaluate takes a third as long.
    hours = 6 * (200 + 4 * 2_900 / 3) / 100 / 3600
    assert float(said["total"].split(", ")[2].split()[0]) == pytest.approx(hours, rel=0.01)
    assert said["total"].startswith("6 runs, ")
    assert len(out.splitlines()) < 12
    assert list(tmp_path.iterdir()) == []


def test_what_would_be_refused_is_said_with_the_rest(earlydrop, tmp_path):
    code, out, err = earlydrop("-m", *SMALL, "mode=plan", "schedule=late", "schedule.rate=0.1,1.5")
    assert code == 1
    assert lines(out)["total"].startswith("1 run, ")
    assert "error: 1 of 2 jobs would be refused, such as" in err
    assert "rate is 1.5" in err
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_here_is_planned_by_its_published_sizes(earlydrop, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for more in (["data.root=data"], ["data.root=data", "data.download=true"]):
        code, out, err = earlydrop(
            "mode=plan",
            "data=cifar10",
            "model=mlp",
            "probe=none",
            "plan.images_per_second=100",
            *more,
        )
        assert code == 0, err
        assert "cifar10: 50,000 training and 10,000 test images" in out
        assert "not on this machine" in out
    code, _, err = earlydrop("mode=plan", "data=cifar10", "data.train_images=100000", "model=mlp")
    assert code == 1
    assert "data.train_images is 100000: cifar10 has 50000 training images of 10 classes" in err
    code, _, err = earlydrop("mode=plan", "data=cifar10", "data.image_size=64", "model=mlp")
    assert code == 1
    assert "data.image_size is 64: cifar10 has images of 32 pixels; leave it null" in err
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]


def test_data_that_is_not_here_is_fetched_when_asked_for_alone(earlydrop, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = earlydrop("data=cifar10", "model=mlp", "tracking=off")
    assert code == 1
    assert "fetch it with data.download=true, into ~/.cache/earlydrop/data" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


OWN = """
from torch import nn

def build(task, width: int = 8):
    first = nn.Linear(task.channels * task.image_size**2, width)
    last = nn.Linear(width, task.classes)
    return nn.Sequential(nn.Flatten(), first, nn.Dropout(task.unit), last)
"""


@pytest.fixture
def folder(tmp_path):
    for group, name, text in (
        (
            "experiment",
            "mine",
            "# @package _global_\n# My study of a small model. More.\nstudy: mine\nseed: 7\n",
        ),
        ("model", "small", "# Mine.\nname: ownnets:build\nargs: {width: 4}\n"),
        ("data", "few", "# Few images.\nname: fashion_mnist_mini\ntrain_images: 100\n"),
    ):
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / f"{name}.yaml").write_text(text)
    (tmp_path / "ownnets.py").write_text(OWN)
    return tmp_path


def test_a_folder_of_configurations_stands_beside_ours(earlydrop, folder):
    rest = [
        "mode=plan",
        "probe=none",
        "plan.images_per_second=100",
        "trainer.batch_size=50",
        "model.args.width=6",
        "trainer.epochs=1",
    ]
    code, out, err = earlydrop(
        "--config-dir", "own", "experiment=mine", "model=small", "data=few", *rest
    )
    assert code == 0, err
    assert "runs/mine/" in out
    assert "ownnets:build, 4,780 parameters" in out  # 784 x 6 + 6, 6 x 10 + 10
    assert "100 training and" in out
    assert "model.name=ownnets:build: ownnets.py, SHA-256" in out


def test_its_options_are_listed_and_meant(earlydrop, folder, capsys):
    code, _, _ = earlydrop("--config-dir=own", "model=smal")
    assert "did you mean small?" in str(code)
    code, _, _ = earlydrop("model=resnet18")
    assert "model.name= takes any model of timm or torchvision, or module:function" in str(code)
    from earlydrop.commands.list import main as show

    show(folders=[folder / "own"])
    out = capsys.readouterr().out
    assert "My study of a small model" in out
    assert "quickstart" in out


def test_what_a_run_would_refuse_is_refused_in_a_sweeps_plan(earlydrop):
    code, _, err = earlydrop("-m", *SMALL, "mode=plan", "plan.workers=3", "seed=0,1", "study=s")
    assert code == 1
    assert "2 of 2 jobs would be refused" in err
    assert "workers" in err


def test_a_sweep_without_m_says_so_beside_a_folder_of_configurations(earlydrop, tmp_path):
    (tmp_path / "own").mkdir()
    code, _, _ = earlydrop("--config-dir", "own", "seed=1,2")
    assert code == "error: seed=1,2 is a sweep: add -m"


def test_a_group_is_not_null(earlydrop):
    code, _, _ = earlydrop("tracking=null")
    assert "tracking=null: there is no such option" in str(code)
