"""The console commands as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from earlydrop.analysis import load_runs
from earlydrop.training.compose import compose, conf_folder, config_from_dict
from earlydrop.training.overrides import mistake
from earlydrop.training.plan import make_plan
from earlydrop.training.record.failures import failures, forget_failures, note_failure

SMALL = [
    "tracking=off",
    "model=mlp",
    "model.hidden=[16]",
    "data.train_images=200",
    "trainer.epochs=1",
    "trainer.batch_size=50",
    "probe.batches=2",
    "probe.dataset_limit=50",
]


def cold(*arguments, cwd, **environment):
    """The command in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-m", "earlydrop", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.fixture
def earlydrop(warm):
    """The command, or another of ours."""

    def run(*arguments, cwd, command=None):
        program = f"earlydrop.{command}" if command else "earlydrop"
        return warm.run(*arguments, cwd=cwd, env={"WANDB_MODE": "offline"}, program=program)

    return run


def groups():
    for path in sorted(conf_folder().rglob("*.yaml")):
        relative = path.relative_to(conf_folder()).with_suffix("")
        if relative.parts[0] not in ("config", "claims", "times"):
            yield f"{'/'.join(relative.parts[:-1])}={relative.name}"


@pytest.mark.parametrize("override", list(groups()))
def test_every_file_under_conf_composes_and_plans(override):
    group, name = override.split("=")
    if group.startswith("experiment/"):
        override = f"experiment={group.removeprefix('experiment/')}/{name}"
    settings = config_from_dict(compose([override]))
    if settings.data.name in ("fashion_mnist_mini",) and settings.model.name in (
        "vit_micro",
        "mixer_micro",
        "convnet_micro",
        "mlp",
    ):
        plan = make_plan(settings)
        assert plan.total_steps > 0


