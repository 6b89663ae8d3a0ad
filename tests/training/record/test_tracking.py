"""Tracking: what W&B is told, offline and by a server on loopback.

No server can hold up or change a run.
"""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import wandb

from earlydrop.commands.report import report_sweep
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.record.folder import read_metrics, read_timing
from earlydrop.training.record.trackers import Opened
from earlydrop.training.record.tracking import STEP, TIMING, URL_FILE, Tracker, run_id, tracking
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.record.fake_wandb import API_KEY, FakeWandb

STEPS = [0, 4, 8, 9, 12, 16, 18]


@pytest.fixture(autouse=True)
def wandb_starts_afresh(tmp_path, monkeypatch):
    wandb.teardown()  # it reads the environment once, at its first use
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the training is too small for more, and wandb's own process wants a core
    yield
    torch.set_num_threads(threads)
    wandb.teardown()


@pytest.fixture
def server(monkeypatch):
    with FakeWandb() as fake:
        use_server(monkeypatch, fake.url)
        yield fake


def use_server(monkeypatch, url):
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wandb_cli(*arguments):
    command = [sys.executable, "-m", "wandb", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def files_of(folder):
    return sorted(Path(folder).glob("wandb/*run-*/*.wandb"))


def records(file):
    """What a run's file holds: records by type."""
    by_type = defaultdict(list)
    for line in map(json.loads, wandb_cli("leet", "inspect", "--json", file).splitlines()):
        by_type[line["type"]].append(line[line["type"]])
    return by_type


def history(items, shifted=False):
    """History lines as in metrics.jsonl; unless shifted, wandb's count of steps is ours."""
    if not shifted:
        assert [item["_step"] for item in items] == [item[STEP] for item in items]
    return [
        {"step": item[STEP]}
        | {k: v for k, v in item.items() if k != STEP and not k.startswith(("_", TIMING))}
        for item in items
    ]


def timed(content):
    """The lines of timing in a run's file, as ``timing.jsonl`` has them."""
    lines = []
    for item in (record["item"] for record in content["history"]):
        names = [name for name in item if name.startswith(TIMING)]
        if names:
            lines.append({"step": item[STEP]} | {n.removeprefix(TIMING): item[n] for n in names})
    return lines


def logged(content):
    return history([record["item"] for record in content["history"]])


def by_step(lines):
    """One line a step; what was trained twice must have been logged twice the same."""
    unique = {line["step"]: line for line in lines}
    assert all(line == unique[line["step"]] for line in lines)
    return list(unique.values())


def metrics(folder):
    return read_metrics(Path(folder) / "metrics.jsonl")


def at_step(monkeypatch, step, act):
    """Call `act` as the training comes to a step, counted from 0."""
    original = Trainer.train_step

    def train_step(self, parts):
        if self.step == step:
            parts = (
                [(images * act(), targets) for images, targets in parts]
                if act is nan
                else (act(), parts)[1]
            )
        original(self, parts)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def nan():
    return float("nan")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    raise RuntimeError("a crash")


def test_an_offline_run_can_be_read_back(config):
    settings = config(tracking="offline", study="a-study", tags=["mine"])
    folder = Path(run(settings)["folder"])
    (file,) = files_of(folder)
    assert file.parent.name.startswith("offline-run-")

    content = records(file)
    (told,) = content["run"]
    assert told["run_id"] == run_id("a-study", make_plan(settings).fingerprint)
    expected = {
        "display_name": "early-0.3-50pct-seed0",
        "run_group": "a-study",
        "job_type": "train",
        "project": "earlydrop",
    }
    assert {key: told[key] for key in expected} == expected
    assert told["tags"] == ["mine", "mlp", "fashion_mnist_mini", "early"]

    defined = content["metric"]
    assert [m.get("name") for m in defined if "step_metric" not in m] == [STEP]
    assert [(m["glob_name"], m["step_metric"]) for m in defined if "step_metric" in m] == [
        ("*", STEP)
    ]

    assert [line["step"] for line in logged(content)] == STEPS
    assert logged(content) == metrics(folder)
    assert timed(content) == read_timing(folder / "timing.jsonl")
    assert {"images_per_second", "seconds", "data_wait"} < timed(content)[0].keys()

    whole = json.loads(wandb_cli("leet", "inspect", "--summary", "--json", file))
    assert (whole["exit_code"], whole["state"], whole["step"]) == (0, "finished", 18)
    assert whole["config"]["schedule"] == {
        "name": "early",
        "kind": "unit",
        "rate": 0.3,
        "cutoff": "50%",
        "shape": None,
        "points": None,
        "gamma": None,
        "path_rate": None,
    }
    assert whole["config"]["model"]["hidden"] == [16]
    assert whole["config"]["arm"] == "early-0.3-50%"
    assert whole["config"]["total_steps"] == 18
    last = {key: value for line in metrics(folder) for key, value in line.items() if key != "step"}
    summary = whole["summary"]
    assert {
        key.removeprefix("final/"): value
        for key, value in summary.items()
        if key.startswith("final/")
    } == last
    measured = [line for line in metrics(folder) if "test/accuracy" in line]
    assert len(measured) == 2
    assert summary["best/test/accuracy"] == max(line["test/accuracy"] for line in measured)
    assert summary["best/test/loss"] == min(line["test/loss"] for line in measured)
    assert summary["state"] == "finished"


def test_the_dashboards_own_telemetry_prints_nothing_behind_our_last_line(config, tmp_path, capfd):
    opened = Opened(
        config=config(tracking="offline"),
        folder=tmp_path,
        name="n",
        identity="i",
        job_type="train",
        tags=[],
        extra={},
    )
    with tracking(opened) as (_, run):
        assert run is not None
    capfd.readouterr()
    logging.getLogger("opentelemetry.sdk.metrics._internal").warning(
        "shutdown can only be called once"
    )
    assert capfd.readouterr().err == ""


def test_best_is_the_best_and_not_the_last():
    class Run:
        summary = {}

        def log(self, values, step):
            assert values[STEP] == step

    tracker = Tracker(Run())
    for step, (accuracy, loss) in enumerate(((0.5, 2.0), (0.7, 1.0), (0.6, 1.5))):
        tracker.log(step, {"test/accuracy": accuracy, "test/loss": loss})
    tracker.summarise({"state": "finished"})
    assert Run.summary == {
        "best/test/accuracy": 0.7,
        "best/test/loss": 1.0,
        "final/test/accuracy": 0.6,
        "final/test/loss": 1.5,
        "state": "finished",
    }


def test_runs_in_one_process_do_not_mix_and_a_failed_one_is_recorded_as_failed(config, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 6, nan)
        with pytest.raises(TrainingFailed, match="loss is nan"):
            run(config(tracking="offline", seed=1))
    run(config(tracking="offline", seed=2))
    for seed, steps, code in ((1, [0, 4], 1), (2, STEPS, 0)):
        folder = make_plan(config(seed=seed)).folder
        (file,) = files_of(folder)
        content = records(file)
        assert content["run"][0]["config"]["update"]["seed"] == seed
        assert content["exit"][0].get("exit_code", 0) == code
        assert logged(content) == metrics(folder)
        assert [line["step"] for line in metrics(folder)] == steps


@pytest.mark.parametrize(
    ("act", "error", "at"),
    [
        (terminate, Interrupted, 6),
        (crash, RuntimeError, 13),
    ],  # the last checkpoints are of steps 7 and 9
)
def test_a_resumed_run_has_the_same_id_and_its_file_holds_all_of_it(
    config, monkeypatch, act, error, at
):
    save = Trainer.save
    settings = config(tracking="offline", trainer__checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        at_step(patch, at, act)
        patch.setattr(Trainer, "save", lambda self: save(self) if self.step in (7, 9) else None)
        with pytest.raises(error):
            run(settings)
    folder = run(settings)["folder"]
    (file,) = files_of(folder)
    content = records(file)
    identity = run_id(settings.study, make_plan(settings).fingerprint)
    assert content["run"][0]["run_id"] == identity
    assert logged(content) == metrics(folder)
    of_steps = {line["step"]: line for line in read_timing(Path(folder) / "timing.jsonl")}
    assert timed(content) == list(of_steps.values())
    assert content["exit"][0].get("exit_code", 0) == 0
    (best,) = [record["update"] for record in content["summary"] if "state" in record["update"]]
    assert best["best/test/accuracy"] == max(
        line["test/accuracy"] for line in metrics(folder) if "test/accuracy" in line
    )

    with FakeWandb() as fake:
        use_server(monkeypatch, fake.url)
        wandb_cli("sync", file.parent)
    ((name, synced),) = fake.runs.items()
    assert name == identity
    assert history(synced.lines) == metrics(folder)
    assert synced.exit_codes == [0]


def test_the_dashboard_never_costs_a_run(config, monkeypatch, capfd):
    def broken(*_, **__):
        raise ValueError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", broken)
        assert run(config(tracking="offline", seed=1))["state"] == "finished"
    assert "tracking is not possible (no such thing)" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", broken)
        assert run(config(tracking="offline", seed=2))["state"] == "finished"
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "finish", broken)
        assert run(config(tracking="offline", seed=3))["state"] == "finished"
    wandb.finish()  # the one that was left open


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"project": "a/b"}, "project is 'a/b': expected 1 to 128 printable characters without"),
        ({"project": ""}, "project is ''"),
        ({"tags": [""]}, "tags holds '': a tag has 1 to 64 characters"),
        ({"tags": ["x" * 200]}, "a tag has 1 to 64 characters"),
    ],
)
def test_what_the_dashboard_would_refuse_is_refused_before(config, options, says):
    with pytest.raises(ConfigError, match=says):
        make_plan(config(**options))


