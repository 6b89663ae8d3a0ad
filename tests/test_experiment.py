"""Training and comparing runs from Python."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import earlydrop
from earlydrop import experiment
from earlydrop.commands.cite import citation
from earlydrop.commands.reproduce import reproduce
from earlydrop.commands.run import main
from earlydrop.training.fields import ConfigError
from earlydrop.training.record.folder import read_metrics
from earlydrop.training.trainer import Trainer

SMALL = [
    "tracking=off",
    "model=mlp",
    "model.hidden=[16]",
    "data.train_images=200",
    "trainer.epochs=1",
    "trainer.batch_size=50",
    "trainer.log_every=1",
    "probe=none",
    "device=cpu",
    "schedule.cutoff=50%",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(*more):
    return [each for each in SMALL if not each.startswith("model")] + list(more)


class Net(nn.Module):
    def __init__(self, width=8, rate=0.3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, width), nn.Dropout(rate), nn.Linear(width, 10)
        )

    def forward(self, x):
        return self.layers(x)


def build(task, width: int = 8):
    return Net(width, task.unit)


class Faces(Dataset):
    def __init__(self, seed):
        self.images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 3


def test_compose_gives_what_the_command_line_would():
    config = experiment.compose(["schedule=late", "schedule.rate=0.25", "trainer.epochs=3"])
    assert (config.schedule.name, config.schedule.rate, config.trainer.epochs) == ("late", 0.25, 3)
    assert experiment.compose("schedule=late schedule.rate=0.25 trainer.epochs=3") == config
    assert experiment.compose("model.name=mymodels:build model.args.width=64").model.args == {
        "width": 64
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["schedule.rat=0.2"],
            r"schedule.rat is not a key of the configuration: did you mean schedule.rate\?",
        ),
        (["schedule=erly"], r"schedule=erly: there is no such option: did you mean early\?"),
        (
            ["schedule=none,early"],
            "sweep over schedule: give one value of each, such as schedule=...",
        ),
        (["experiment=quickstart"], "sweep over schedule"),
        (["trainer.epochs=many"], "trainer.epochs"),
        (["-m", "seed=1"], "'-m', a flag of the command: expected key=value"),
        ([3], "overrides holds 3: expected strings"),
    ],
    ids=str,
)
def test_what_a_command_line_would_refuse_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        experiment.compose(overrides)


def test_an_experiment_that_sweeps_is_one_run_once_its_keys_are_given():
    assert experiment.compose("experiment=quickstart schedule=late seed=5").seed == 5


def test_a_run_from_python_is_the_commands_run(monkeypatch, here):
    run = experiment.train([*SMALL, "seed=5001"])
    assert run.state == "finished"
    assert list(run.metrics["step"]) == [1, 2, 3, 4]
    assert run.final["test/loss"] == run.metrics["test/loss"].dropna().iloc[-1]
    monkeypatch.setattr("sys.argv", ["earlydrop", *SMALL, "seed=5001", "out=other"])
    with pytest.raises(SystemExit):
        main()
    (folder,) = (here / "other" / "default").iterdir()
    assert folder.name == run.folder.name
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(run.folder / "metrics.jsonl")


def test_a_finished_run_is_not_trained_again(monkeypatch, capsys):
    config = experiment.compose(SMALL)
    first = experiment.train(config)
    monkeypatch.setattr(Trainer, "train", None)
    assert experiment.train(config).final == first.final
    assert "finished before" in capsys.readouterr().out


def test_the_model_of_a_run_has_its_last_weights(here):
    run = experiment.train([*SMALL, "trainer.stop_metric=test/loss"])
    model = run.model()
    assert not model.training
    last = torch.load(
        sorted((run.folder / "checkpoints").glob("step-*.pt"))[-1], weights_only=True
    )["model"]
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    assert run.model(best=True)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    again = experiment.Run(run.folder)
    assert torch.equal(again.model()(torch.ones(1, 1, 28, 28)), model(torch.ones(1, 1, 28, 28)))


def test_a_run_is_drawn_and_shown():
    run = experiment.train(SMALL)
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert len(run.plot("test/loss", "train/loss").axes) == 2
    with pytest.raises(ValueError, match="no run measured test/los; the metrics of these runs are"):
        run.plot("test/los")
    assert "finished at step 4" in repr(run)
    assert "test accuracy" in run._repr_html_()


def test_a_builder_of_a_file_is_named_as_on_the_command_line(here):
    run = experiment.train(own("model.args.width=4", "trainer.steps=2"), model=build)
    assert run.config.model.name == f"{__name__}:build"
    assert run.model()(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_a_module_is_trained_from_its_own_weights_in_a_copy():
    torch.manual_seed(1)
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = experiment.train(own("trainer.steps=2", "schedule.rate=0.2"), model=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert type(net.layers[2]) is nn.Dropout
    assert run.metrics["dropout/unit_rate"].iloc[0] == 0.2
    trained = run.model()
    assert earlydrop.model_distance(trained, net) == pytest.approx(
        run.final["model/distance"], rel=1e-5
    )
    with pytest.raises(
        ConfigError, match=r"was given as an object in Python.*give it to train\(\) again"
    ):
        experiment.Run(run.folder).model(trust=True)


def test_no_command_repeats_a_run_whose_model_was_given_as_an_object(here):
    run = experiment.train(own("trainer.steps=1"), model=Net())
    assert "No command reproduces it: its model was given as an object in Python." in citation(
        run.folder
    )
    with pytest.raises(
        ConfigError,
        match=r"model.name=__main__:Net_.* was given as an object in Python, .*: run the script",
    ):
        reproduce(run.folder, here / "again", trust=True)


def test_other_weights_or_another_structure_are_another_run():
    torch.manual_seed(1)
    net, same_structure, wider, other_rate = Net(), Net(), Net(9), Net(8, 0.4)
    overrides = own("trainer.steps=1")
    folders = [
        experiment.train(overrides, model=each).folder
        for each in (net, net, same_structure, wider, other_rate)
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4
    names = [experiment.Run(folder).config.model.name for folder in folders]
    assert names[0] == names[2]  # initial weights differ between seeds of one arm
    assert len(set(names)) == 3


def test_a_modules_dropout_is_off_where_nothing_schedules_it():
    run = experiment.train(own("trainer.steps=1", "schedule=none"), model=Net())
    assert run.metrics["dropout/unit_rate"].iloc[0] == 0

    def fixed(task):
        return Net(8, 0.5)

    with pytest.raises(
        ConfigError,
        match=r"layers.2 drops at 0.5, which schedule.name=none of kind unit does not drive",
    ):
        experiment.train(own("trainer.steps=1", "schedule=none"), model=fixed)


def test_what_a_builder_closes_over_tells_two_of_them_apart():
    def of(width):
        return lambda task: Net(width, task.unit)

    folders = {
        experiment.train(own("trainer.steps=1"), model=of(width)).folder for width in (4, 5, 4)
    }
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "a name is given as an override, model.name=resnet18"),
        (3, "model is a int: expected a torch.nn.Module, or a function that builds one"),
        (nn.Linear, "whose first parameter is not named task"),
        (lambda task: 3, "it returned a int, expected a torch.nn.Module"),
        (lambda task: nn.Flatten(), "expected"),
        (lambda: Net(), "drops at 0.3|layers.2"),
    ],
    ids=["name", "number", "installed", "no module", "no scores", "without task"],
)
def test_what_is_no_model_is_refused_before_a_folder_is_made(model, message, here):
    with pytest.raises(ConfigError, match=message):
        experiment.train(own("trainer.steps=1", "schedule=none"), model=model)
    assert not list(here.rglob("status.json"))


def test_what_no_digest_can_be_made_of_is_refused():
    lock = threading.Lock()

    def locked(task):
        with lock:
            return build(task)

    with pytest.raises(ConfigError, match=r"uses .*locked: lock, a lock, which cannot be hashed"):
        experiment.train(own("trainer.steps=1"), model=locked)
    driven = Net()
    earlydrop.DropoutScheduler(driven, earlydrop.constant(0.1))
    with pytest.raises(ConfigError, match=r"driven already: call restore\(\) of its scheduler"):
        experiment.train(own("trainer.steps=1"), model=driven)


def test_data_is_given_as_datasets_or_as_tensors():
    pair = Faces(0), Faces(1)
    labels = torch.arange(60) % 3
    tensors = ((pair[0].images, labels), (pair[1].images, labels))
    overrides = [each for each in SMALL if not each.startswith("data")] + ["trainer.batch_size=20"]
    runs = [
        experiment.train(overrides, data=each)
        for each in (pair, {"train": pair[0], "test": pair[1]}, tensors)
    ]
    assert runs[0].folder == runs[1].folder
    assert [run.final["test/loss"] for run in runs] == [runs[0].final["test/loss"]] * 3
    arrays = tuple(
        (each[0].permute(0, 2, 3, 1).numpy(), each[1].numpy()) for each in tensors
    )  # channels last
    assert experiment.train(overrides, data=arrays).final["test/loss"] == runs[0].final["test/loss"]
    flipped = [(images[:, ::-1], labels) for images, labels in arrays]
    copied = [(np.ascontiguousarray(images), labels) for images, labels in flipped]
    folders = {experiment.train(overrides, data=data).folder for data in (flipped, copied)}
    assert len(folders) == 1
    other = experiment.train(overrides, data=(Faces(0), Faces(2)))
    assert other.folder != runs[0].folder
    assert other.config.data.name != runs[0].config.data.name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("cifar10", "a name is given as an override, data.name=cifar10"),
        (3, "it is a int; expected a pair of datasets"),
        (
            torch.utils.data.DataLoader(Faces(0)),
            "data is a DataLoader: expected a pair of datasets",
        ),
        (((torch.zeros(4, 1, 8, 8), torch.zeros(3)), None), "4 images and 3 labels"),
        ((Faces(0), []), "its test set is empty"),
        (
            ((np.zeros((2, 1, 8, 8)), np.array(["cat", "dog"])), None),
            "data has an array of <U3: expected numbers; number the classes from 0",
        ),
    ],
    ids=["name", "number", "loader", "lengths", "empty", "strings"],
)
def test_what_is_no_data_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        experiment.train(SMALL, data=data)


def test_callbacks_hear_of_every_metric_and_can_stop_the_run():
    heard = []

    def watch(step, metrics):
        heard.append((step, metrics["train/loss"]))
        return step == 2

    run = experiment.train(SMALL, callbacks=[watch])
    assert (run.state, run.step) == ("interrupted", 2)
    assert heard == [(1, run.metrics["train/loss"][0]), (2, run.metrics["train/loss"][1])]
    rest = experiment.train(
        SMALL, callbacks=[lambda step, metrics: heard.append((step, metrics["train/loss"]))]
    )
    assert rest.folder == run.folder
    assert [step for step, _ in heard] == [1, 2, 3, 4]
    whole = experiment.train([*SMALL, "out=whole"])
    assert read_metrics(whole.folder / "metrics.jsonl") == read_metrics(
        rest.folder / "metrics.jsonl"
    )
    with pytest.raises(ConfigError, match="callbacks holds a int: expected functions"):
        experiment.train(SMALL, callbacks=[3])
    with pytest.raises(ConfigError, match="callbacks is None: expected a list"):
        experiment.train(SMALL, callbacks=None)


def test_ctrl_c_saves_and_the_same_call_goes_on(monkeypatch, capsys):
    original = Trainer.train_step

    def train_step(self, parts):
        original(self, parts)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(SMALL)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopped after step 2 of 4; run the same command to resume" in capsys.readouterr().out
    monkeypatch.setattr(Trainer, "train_step", original)
    run = experiment.train(SMALL)
    whole = experiment.train([*SMALL, "out=whole"])
    assert read_metrics(run.folder / "metrics.jsonl") == read_metrics(
        whole.folder / "metrics.jsonl"
    )


def state():
    import logging

    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        [
            (log.level, log.propagate, list(log.handlers))
            for log in map(logging.getLogger, ("earlydrop", None))
        ],
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        os.getcwd(),
        list(sys.path),
    )


def test_two_runs_in_one_process_are_independent(capsys):
    before = state()
    first = experiment.train([*SMALL, "threads=2", "seed=5002"])
    assert state() == before
    experiment.train([*SMALL, "schedule=constant", "seed=5003", "trainer.deterministic=true"])
    assert state()[4:] == before[4:]
    torch.rand(7)  # whatever the caller draws
    again = experiment.train([*SMALL, "threads=2", "seed=5002", "out=again"])
    assert read_metrics(first.folder / "metrics.jsonl") == read_metrics(
        again.folder / "metrics.jsonl"
    )
    with pytest.raises(ConfigError):
        experiment.train([*SMALL, "schedule.rate=2"])
    config = experiment.compose(own("trainer.steps=1"))
    experiment.train(config, model=build)
    assert config.model.name == "vit_micro"  # the caller's configuration stays


def test_somebodys_own_wandb_run_goes_on(here, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(here), project="mine") as mine:
        experiment.train([*SMALL, "tracking=offline", "trainer.steps=1"])
        assert wandb.run is mine
        mine.log({"after": 1.0})
        assert mine.summary["after"] == 1.0
    wandb.teardown()


def test_runs_are_loaded_and_compared(study):
    runs = experiment.load_runs(study)
    found = experiment.compare(runs)
    losses = found.differences[found.differences["metric"] == "train_eval loss"].to_dict("records")
    assert losses[0]["difference"] == pytest.approx(-0.1)  # as the study was made
    assert (losses[0]["arm"], losses[0]["seeds"]) == ("early-0.1-20%", 3)
    reverse = experiment.compare(study, against="early-0.1-20%").differences
    assert reverse[reverse["metric"] == "train_eval loss"]["difference"].iloc[0] == pytest.approx(
        0.1
    )
    for text in (str(found), found._repr_html_()):
        assert "early-0.1-20% minus none" in text
    with pytest.raises(
        ValueError,
        match=(
            r"against is 'erly-0.1-20%': expected an arm of these runs: "
            r"did you mean early-0.1-20%\?"
        ),
    ):
        experiment.compare(runs, against="erly-0.1-20%")


def test_runs_in_a_list_are_compared():
    runs = [
        experiment.train([*SMALL, f"schedule={name}", f"seed={seed}"])
        for name in ("none", "early")
        for seed in (0, 1)
    ]
    found = experiment.compare(runs)
    losses = [
        runs[2 + seed].final["train_eval/loss"] - runs[seed].final["train_eval/loss"]
        for seed in (0, 1)
    ]
    rows = found.differences.set_index("metric")
    assert rows.loc["train_eval loss", "difference"] == pytest.approx(np.mean(losses))
    assert "no arm shares two finished seeds" in str(experiment.compare(runs[:1]))


@pytest.mark.parametrize("runs", [3, [], ["runs"], None])
def test_what_is_no_run_is_not_compared(runs):
    with pytest.raises(ValueError, match=r"runs is .*: expected a folder, the table of load_runs"):
        experiment.compare(runs)


def test_a_run_before_its_first_line_of_metrics_has_none():
    run = experiment.train(SMALL)
    (run.folder / "metrics.jsonl").write_text("")
    assert list(run.metrics.columns) == ["step"]
    assert run.final == {}


@pytest.mark.parametrize("answer", [True, np.True_])
def test_a_callback_stops_the_run_with_true_of_python_or_numpy(answer):
    def stop(step, metrics):
        return answer if step == 2 else np.False_

    assert experiment.train(SMALL, callbacks=[stop]).state == "interrupted"


def test_a_model_with_a_part_called_module_trains():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Net()

        def forward(self, x):
            return self.module(x)

    run = experiment.train(own("schedule=early"), model=Wrapped())
    assert run.final["model/distance"] > 0


def test_a_run_from_elsewhere_imports_nothing_without_trust(here, monkeypatch):
    (here / "theirs.py").write_text(
        "from torch import nn\n"
        "def build(task):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    run = experiment.train(own("trainer.steps=1", "schedule=none", "model.name=theirs:build"))
    with pytest.raises(
        ConfigError,
        match=r"names code that is not earlydrop's \(model.name=theirs:build\).*trust=True",
    ):
        experiment.Run(run.folder).model()
    assert experiment.Run(run.folder).model(trust=True)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: setattr(config.trainer, "epoch", 3),
            r"config.trainer.epoch is set, and there is no such key: did you mean epochs\?",
        ),
        (
            lambda config: setattr(config, "sed", 3),
            r"config.sed is set, and there is no such key: did you mean seed\?",
        ),
        (lambda config: setattr(config.schedule, "rate", "high"), "schedule.rate: Value 'high'"),
        (lambda config: setattr(config, "schedule", earlydrop.early(0.1, 5)), "schedule"),
    ],
    ids=["key", "top", "type", "group"],
)
def test_a_configuration_that_was_changed_is_checked(change, message, here):
    config = experiment.compose(SMALL)
    change(config)
    with pytest.raises(ConfigError, match=message):
        experiment.train(config)
    assert not (here / "runs").exists()


def test_words_are_split_as_in_a_shell():
    config = experiment.compose(
        "schedule=piecewise schedule.points='\"0,0.3@0.5,0\"' label='my run'"
    )
    assert (config.schedule.points, config.label) == ("0,0.3@0.5,0", "my run")
    with pytest.raises(ConfigError, match="overrides is a dict: expected a list of strings"):
        experiment.compose({"seed": 1})


def test_what_train_does_not_do_is_refused(here):
    with pytest.raises(
        ConfigError,
        match=r"mode is 'plan': train\(\) accepts only mode=train; use the command earlydrop",
    ):
        experiment.train([*SMALL, "mode=plan"])
    with pytest.raises(ConfigError, match=r"provenance.json is missing or damaged"):
        experiment.Run(here)


def test_without_the_training_extra_it_says_what_to_install():
    code = """
    import importlib.util
    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "hydra" else real(name, *rest)
    import earlydrop
    assert "experiment" in dir(earlydrop)
    earlydrop.experiment
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert (
        "hydra missing: earlydrop.experiment needs more than the library; "
        "pip install 'earlydrop[train]'"
    ) in done.stderr