def test_the_papers_recipe_plans_on_a_folder_of_images(tmp_path, earlydrop):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "0.png")
    done = earlydrop(
        "experiment=paper/vit_tiny",
        "mode=plan",
        f"data.root={tmp_path}",
        "trainer.batch_size=2",
        "trainer.accumulate=2",
        "data.image_size=32",
        "data.workers=0",
        "device=cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "length       300 steps (1 an epoch), warm-up 50 steps" in done.stdout
    assert "cutoff=50" in done.stdout
    assert "  blocks.*.mlp.drop2                 12 x dropout, up to 0.1" in done.stdout


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "2 threads (GOMP_SPINCOUNT=1000)\n"),
        pytest.param(
            {"GOMP_SPINCOUNT": "5"}, "2 threads (GOMP_SPINCOUNT=5)\n", marks=pytest.mark.slow
        ),
        pytest.param(
            {"OMP_WAIT_POLICY": "PASSIVE"},
            "2 threads (OMP_WAIT_POLICY=PASSIVE)\n",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_how(
    environment, expected, tmp_path, monkeypatch
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    done = cold(
        "mode=plan", "threads=2", *SMALL, "plan.images_per_second=100", cwd=tmp_path, **environment
    )
    assert expected in done.stdout, done.stderr


def test_a_comment_stands_at_the_top_of_every_config():
    for path in conf_folder().rglob("*.yaml"):
        assert path.read_text().startswith("#"), path
        assert "_target_" not in path.read_text().replace("_target_: earlydrop.", ""), path
        assert yaml.safe_load(path.read_text())


def test_help_says_what_there_is_without_importing_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['earlydrop', '--help']\n"
        "import earlydrop.commands.run\n"
        "try: earlydrop.commands.run.main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip().endswith("False")
    assert "earlydrop schedule=late" in out


def test_a_run_from_another_folder_then_cite_and_reproduce(tmp_path, earlydrop):
    done = earlydrop(*SMALL, "schedule.rate=0.2", "seed=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run,) = (tmp_path / "runs" / "default").iterdir()
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert not (tmp_path / "multirun.yaml").exists()
    cited = earlydrop(str(run), cwd=tmp_path, command="commands.cite")
    assert "@inproceedings{liu2023dropout" in cited.stdout
    assert run.name[-12:] in cited.stdout
    command = cited.stdout.strip().splitlines()[-1].strip()
    assert command.startswith("earlydrop ")
    assert "seed=4" in command
    again = earlydrop(str(run), cwd=tmp_path, command="commands.reproduce")
    assert again.returncode == 0, again.stderr
    assert "identical" in again.stdout
    lines = (run / "metrics.jsonl").read_text().splitlines()
    changed = json.loads(lines[-1]) | {"test/loss": 1.0}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")
    different = earlydrop(str(run), cwd=tmp_path, command="commands.reproduce")
    assert different.returncode == 1
    assert "test/loss: 1.0 in the run" in different.stdout


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_goes_on_past_a_failing_job_shows_it_and_ends_with_1(tmp_path, launcher, earlydrop):
    arguments = [
        "-m",
        *SMALL,
        "schedule=none,early",
        "schedule.rate=0.1,1.5",
        "study=s",
        f"hydra/launcher={launcher}",
    ]
    done = earlydrop(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "rate is 1.5" in done.stderr + done.stdout
    runs = load_runs(tmp_path / "runs" / "s")
    assert sorted(runs["arm"]) == ["early-0.1-20%", "none"]
    assert set(runs["state"]) == {"finished"}
    study = tmp_path / "runs" / "s"
    assert "rate is 1.5" in (study / "table.md").read_text()
    assert "sweep: 4 of 4 jobs done" in done.stdout + done.stderr
    assert (study / "report.html").stat().st_size > 50_000
    assert (study / "figures" / "gdv.png").is_file()
    written = {path: path.stat().st_mtime_ns for path in study.rglob("metrics.jsonl")}
    assert len(written) == 2
    again = earlydrop(*[a.replace("0.1,1.5", "0.1") for a in arguments], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    if launcher == "basic":  # joblib's workers may speak elsewhere: what was written tells
        assert (again.stdout + again.stderr).count("finished before") == 2
    assert {path: path.stat().st_mtime_ns for path in study.rglob("metrics.jsonl")} == written
    assert "1.5" not in (study / "table.md").read_text()


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_and_repeated_gives_the_same_table(tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "earlydrop",
        "-m",
        *SMALL,
        "trainer.epochs=60",
        "trainer.checkpoint_seconds=0.2",
        "schedule=none,early",
        "seed=0,1",
        "study=s",
    ]
    tables = {}
    for name, kill in (("whole", False), ("killed", True)):
        process = subprocess.Popen(
            [*arguments, f"out={name}"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if kill:
            began = time.monotonic()
            while (
                len(list((tmp_path / name).rglob("metrics.jsonl"))) < 2
                and time.monotonic() - began < 60
            ):
                time.sleep(0.05)  # until the second run has begun
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert not (tmp_path / name / "s" / "report.html").exists()
            process = subprocess.Popen(
                [*arguments, f"out={name}"],
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        assert process.wait(timeout=200) == 0
        tables[name] = pd.read_csv(tmp_path / name / "s" / "table.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(tables["whole"], tables["killed"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["schedul.rate=0.1"],
            "schedul.rate is not a key of the configuration: did you mean schedule.rate?",
        ),
        (
            ["trainer.epochs=many"],
            "error: trainer.epochs=many: expected a whole number, more than 0",
        ),
        (["schedule.rate=1.2"], "error: schedule: rate is 1.2"),
        (["experiment=nothing"], "experiment=nothing: there is no such option"),
        (["schedule.rate=abc"], "error: schedule.rate=abc: expected a number"),
        (["seed=1.5"], "error: seed=1.5: expected a whole number, 0 or more"),
        (["trainer.compile=maybe"], "error: trainer.compile=maybe: expected true or false"),
        (["probe.at=3"], "error: probe.at=3: expected a list"),
        (["optim.clip=x"], "error: optim.clip=x: expected a number, more than 0, or null"),
        (["seed=1,2"], "error: seed=1,2 is a sweep: add -m"),
        (
            ["train"],
            "error: there is no command train: expected key=value, such as earlydrop schedule=late",
        ),
        (["+model._target_=os.system"], "names code to run"),
        (
            ["experiment=findings/smoke", "schedule=none,early", "trainer.epochs=null"],
            "error: trainer.epochs=null: expected a whole number, more than 0",
        ),
        (["schedule=none,early"], "error: schedule=none,early is a sweep: add -m"),
    ],
)
def test_mistakes_give_one_clear_error_and_no_traceback(tmp_path, arguments, says, earlydrop):
    done = earlydrop(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_report_and_cite_of_a_folder_without_runs(tmp_path, earlydrop):
    for command in ("report", "cite", "reproduce"):
        installed = Path(sys.executable).parent / f"earlydrop-{command}"
        assert f"from earlydrop.commands.{command} import main" in installed.read_text()
        done = earlydrop(tmp_path, cwd=tmp_path, command=f"commands.{command}")
        assert done.returncode == 1
        assert "run" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["+lr=0.5"], "+lr is not a key of the configuration: did you mean optim.lr?"),
        (["+trainer.foo=1"], "+trainer.foo is not a key of the configuration"),
        (
            ["++optim.learning_rate=0.5"],
            "++optim.learning_rate is not a key of the configuration: did you mean optim.lr?",
        ),
        (["schedule=erly"], "schedule=erly: there is no such option: did you mean early?"),
        (["experiment=quikstart"], "did you mean quickstart?"),
        (["-m", "schedule=none,erly"], "schedule=erly: there is no such option"),
        (["trainer.epoch=3"], "did you mean trainer.epochs?"),
        (["data.trainimages=3"], "did you mean data.train_images?"),
        (["+hydra.foo=1"], "+hydra.foo is not a key of Hydra's configuration"),
        (["=1"], "'=1' is not an override: expected key=value"),
        (["seed"], "'seed' is not an override"),
        (["--multrun", "seed=1,2"], "there is no flag --multrun: did you mean --multirun?"),
    ],
)
def test_a_mistyped_key_or_option_is_answered_with_the_right_one(arguments, says):
    assert says in (mistake(arguments) or "")


def test_what_hydra_understands_is_left_to_it():
    fine = [
        "hydra/launcher=joblib",
        "hydra.sweep.dir=x",
        "schedule={name:none}",
        "schedule=none,early",
        "experiment=null",
        "seed=range(3)",
        "model.width=16,32",
        "experiment=findings/smoke",
        "schedule.points='0,0@0.2,0.1'",
        "--cfg",
        "job",
        "model=vit_micro",
    ]
    assert mistake(fine) is None


def test_a_sweep_in_which_every_job_is_refused_ends_with_1(tmp_path, earlydrop):
    for more in (
        ["study=a,b", "trainer.accumulate=3"],
        ["trainer.accumulate=3", "hydra.sweep.dir=elsewhere"],
        ["mode=eval", "seed=0,1"],
    ):
        done = earlydrop("-m", *SMALL, *more, cwd=tmp_path)
        assert done.returncode == 1, more
        assert "Traceback" not in done.stderr + done.stdout


def test_a_sweeping_experiment_runs_once_in_hydras_mode_of_one_run(tmp_path, earlydrop):
    single = ("experiment=quickstart", "hydra.mode=RUN", "trainer.steps=2", "data.train_images=64")
    done = earlydrop(*single, "trainer.batch_size=32", "evaluation.splits=[test]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs" / "quickstart").glob("*/status.json"))) == 1


def test_a_sweeps_folder_is_the_runs_folder_whatever_the_study_is_called(tmp_path, earlydrop):
    (tmp_path / "x" / "failures").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    done = earlydrop("-m", *SMALL, "study='my study'", "seed=0", cwd=tmp_path / "in")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "in" / "runs" / "my-study" / "report.html").is_file()
    done = earlydrop("-m", *SMALL, "study=../../x", "seed=0", cwd=tmp_path / "in")
    assert done.returncode == 1
    assert (tmp_path / "x" / "failures").is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("x", "in")] == []