@pytest.mark.parametrize(
    "why",
    [
        "no key",
        "not a key",
        "nothing listens",
        "refused",
        pytest.param("mute", marks=pytest.mark.slow),
    ],
)
def test_online_falls_back_to_offline_with_one_warning(config, monkeypatch, capfd, why):
    # As at a terminal, where wandb would ask for a key.
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    asked = []
    monkeypatch.setattr(
        "wandb.util.prompt_choices", lambda choices, **_: asked.append(choices) or choices[-1]
    )
    says = {
        "no key": "there is no API key",
        "not a key": "the API key is not valid",
        "nothing listens": "127.0.0.1 does not answer",
    }
    with (
        FakeWandb(answer=401) as fake,
        socket.create_server(("127.0.0.1", 0)) as mute,
    ):  # mute accepts and never answers
        ports = {"mute": mute.getsockname()[1], "nothing listens": closed_port()}
        use_server(monkeypatch, f"http://127.0.0.1:{ports[why]}" if why in ports else fake.url)
        if why == "no key":
            monkeypatch.delenv("WANDB_API_KEY")
        elif why == "not a key":
            monkeypatch.setenv("WANDB_API_KEY", "hunter2")
        began = time.perf_counter()
        result = run(config(tracking="online"))
        assert time.perf_counter() - began < 100  # it does not hang
    assert result["state"] == "finished"
    assert not asked
    said = capfd.readouterr().err
    assert said.count("tracking offline") == 1
    assert says.get(why, "tracking=online failed") in said
    assert "wandb:" not in said
    assert "wandb sync" in (Path(result["folder"]) / "log.txt").read_text()
    (file,) = files_of(result["folder"])  # the attempt that a server refused leaves nothing
    content = records(file)
    assert logged(content) == metrics(result["folder"])
    assert content["exit"][0].get("exit_code", 0) == 0


