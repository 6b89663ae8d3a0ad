import dataclasses
import multiprocessing
import os
import signal
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from joblib.externals import loky

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source
from earlydrop.training.data.order import split_batches
from earlydrop.training.endings import Interrupted
from earlydrop.training.run import run
from tests.training.data.pictures import make_folder

CPU = torch.device("cpu")


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def start_method(request):
    """Python's usual start method: forkserver from Python 3.14 on, spawn on macOS and Windows."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(usual, force=True)


def test_workers_leave_signals_to_the_run(tmp_path, start_method):
    """SLURM sends SIGTERM to the whole group, at any moment.

    The workers go on giving batches, so the run can save and stop.
    """
    make_folder(tmp_path)
    if start_method == "forkserver":  # a server from before our workers, which holds no signal
        forkserver.ensure_running()
    if start_method == "spawn":  # the first spawned process of all
        # joblib's idle processes hold the tracker's pipe, and stopping it would wait for them
        loky.get_reusable_executor().shutdown(wait=True, kill_workers=True)
        resource_tracker._resource_tracker._stop()
    workers = 2 if start_method == "fork" else 1
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers)
    keyed = [(i, torch.arange(4)) for i in range(40)]
    batches = make_source(config, AugmentConfig(), CPU).batches(keyed, "train", (0, "augment"))
    started = []  # not every child: a worker of an earlier test may be on its way out
    with (
        each_started_worker(started.append),
        each_started_worker(lambda worker: os.kill(worker.pid, signal.SIGTERM)),
    ):
        given = [next(batches)]
    for worker in started:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGUSR1)  # SLURM's warning, by scancel or sbatch --signal
    given += batches
    alone = make_source(dataclasses.replace(config, workers=0), AugmentConfig(), CPU).batches(
        keyed, "train", (0, "augment")
    )
    assert torch.equal(
        torch.cat([images for images, _ in given]), torch.cat([images for images, _ in alone])
    )


def test_the_run_has_its_own_mask_back(tmp_path):
    make_folder(tmp_path)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=1)
    next(make_source(config, AugmentConfig(), CPU).batches([(0, torch.arange(4))], "train", None))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@contextmanager
def each_started_worker(act):
    """Call `act` with each process as soon as it starts, before it imports or sets anything."""
    start = BaseProcess.start

    def started(process):
        start(process)
        act(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseProcess, "start", started)
        yield


def of_folder(root, workers=1, **options):
    make_folder(root)
    config = DataConfig(name="imagefolder", root=str(root), image_size=16, workers=workers)
    return make_source(config, AugmentConfig(**options), CPU)


def test_workers_live_on_from_pass_to_pass(tmp_path):
    """Three evaluations while training goes on: two loaders are started, and no more."""
    source, started = of_folder(tmp_path), []
    alone = source.serial()
    with each_started_worker(started.append):
        training = source.batches(
            [(key, torch.arange(4)) for key in range(12)], "train", (0, "augment")
        )
        given = [next(training)]
        for _ in range(3):
            for split, count in source.sizes.items():
                read = [
                    list(each.batches(split_batches(count, 3), split, None))
                    for each in (source, alone)
                ]
                assert all(
                    torch.equal(x, y)
                    for one, two in zip(*read, strict=True)
                    for x, y in zip(one, two, strict=True)
                )
            given.append(next(training))
        given += training
    expected = list(
        alone.batches([(key, torch.arange(4)) for key in range(12)], "train", (0, "augment"))
    )
    assert torch.equal(torch.cat([x for x, _ in given]), torch.cat([x for x, _ in expected]))
    assert len(started) == 2
    assert all(worker.is_alive() for worker in started)
    source.close()
    assert not any(worker.is_alive() for worker in started)
    ((images, _),) = source.batches([(0, torch.arange(2))], "test", None)  # new ones
    assert images.shape == (2, 3, 16, 16)
    source.close()


def test_a_pass_that_takes_its_last_batch_and_asks_no_more_leaves_the_workers_to_the_next(tmp_path):
    source, started = of_folder(tmp_path), []
    with each_started_worker(started.append):
        first = source.batches(
            [(0, torch.arange(2)), (1, torch.arange(2))], "train", (0, "augment")
        )
        next(first), next(first)
        second = source.batches([(0, torch.arange(4))], "test", None)
        assert len(next(second)[1]) == 4
        first.close()
        assert next(second, None) is None
        assert list(source.batches([], "test", None)) == []
    assert len(started) == 1
    source.close()


def test_a_pass_that_is_given_up_ends_its_workers_and_a_source_that_is_gone_all(tmp_path):
    source, started = of_folder(tmp_path), []
    with each_started_worker(started.append):
        unfinished = source.batches(
            [(key, torch.arange(4)) for key in range(9)], "train", (0, "augment")
        )
        next(unfinished)
        unfinished.close()
        assert not started[0].is_alive()
        list(source.batches(split_batches(4, 2), "test", None))
        assert started[1].is_alive()
    del source, unfinished
    assert not started[1].is_alive()


def test_a_run_ends_its_workers(tmp_path, config):
    make_folder(tmp_path / "data")
    data = {
        "name": "imagefolder",
        "root": str(tmp_path / "data"),
        "image_size": 16,
        "workers": 1,
        "train_images": None,
    }
    started = []
    with each_started_worker(started.append):
        run(config(data=data, trainer__batch_size=4, trainer__epochs=4, probe__at=[]))
    assert len(started) == 2  # of training and of four evaluations of three splits each
    assert not any(worker.is_alive() for worker in started)


def test_a_run_that_is_stopped_between_evaluations_goes_on_to_the_bit(tmp_path, config):
    """Against the same run undisturbed, read by its own process."""
    make_folder(tmp_path / "data")
    before = set(multiprocessing.active_children())
    records = []
    for workers in (0, 1):
        data = {
            "name": "imagefolder",
            "root": str(tmp_path / "data"),
            "image_size": 16,
            "workers": workers,
            "train_images": None,
        }
        options = {
            "data": data,
            "trainer__batch_size": 4,
            "trainer__epochs": 4,
            "trainer__log_every": 1,
            "augment__crop": True,
        }
        settings = config(
            out=str(tmp_path / f"runs{workers}"), probe__at=["25%"], probe__batches=2, **options
        )
        if workers:
            with pytest.raises(Interrupted):
                run(settings, watch=lambda step, metrics: step >= 5)
        records.append((Path(run(settings)["folder"]) / "metrics.jsonl").read_bytes())
    assert records[0] == records[1]
    assert records[0].count(b"train/loss") == 8
    assert set(multiprocessing.active_children()) <= before