def test_two_sweeps_of_one_study_keep_their_failures_apart(tmp_path):
    note_failure(tmp_path, f"{os.getpid()}-1", ["a=1"], "one")
    note_failure(tmp_path, "999999999-2", ["a=2"], "two")
    forget_failures(tmp_path, "1-3")
    assert [failure["reason"] for failure in failures(tmp_path)] == [
        "one"
    ]  # that sweep still runs, the other has ended


BACKGROUND = [
    "sh",
    "-c",
    "trap '' INT; exec \"$@\"",
    "sh",
]  # a shell's background jobs begin with Ctrl-C ignored


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "how"),
    [
        (signal.SIGTERM, -signal.SIGTERM, []),
        (signal.SIGKILL, -signal.SIGKILL, []),
        (signal.SIGINT, 130, []),
        (signal.SIGINT, 130, BACKGROUND),
    ],
)
def test_workers_end_with_their_sweep(tmp_path, number, code, how):
    sweep = ["-m", *SMALL, "trainer.epochs=4000", "seed=0,1,2,3", "hydra/launcher=joblib"]
    arguments = [*how, sys.executable, "-m", "earlydrop", *sweep]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while len(list(tmp_path.rglob("metrics.jsonl"))) < 2 and time.monotonic() - began < 90:
        time.sleep(0.1)
    workers = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and parent_of(path) == process.pid
    ]
    assert workers
    process.send_signal(number)
    assert process.wait() == code
    began = time.monotonic()
    while any(map(alive, workers)) and time.monotonic() - began < 30:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def parent_of(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(process):
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[
            0
        ] != "Z"
    except OSError:
        return False


def test_the_runs_of_a_joblib_sweep_take_the_gpus_in_turn(tmp_path, warm):
    sweep = [
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
        "device=cuda",
        "seed=0,1,2",
        *SMALL,
        "trainer.steps=2",
    ]
    sweep = [each for each in sweep if each != "device=cpu"]
    done = warm.run(*sweep, cwd=tmp_path, program=str(Path(__file__).with_name("pretend_gpus.py")))
    assert done.returncode == 0, done.stderr
    assert [f"job {job} of device=cuda on cuda:{job % 2}" in done.stdout for job in range(3)] == [
        True
    ] * 3


def test_values_are_looked_at_before_torch_is_imported(tmp_path):
    code = (
        "import sys; sys.argv = ['earlydrop', 'optim.lr=-1']\n"
        "from earlydrop.commands.run import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
    assert done.stderr == "error: optim.lr is -1.0: expected more than 0\n"