def test_an_online_run_arrives(config, server, capfd):
    settings = config(tracking="online", study="a-study")
    folder = run(settings)["folder"]
    ((identity, told),) = server.runs.items()
    assert identity == run_id("a-study", make_plan(settings).fingerprint)
    expected = {
        "displayName": "early-0.3-50pct-seed0",
        "groupName": "a-study",
        "jobType": "train",
        "project": "earlydrop",
    }
    assert {key: told.fields[key] for key in expected} == expected
    assert told.fields["tags"] == ["mlp", "fashion_mnist_mini", "early"]
    assert told.config["schedule"]["value"]["rate"] == 0.3
    assert told.config["fingerprint"]["value"] == make_plan(settings).fingerprint
    assert history(told.lines) == metrics(folder)
    assert told.exit_codes == [0]
    assert (
        json.loads(told.uploads["wandb-summary.json"])["final/test/loss"]
        == metrics(folder)[-1]["test/loss"]
    )
    assert "wandb:" not in capfd.readouterr().err
    assert (Path(folder) / URL_FILE).read_text().strip().endswith(f"/earlydrop/runs/{identity}")


def test_a_file_that_cannot_be_written_leaves_the_run_open(config, server, capfd):
    settings = config(tracking="online")
    (make_plan(settings).folder / URL_FILE).mkdir(parents=True)
    folder = run(settings)["folder"]
    ((_, told),) = server.runs.items()
    assert history(told.lines) == metrics(folder)
    assert told.exit_codes == [0]
    assert "url.txt could not be written (" in capfd.readouterr().err


