"""Somebody's own model, data, schedule and measures, named from outside; and what is refused."""

import functools
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from earlydrop.claims.summaries import collect
from earlydrop.commands import cite, reproduce
from earlydrop.commands.list import list_studies
from earlydrop.commands.report import write_report
from earlydrop.training import models, plugins
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.fields import ConfigError
from earlydrop.training.outside import names_of
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.folder import read_metrics
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.own_code import DATA, MODELS, SCHEDULES, write


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "student"
    folder.mkdir()
    write(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in ("mymodels", "myschedules", "mydata", "mymeasures", "helper", "evil"):
        sys.modules.pop(name, None)


@pytest.fixture
def own(config, here):
    """A configuration of own code that trains in a moment."""
    base = {
        "model__name": "mymodels:build",
        "model__hidden": None,
        "data__name": "mydata:faces",
        "data__train_images": None,
        "trainer__epochs": 1,
        "trainer__batch_size": 16,
        "trainer__log_every": 2,
        "augment__shift": 1,
        "augment__flip": False,
        "probe__at": [],
        "schedule__name": "myschedules:falling",
        "schedule__args": {"peak": 0.25},
    }
    return lambda **overrides: config(**(base | overrides))


def test_all_four_train_together(own):
    settings = own(
        probe__at=["0%"],
        probe__measures=["mymeasures:spread", "mymeasures:sharpness"],
        model__args={"width": 5},
    )
    folder = Path(run(settings)["folder"])
    lines = read_metrics(folder / "metrics.jsonl")
    assert lines[0]["probe/spread"] == pytest.approx(4 * lines[0]["probe/gde"])
    assert 0 < lines[0]["probe/sharpness"] < 5
    assert [line["dropout/unit_rate"] for line in lines if "train/loss" in line] == pytest.approx(
        [0.25 * 3 / 4, 0.25 * 1 / 4]
    )
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["code"]["model.name"]["name"] == "mymodels:build"
    assert set(provenance["code"]["model.name"]["files"]) == {"mymodels"}
    assert folder.name.startswith("falling-0.25-seed0-")
    model, _ = scheduled_model(make_plan(settings))
    assert model[1].out_features == 5


def test_probing_with_own_measures_leaves_training_as_it_was(own):
    plain = run(own())
    probed = run(own(probe__at=["0%", "50%"], probe__measures=["mymeasures:sharpness"]))
    assert plain["train_eval/loss"] == probed["train_eval/loss"]


def test_a_schedule_of_ours_may_be_returned_and_takes_the_keys_of_its_parameters(own):
    plan = make_plan(
        own(
            schedule__name="myschedules:short",
            schedule__args={},
            schedule__rate=0.5,
            schedule__cutoff="50%",
        )
    )
    assert [plan.schedule(step) for step in range(4)] == [0.5, 0.0, 0.0, 0.0]
    assert repr(plan.schedule) == "myschedules:short(rate=0.5, cutoff='50%')"


def test_a_model_without_dropout_trains_without_it_alone(own):
    with pytest.raises(ConfigError, match=r"Sequential has no unit site to drive.*schedule=none$"):
        run(own(model__name="mymodels:plain"))
    assert (
        run(own(model__name="mymodels:plain", schedule__name="none", schedule__args={}))["state"]
        == "finished"
    )


def test_changed_code_trains_again_and_unchanged_code_does_not(own, here, capsys):
    first = run(own())
    assert run(own())["state"] == "skipped"
    (here / "mymodels.py").write_text(MODELS.replace("nn.ReLU()", "nn.Tanh()"))
    again = run(own())
    assert again["state"] == "finished"
    assert again["folder"] != first["folder"]
    assert again["train_eval/loss"] != first["train_eval/loss"]
    assert run(own())["state"] == "skipped"


def test_what_a_module_imports_from_beside_it_counts_too(own, here):
    (here / "helper.py").write_text("WIDTH = 8\n")
    (here / "mymodels.py").write_text("from helper import WIDTH\n" + MODELS)
    before = make_plan(own())
    assert set(before.code["model.name"].files) == {"mymodels", "helper"}
    (here / "helper.py").write_text("WIDTH = 9\n")
    assert make_plan(own()).fingerprint != before.fingerprint


def test_a_builder_put_into_the_registry_from_outside_counts_by_its_source(
    config, here, monkeypatch
):
    monkeypatch.syspath_prepend(str(here))
    import mymodels

    monkeypatch.setitem(models.BUILDERS, "student", functools.partial(mymodels.build, width=4))
    settings = {
        "model__name": "student",
        "model__hidden": None,
        "probe__at": [],
        "trainer__epochs": 1,
    }
    before = make_plan(config(**settings))
    assert make_plan(config()).code == {}
    (here / "mymodels.py").write_text(MODELS + "\n# changed\n")
    assert make_plan(config(**settings)).fingerprint != before.fingerprint
    assert names_of(config(**settings)) == []


def test_code_changed_between_stop_and_resume_is_not_begun_anew_in_silence(own, here, monkeypatch):
    original = Trainer.train_step

    def stop_at_two(self, parts):
        original(self, parts)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", stop_at_two)
    with pytest.raises(Interrupted):
        run(own(threads=1))
    monkeypatch.setattr(Trainer, "train_step", original)
    (here / "mymodels.py").write_text(MODELS.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(
        ConfigError,
        match=(
            r"mymodels:build changed since .* began, and that run is not finished: "
            r"put the code back.*resume=never"
        ),
    ):
        run(own(threads=1))
    folders = list((Path(own(threads=1).out) / "default").iterdir())
    assert len(folders) == 1
    (here / "mymodels.py").write_text(MODELS)
    with pytest.raises(ConfigError, match="was last saved in another environment"):
        run(own(threads=2))
    (here / "mymodels.py").write_text(MODELS.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(ConfigError, match="mymodels:build changed since"):
        run(own(threads=1))
    assert run(own(resume="never", threads=1))["state"] == "finished"
    (here / "mymodels.py").write_text(MODELS)
    # The same code under another label is no reason to refuse.
    assert run(own(label="another", threads=1))["folder"] != str(folders[0])
    assert run(own(threads=1))["folder"] == str(folders[0])


LINES = [
    ({"model__name": "nomodels:build"}, r"there is no module 'nomodels' in this folder"),
    ({"model__name": "mymodels.py:build"}, r"there is no module 'mymodels.py'"),
    ({"model__name": "mymodels:"}, r"expected module:function, such as mymodels:build"),
    ({"model__name": "mymodels:biuld"}, r"mymodels.py has no 'biuld': did you mean build\?"),
    ({"model__name": "mymodels:nn"}, r"nn is a module, expected a function or a class"),
    ({"model__name": "sys:exit"}, r"there is no module 'sys'"),
    (
        {"model__args": {"widht": 3}},
        r"model.args.widht is 3: .* has no such argument, it takes width: did you mean width\?",
    ),
    ({"model__args": {"width": 2.5}}, r"model.args.width is 2.5: expected int"),
    ({"model__args": {"width": True}}, r"model.args.width is True: expected int"),
    (
        {"model__args": {"width": {"a": 1}}},
        r"model.args.width is {'a': 1}: expected a number, a text",
    ),
    ({"model__depth": 3}, r"model.depth is 3: model.name=mymodels:build has no such key"),
    ({"data__args": {"count": "many"}}, r"data.args.count is 'many': expected int"),
    ({"data__root": "."}, r"data.root is '.': data.name=mydata:faces has no such argument"),
    (
        {"schedule__args": {}},
        (
            r"schedule.name is 'myschedules:falling': it needs 'peak'; "
            r"give it with \+schedule.args.peak="
        ),
    ),
    ({"schedule__args": {"peak": 1.5}}, r"at step 0 its rate is 1.5"),
    ({"schedule__args": {"peak": float("nan")}}, r"at step 0 its rate is nan"),
    (
        {"schedule__name": "early_", "schedule__args": {}},
        r"expected one of none, .*: did you mean early\?",
    ),
    (
        {"probe__measures": ["mymeasures:spred"], "probe__at": ["0%"]},
        r"has no 'spred': did you mean spread\?",
    ),
    (
        {"probe__measures": ["gdv"], "probe__at": ["0%"]},
        r"probe.measures has 'gdv': earlydrop records this measure without being asked$",
    ),
    (
        {"probe__measures": ["gdw"], "probe__at": ["0%"]},
        r"probe.measures has 'gdw': expected module:function of your own: did you mean gdv\?",
    ),
    (
        {"probe__measures": ["mydata:Faces"], "probe__at": ["0%"]},
        r"it takes train, count, of which train, count without a default; expected one parameter",
    ),
    (
        {"probe__measures": ["mymeasures:by_name"], "probe__at": ["0%"]},
        r"it takes moments, of which moments without .* expected one parameter .* by position",
    ),
    (
        {"probe__measures": ["mymeasures:by_position"], "probe__at": ["0%"]},
        r"it takes model, of which model .* or one or more of model, loss_fn, batches, by name",
    ),
    (
        {"probe__measures": ["mymeasures:critical_sharpness"], "probe__at": ["0%"]},
        r"there is a measure 'critical_sharpness' already",
    ),
    (
        {"probe__measures": ["mymeasures:largest"], "probe__at": ["0%"]},
        r"probe.measures has 'mymeasures:largest': its signature cannot be read",
    ),
    (
        {"probe__measures": ["mymeasures:mixed"], "probe__at": ["0%"]},
        r"it takes moments, model, of which moments without a default; expected one parameter",
    ),
]
MODULES = [
    (
        "mymodels",
        "import not_there\n",
        (
            r"importing mymodels raised ModuleNotFoundError: "
            r"No module named 'not_there' \(mymodels.py, line 1\)"
        ),
    ),
    ("mymodels", "def build(:\n", r"importing mymodels raised SyntaxError"),
    ("mymodels", "raise SystemExit(3)\n", r"importing mymodels raised SystemExit: 3"),
    (
        "mymodels",
        "def build(task):\n    return 3\n",
        r"it returned a int, expected a torch.nn.Module",
    ),
    ("mymodels", "def build():\n    return 3\n", r"takes no argument for the Task"),
    (
        "mymodels",
        "def build(task, depth):\n    return 3\n",
        r"it needs 'depth'; give it with \+model.args.depth=",
    ),
    (
        "mymodels",
        "def build(task):\n    return {}['a']\n",
        r"building it raised KeyError: 'a' \(mymodels.py, line 2\)",
    ),
    (
        "mymodels",
        MODELS.replace("nn.ReLU()", "nn.Threshold(0, float('nan'))"),
        r"it gives nan for a blank example; fix the model",
    ),
    (
        "mymodels",
        MODELS.replace("nn.Dropout(task.unit)", "nn.Dropout(0.0)"),
        r"sites of Sequential were built with rate 0",
    ),
    (
        "mymodels",
        MODELS.replace("task.classes)]", "task.classes + 1)]"),
        r"gives scores of shape \(1, 4\) for one example, expected \(1, 3\)",
    ),
    (
        "mymodels",
        MODELS.replace("nn.Linear(inputs,", "nn.Linear(inputs + 1,"),
        r"an input of shape \(1, 1, 8, 8\) raised RuntimeError",
    ),
    ("mydata", DATA.replace("def __len__", "def length"), r"its train set, a Faces, has no length"),
    (
        "mydata",
        DATA.replace("index % 3", "index % 3 - 1"),
        r"the label of train\[0\] is -1, expected a class from 0 on",
    ),
    (
        "mydata",
        DATA.replace("self.images[index],", "self.images[index] / 0 * 0,"),
        r"train\[0\] holds NaN or infinity",
    ),
    (
        "mydata",
        DATA.replace("1, 8, 8,", "1, 8, 6,"),
        r"its train images have shape \(1, 8, 6\), expected square ones",
    ),
    ("mydata", "def faces():\n    return 3\n", r"it returned a int; expected a pair of datasets"),
    (
        "mydata",
        "def faces():\n    return open('/nowhere')\n",
        r"reading it raised FileNotFoundError.*\(mydata.py, line 2\)",
    ),
    (
        "myschedules",
        SCHEDULES.replace("lambda step: peak", "peak and (lambda: 3) and peak"),
        r"raised|expected a function of the step",
    ),
    (
        "myschedules",
        SCHEDULES.replace("lambda step: peak * (1 - step / total_steps)", "peak"),
        r"returned a float, expected a function of the step",
    ),
    (
        "myschedules",
        SCHEDULES.replace("(1 - step / total_steps)", "[][step]"),
        r"at step 0 it raised IndexError.*\(myschedules.py, line 5\)",
    ),
    (
        "myschedules",
        SCHEDULES.replace("peak * (1 - step / total_steps)", "__import__('torch').zeros(2)"),
        r"at step 0 it raised RuntimeError: a Tensor with 2 elements",
    ),
]


@pytest.mark.parametrize(("options", "says"), LINES, ids=[says[:40] for _, says in LINES])
def test_what_cannot_be_is_a_line_before_the_folder(own, options, says):
    refused(own(**options), says)


@pytest.mark.parametrize(
    ("module", "text", "says"), MODULES, ids=[says[:40] for *_, says in MODULES]
)
def test_a_module_that_cannot_be_used_is_a_line_before_the_folder(own, here, module, text, says):
    (here / f"{module}.py").write_text(text)
    refused(own(), says)


def refused(settings, says):
    with pytest.raises(ConfigError, match=says) as error:
        run(settings)
    assert len(str(error.value).splitlines()) == 1
    assert not Path(settings.out).exists()


def test_a_measure_that_gives_nan_fails_the_run_by_its_name(own, here):
    (here / "mymeasures.py").write_text("def nothing(moments):\n    return float('nan')\n")
    with pytest.raises(
        TrainingFailed,
        match=r"the measure mymeasures:nothing gave nan; return None if it is not defined",
    ):
        run(own(probe__at=["0%"], probe__measures=["mymeasures:nothing"]))


def test_reading_a_folder_from_elsewhere_imports_nothing_that_it_names(
    own, here, monkeypatch, capsys
):
    """A module that leaves a file when it is imported.

    Reading and drawing runs leaves no file, and reproducing asks first.
    """
    mark = here / "imported"
    for name, text in {"mymodels": MODELS, "mydata": DATA, "myschedules": SCHEDULES}.items():
        (here / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n" + text)
    folder = Path(run(own())["folder"])
    assert mark.exists()
    mark.unlink()
    for name in ("mymodels", "mydata", "myschedules"):
        sys.modules.pop(name)
    write_report(folder.parent)
    collect(folder.parent, {"default"})
    list_studies(str(folder.parent.parent))
    assert "with mymodels:build (SHA-256" in cite.citation(folder)
    assert "+schedule.args.peak=0.25" in cite.citation(folder)
    with pytest.raises(
        ConfigError, match=r"model.name=mymodels:build.*look at it first, then say --trust"
    ):
        reproduce.reproduce(folder, here / "again")
    assert not mark.exists()
    assert not (here / "again").exists()
    assert reproduce.reproduce(folder, here / "again", trust=True) is None
    assert mark.exists()


def test_an_installed_package_offers_names(own, here, monkeypatch):
    """A package as pip leaves it: its modules, and the entry points in its metadata."""
    site = here.parent / "site-packages"
    (site / "faces").mkdir(parents=True)
    (site / "faces" / "__init__.py").write_text("")
    for name, text in {"nets": MODELS, "sets": DATA, "rates": SCHEDULES}.items():
        (site / "faces" / f"{name}.py").write_text(text)
    (site / "faces" / "more.py").write_text("def widest(moments):\n    return moments.norms\n")
    metadata = site / "faces-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: faces\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[earlydrop.models]\n"
        "facenet = faces.nets:build\n"
        "[earlydrop.data]\n"
        "faces = faces.sets:faces\n"
        "[earlydrop.schedules]\n"
        "falling = faces.rates:falling\n"
        "[earlydrop.measures]\n"
        "widest = faces.more:widest\n"
    )
    monkeypatch.syspath_prepend(str(site))
    assert plugins.installed("model") == {"facenet": "faces.nets:build"}
    settings = own(
        model__name="facenet",
        data__name="faces",
        schedule__name="falling",
        probe__at=["0%"],
        probe__measures=["widest"],
    )
    result = run(settings)
    assert result["state"] == "finished"
    assert result["probe/widest"] > 0
    assert names_of(settings) == [
        "model.name=facenet",
        "data.name=faces",
        "schedule.name=falling",
        "probe.measures=widest",
    ]
    without_probe = replace(settings, probe=replace(settings.probe, at=[]))
    assert "probe.measures=widest" not in names_of(without_probe)  # nothing imports it
    code = make_plan(settings).code["model.name"]
    assert set(code.files) == {"faces", "faces.nets"}
