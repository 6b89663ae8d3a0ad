"""SLURM's launcher in submitit's local mode.

Each run is a process, warned as by SLURM and queued again.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from earlydrop.commands import sweep
from earlydrop.training.overrides import mistake

pytest.importorskip("submitit")
LOCAL = [
    "-m",
    "hydra/launcher=submitit_local",
    "hydra.launcher.timeout_min=10",
    "tracking=off",
    "threads=1",
    "device=cpu",
    "model=mlp",
    "data.train_images=300",
    "trainer.batch_size=50",
    "probe=none",
    "trainer.checkpoint_seconds=1000",
    "study=s",
]


def start(tmp_path, *overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "earlydrop", *LOCAL, *overrides],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def statuses(tmp_path):
    return [
        json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("s/*/status.json"))
    ]


@pytest.mark.slow
def test_a_sweep_has_a_job_for_each_run_and_ends_with_its_report(tmp_path):
    process = start(tmp_path, "schedule=none,early", "trainer.steps=4")
    output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert [status["state"] for status in statuses(tmp_path)] == ["finished"] * 2
    assert (tmp_path / "runs" / "s" / "report.html").is_file()
    assert not list((tmp_path / "runs" / "s").glob(".sweep-*"))
    assert "report.html" in output


@pytest.mark.slow
def test_a_run_that_is_warned_saves_is_queued_again_and_goes_on(tmp_path):
    process = start(
        tmp_path,
        "schedule=early",
        "trainer.steps=2000",
        "trainer.log_every=1",
        "trainer.eval_every=100%",
    )
    worker = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = list((tmp_path / "runs").glob("s/*/metrics.jsonl"))
        if found and found[0].read_text().count("\n") > 20:
            worker = statuses(tmp_path)[0]["pid"]
            break
        time.sleep(0.05)
    assert worker is not None
    os.kill(worker, signal.SIGUSR2)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    (status,) = statuses(tmp_path)
    assert (status["state"], status["step"]) == ("finished", 2000)
    assert status["pid"] != worker
    (log,) = (tmp_path / "runs").glob("s/*/log.txt")
    resumed = [line for line in log.read_text().splitlines() if "resuming from step" in line]
    assert len(resumed) == 1
    assert int(resumed[0].split("from step ")[1].split()[0]) > 20
    steps = [
        json.loads(line)["step"]
        for line in next((tmp_path / "runs").glob("s/*/metrics.jsonl")).read_text().splitlines()
    ]
    assert steps == sorted(set(steps))


def test_the_launcher_composes(tmp_path, warm):
    done = warm.run(
        "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "--cfg", "hydra", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "SlurmLauncher" in done.stdout
    assert "max_num_timeout: 100" in done.stdout
    assert "partition: gpu" in done.stdout


def test_a_launcher_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'earlydrop[slurm]'" in mistake(["hydra/launcher=slurm"])


TASK = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu-3",
    "SLURM_ARRAY_JOB_ID": "76",
    "SLURM_ARRAY_TASK_ID": "0",
}
SAID = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu-3",
}


@pytest.fixture
def task(monkeypatch):
    """The environment of a task of a SLURM job."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    for name in (*SAID, "MASTER_PORT", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(SlurmJobEnvironment, "activated", lambda self: True)
    monkeypatch.setattr(SlurmJobEnvironment, "hostnames", ["gpu-3", "gpu-4"])

    def make(**other):
        for name, value in (TASK | other).items():
            monkeypatch.setenv(name, value)

    yield make
    for name in (*SAID, "MASTER_PORT"):
        os.environ.pop(name, None)


def test_the_tasks_of_a_job_are_the_workers_of_its_run(task):
    task()
    sweep.become_worker()
    assert {name: os.environ[name] for name in SAID} == SAID
    assert 20_000 <= int(os.environ["MASTER_PORT"]) <= 60_000
    assert not sweep.is_first_worker()
    sweep.become_worker()  # a second run in the same process


def test_a_job_of_one_task_is_a_run_of_one_process(task):
    task(SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NUM_NODES="1")
    sweep.become_worker()
    assert "WORLD_SIZE" not in os.environ
    assert sweep.is_first_worker()