def test_an_online_run_goes_on_where_it_was_stopped(config, monkeypatch, server):
    with monkeypatch.context() as patch:
        at_step(patch, 6, terminate)
        with pytest.raises(Interrupted):
            run(config(tracking="online"))
    folder = run(config(tracking="online"))["folder"]
    (told,) = server.runs.values()
    assert told.starts == 2
    assert told.exit_codes == [0, 0]  # stopped, not failed
    assert history(told.lines) == metrics(folder)


def test_images_and_pages_are_uploaded(config, server, tmp_path):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "figure.png")
    (tmp_path / "report.html").write_text("<p>a report</p>")
    settings = config(tracking="online")
    opened = Opened(
        config=settings,
        folder=tmp_path,
        name="report",
        identity="a-report",
        job_type="report",
        tags=[],
        extra={},
    )
    with tracking(opened) as (_, run):
        run.log({"figures/figure": wandb.Image(str(tmp_path / "figure.png"))})
        run.log({"report": wandb.Html(str(tmp_path / "report.html"), inject=False)})
    told = server.runs["a-report"]
    assert told.fields["jobType"] == "report"
    uploads = {
        Path(name).suffix: content
        for name, content in told.uploads.items()
        if name.startswith("media/")
    }
    assert uploads == {".png": (tmp_path / "figure.png").read_bytes(), ".html": b"<p>a report</p>"}


def test_an_outage_changes_nothing_and_ends(config, monkeypatch, server, tmp_path):
    settings, limits = wandb.Settings, []

    def patient(**given):
        if "finish_timeout" in given:
            limits.append(given.pop("finish_timeout"))
            given["finish_timeout"] = 3
        return settings(**given)

    monkeypatch.setattr(wandb, "Settings", patient)
    at_step(monkeypatch, 6, server.stop)
    began = time.perf_counter()
    tracked = run(config(tracking="online"))
    assert time.perf_counter() - began < 3 + 30
    assert set(limits) == {60}  # seconds, where this test does not wait so long
    monkeypatch.undo()
    assert tracked["state"] == "finished"
    assert not any(told.exit_codes for told in server.runs.values())
    untracked = run(config(out=str(tmp_path / "untracked")))
    names = [Path(result["folder"]) / "metrics.jsonl" for result in (tracked, untracked)]
    assert names[0].read_bytes() == names[1].read_bytes()
    (file,) = files_of(tracked["folder"])  # nothing is lost: `wandb sync` can still upload it
    assert logged(records(file)) == metrics(tracked["folder"])


def test_off_is_off(config, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "setup", pytest.fail)
    monkeypatch.setattr(wandb, "init", pytest.fail)
    assert run(config(tracking="off"))["state"] == "finished"
    assert not [path for path in tmp_path.rglob("*") if "wandb" in path.name]


def test_the_command_of_the_page_of_dashboards_uploads_runs_and_the_studys_report(
    config, tmp_path, monkeypatch, capsys
):
    page = (Path(__file__).parents[3] / "docs" / "howto" / "dashboards.md").read_text()
    (command,) = re.findall(r"^(find runs .*wandb sync .*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    settings = config(tracking="offline", study="a-study", out="runs")
    folder = Path(run(settings)["folder"])
    report_sweep(folder.parent)
    assert len(files_of(folder)) == len(files_of(folder.parent)) == 1
    with FakeWandb() as fake:
        use_server(monkeypatch, fake.url)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        subprocess.run(command, shell=True, check=True, capture_output=True, timeout=120)
    assert {told.fields["jobType"] for told in fake.runs.values()} == {"train", "report"}
    assert set(fake.runs) == {
        run_id("a-study", make_plan(settings).fingerprint),
        run_id("a-study", "report"),
    }


@pytest.mark.parametrize(
    ("keys", "console", "stats"),
    [({}, "off", True), ({"tracking__console": True, "tracking__system": True}, "wrap", False)],
    ids=str,
)
def test_wandbs_console_and_system_charts_are_on_where_asked_for(
    config, monkeypatch, keys, console, stats
):
    told = []

    def init(**options):
        told.append(options["settings"])
        raise RuntimeError("not in this test")

    monkeypatch.setattr(wandb, "init", init)
    run(config(tracking={"mode": "offline"}, trainer__steps=1, **keys))
    assert (told[0].console, told[0].x_disable_stats) == (console, stats)
