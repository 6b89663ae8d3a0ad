import dataclasses
import multiprocessing
import os
import shutil
import signal
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from types import SimpleNamespace

import pytest
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import FolderSource, make_source
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import split_batches, training_order
from earlydrop.training.fields import ConfigError
from earlydrop.training.run import run
from tests.training.data.pictures import make_folder

CPU = torch.device("cpu")


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def start_method(request):
    """Python's usual start method, which is forkserver from Python 3.14 on, and spawn on macOS and Windows."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(usual, force=True)


def test_workers_leave_signals_to_the_run(tmp_path, start_method):
    """SLURM sends SIGTERM to the whole group, at any moment: the workers go on giving batches, so the run can save and stop."""
    make_folder(tmp_path)
    if start_method == "forkserver":  # a server from before our workers, which holds no signal
        forkserver.ensure_running()
    if start_method == "spawn":  # the first spawned process of all
        resource_tracker._resource_tracker._stop()
    workers = 2 if start_method == "fork" else 1
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers)
    keyed = [(i, torch.arange(4)) for i in range(40)]
    batches = make_source(config, AugmentConfig(), CPU).batches(keyed, "train", (0, "augment"))
    started = []  # not every child: a worker of an earlier test may be on its way out
    with each_started_worker(started.append), each_started_worker(lambda worker: os.kill(worker.pid, signal.SIGTERM)):
        given = [next(batches)]
    for worker in started:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGUSR1)  # SLURM's warning, by scancel or sbatch --signal
    given += batches
    alone = make_source(dataclasses.replace(config, workers=0), AugmentConfig(), CPU).batches(keyed, "train", (0, "augment"))
    assert torch.equal(torch.cat([images for images, _ in given]), torch.cat([images for images, _ in alone]))


def test_the_run_has_its_own_mask_back(tmp_path):
    make_folder(tmp_path)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=1)
    next(make_source(config, AugmentConfig(), CPU).batches([(0, torch.arange(4))], "train", None))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@contextmanager
def each_started_worker(act):
    """`act` is called with each process as soon as it is started, long before it has imported or set anything."""
    start = BaseProcess.start

    def started(process):
        start(process)
        act(process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseProcess, "start", started)
        yield


def test_an_image_folder_is_the_same_whatever_the_workers(tmp_path):
    make_folder(tmp_path)
    seen = []
    for workers in (0, 2):
        config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers)
        released = AugmentConfig(mixup=0.8, crop=True, randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.4, erasing=0.25)
        source = make_source(config, released, CPU)
        assert isinstance(source, FolderSource)
        assert (source.classes, source.sizes) == (2, {"train": 10, "test": 4})
        objective = Objective(source, released)
        batches = list(objective.batches(training_order(0, 10, 4, 0, 5), 0, "augment"))
        seen.append(torch.cat([images for images, _ in batches]))
        clean = list(source.batches(split_batches(4, 3), "test", None))
        assert [len(y) for _, y in clean] == [3, 1]
    assert torch.equal(*seen)
    assert not torch.equal(seen[0][:4], seen[0][8:12])


def test_training_images_are_augmented_and_test_images_are_not(tmp_path):
    """With flips alone each training image is the clean one or its mirror image, and both come."""
    make_folder(tmp_path)
    config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32)
    source = make_source(config, AugmentConfig(shift=0, flip=True), CPU)
    for split, count in source.sizes.items():
        every = torch.arange(count)
        ((clean, _),) = source.batches([(0, every)], split, None)
        drawn = torch.stack([images for images, _ in source.batches([(key, every) for key in range(8)], split, (0, "augment"))])
        as_it_is = (drawn == clean).flatten(2).all(2)
        mirrored = (drawn == clean.flip(-1)).flatten(2).all(2)
        assert (as_it_is ^ mirrored).all()
        assert as_it_is.any(0).all()
        assert mirrored.any(0).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"no image", None])
def test_a_broken_image_is_named_in_one_line(tmp_path, workers, content):
    make_folder(tmp_path)
    broken = tmp_path / "train" / "dog" / "3.png"
    broken.write_bytes(content if content is not None else broken.read_bytes()[:300])
    source = make_source(DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers), AugmentConfig(), CPU)
    with pytest.raises(ConfigError) as caught:
        list(source.batches(split_batches(10, 5), "train", None))
    assert str(broken) in str(caught.value)
    assert "cannot be read as an image" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not multiprocessing.active_children()  # though the error's traceback still holds the loader


def of_folder(root, workers=1, **options):
    make_folder(root)
    config = DataConfig(name="imagefolder", root=str(root), image_size=16, workers=workers)
    return make_source(config, AugmentConfig(**options), CPU)


def test_workers_live_on_from_pass_to_pass(tmp_path):
    """Three evaluations while training goes on: two loaders are started, and no more."""
    source, started = of_folder(tmp_path), []
    alone = source.serial()
    with each_started_worker(started.append):
        training = source.batches([(key, torch.arange(4)) for key in range(12)], "train", (0, "augment"))
        given = [next(training)]
        for _ in range(3):
            for split, count in source.sizes.items():
                read = [list(each.batches(split_batches(count, 3), split, None)) for each in (source, alone)]
                assert all(torch.equal(x, y) for one, two in zip(*read, strict=True) for x, y in zip(one, two, strict=True))
            given.append(next(training))
        given += training
    expected = list(alone.batches([(key, torch.arange(4)) for key in range(12)], "train", (0, "augment")))
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
        first = source.batches([(0, torch.arange(2)), (1, torch.arange(2))], "train", (0, "augment"))
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
        unfinished = source.batches([(key, torch.arange(4)) for key in range(9)], "train", (0, "augment"))
        next(unfinished)
        unfinished.close()
        assert not started[0].is_alive()
        list(source.batches(split_batches(4, 2), "test", None))
        assert started[1].is_alive()
    del source, unfinished
    assert not started[1].is_alive()


def test_a_run_ends_its_workers(tmp_path, config):
    make_folder(tmp_path / "data")
    data = {"name": "imagefolder", "root": str(tmp_path / "data"), "image_size": 16, "workers": 1, "train_images": None}
    started = []
    with each_started_worker(started.append):
        run(config(data=data, trainer__batch_size=4, trainer__epochs=4, probe__at=[]))
    assert len(started) == 2  # of training and of four evaluations of three splits each
    assert not any(worker.is_alive() for worker in started)


def test_the_plan_says_how_much_shared_memory_workers_take(tmp_path, config, capsys, monkeypatch):
    make_folder(tmp_path / "data")
    data = {"name": "imagefolder", "root": str(tmp_path / "data"), "image_size": 16, "workers": 3, "train_images": None}
    options = {"data": data, "trainer__batch_size": 4, "evaluation__batch_size": 100, "probe__at": [], "augment__erasing": 0.0}
    run(config(mode="plan", **options))
    needed = 3 * 2 * (4 + 100) * 3 * 16 * 16  # workers, batches ahead, images of training and of an evaluation, bytes of an image
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shared "))
    assert f"{needed / 1e3:.3g} kB for each worker, of batches that data.workers=3 read ahead" in line
    assert "too little" not in line
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    run(config(mode="plan", **options))
    assert "too little; set fewer data.workers or a smaller evaluation.batch_size" in capsys.readouterr().out
    run(config(mode="plan", **(options | {"data": data | {"workers": 0}})))
    assert "\nshared " not in capsys.readouterr().out
