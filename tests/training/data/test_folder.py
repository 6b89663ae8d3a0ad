import dataclasses
import hashlib
import multiprocessing
import os
import shutil
import signal
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import FolderSource, make_source
from earlydrop.training.data.folder import BrokenImageError, load_image, make_transforms
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import split_batches, training_order
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run

CPU = torch.device("cpu")


def make_folder(root, splits=(("train", 5), ("val", 2))):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / split / name / f"{i}.png")


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


def test_a_folder_without_splits(tmp_path):
    with pytest.raises(ConfigError, match="train/ and val/"):
        make_source(DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), CPU)


def test_clean_images_are_clean():
    """Without augmentation the training transform is the evaluation's; each key adds its own part."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    none = {"shift": 0, "flip": False}
    train, clean = make_transforms(32, AugmentConfig(**none))
    assert all(torch.equal(train(image), clean(image)) for _ in range(20))
    for part in ({"flip": True}, {"crop": True}, {"randaugment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}, {"erasing": 0.5}):
        train, _ = make_transforms(32, AugmentConfig(**(none | part)))
        changed = [not torch.equal(train(image), clean(image)) for _ in range(40)]
        assert any(changed), part
        train(image)


def test_randaugment_draws_on_this_pillow():
    """Every operation, ten thousand draws; posterize to 0 bits is black, as on older releases of Pillow."""
    from PIL import Image

    train, _ = make_transforms(8, AugmentConfig(crop=True, randaugment="rand-m9-mstd0.5-inc1"))
    (randaugment,) = (t for t in train.transforms if hasattr(t, "ops"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    for operation in randaugment.ops:
        operation.prob = 1.0
        for _ in range(10_000 // len(randaugment.ops) + 1):
            assert operation(image).size == (8, 8)
    (posterize,) = (op for op in randaugment.ops if "Posterize" in op.name)
    assert not np.asarray(posterize.aug_fn(image, 0)).any()


def test_a_mistyped_randaugment_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.randaugment is 'rand-x9'"):
        make_transforms(32, AugmentConfig(randaugment="rand-x9"))


def test_images_of_sixteen_bits_keep_their_range_and_unknown_ranges_are_refused(tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    read = np.asarray(load_image(str(tmp_path / "deep.png")))
    assert read.shape == (8, 8, 3)
    assert np.abs(read[..., 0].astype(float) - ramp / 257).max() <= 0.5
    Image.fromarray(np.full((8, 8), 1e6, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(BrokenImageError, match=r"float\.tiff cannot be read as an image: its pixels are of mode F"):
        load_image(str(tmp_path / "float.tiff"))


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


def test_corrupt_images_are_counted_and_left_out_when_told(tmp_path):
    make_folder(tmp_path)
    victim = sorted((tmp_path / "train").rglob("*.*"))[0]
    whole = make_source(DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), torch.device("cpu"))
    victim.write_bytes(victim.read_bytes()[:40])
    found = make_source(DataConfig(name="imagefolder", root=str(tmp_path), skip_corrupt=True), AugmentConfig(), torch.device("cpu"))
    assert found.left_out == {"images that cannot be read": 1}
    assert found.sizes["train"] == whole.sizes["train"] - 1
    assert found.digest != whole.digest
    for _ in found.batches([(0, torch.arange(found.sizes["train"]))], "train", None):
        pass


def test_an_empty_file_is_refused_at_once(tmp_path):
    make_folder(tmp_path)
    victim = sorted((tmp_path / "train").rglob("*.*"))[0]
    victim.write_bytes(b"")
    with pytest.raises(
        ConfigError, match=f"{victim.name} is empty: copy it again, or leave such images out with data.skip_corrupt=true"
    ):
        make_source(DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), torch.device("cpu"))


def test_classes_that_differ_between_splits_are_named(tmp_path):
    make_folder(tmp_path)
    shutil.copytree(next((tmp_path / "train").iterdir()), tmp_path / "train" / "zebra")
    with pytest.raises(
        ConfigError, match=r"train/ has 1 classes that val/ lacks, such as 'zebra'; expected the same class folders in both"
    ):
        make_source(DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), torch.device("cpu"))


def opened(root, **more):
    return make_source(DataConfig(name="imagefolder", root=str(root), image_size=32, **more), AugmentConfig(), CPU)


def test_the_digest_is_of_what_torchvision_finds(tmp_path):
    """The formula of the first version, over torchvision's samples."""
    make_folder(tmp_path)
    digest = hashlib.sha256()
    for split, name in (("train", "train"), ("test", "val")):
        for path, label in ImageFolder(str(tmp_path / name)).samples:
            file = Path(path)
            digest.update(f"{split}/{file.parent.name}/{file.name}:{file.stat().st_size}:{label}\n".encode())
    assert opened(tmp_path).digest == digest.hexdigest()
    assert opened(tmp_path).left_out == {}


def test_what_is_left_out_changes_nothing_and_is_in_the_plan_and_the_log(tmp_path, config, capsys):
    make_folder(tmp_path / "data")
    options = {
        "data": {"name": "imagefolder", "root": str(tmp_path / "data"), "image_size": 16},
        "trainer__batch_size": 4,
        "probe__at": [],
    }
    clean = make_plan(config(**options)).fingerprint
    cat = tmp_path / "data" / "train" / "cat"
    shutil.copytree(cat, tmp_path / "data" / "train" / ".ipynb_checkpoints")
    shutil.copy(cat / "0.png", cat / "._0.png")
    shutil.copy(cat / "0.png", cat / "7.avif")
    (cat / "up").symlink_to("..")
    words = (
        "files that end in .avif: 1; hidden files and folders: 2; links to folders that are read already, or that hold the split: 1"
    )
    assert run(config(mode="plan", **options))["state"] == "planned"
    assert f"left out     {words}\n" in capsys.readouterr().out
    assert make_plan(config(**options)).fingerprint == clean
    trained = run(config(**options))
    assert f"WARNING left out of the data: {words}\n" in (Path(trained["folder"]) / "log.txt").read_text()


def test_names_that_are_not_utf8_are_read(tmp_path, config, capsys):
    make_folder(tmp_path / "data")
    for split in ("train", "val"):
        folder = os.fsencode(tmp_path / "data" / split)
        os.rename(os.path.join(folder, b"cat"), os.path.join(folder, b"caf\xe9"))
        os.rename(os.path.join(folder, b"dog", b"1.png"), os.path.join(folder, b"dog", b"\xff.png"))
    (tmp_path / "data" / "train" / "dog" / os.fsdecode(b"1.\xfe")).touch()
    data = {"name": "imagefolder", "root": str(tmp_path / "data"), "image_size": 16}
    run(config(mode="plan", data=data, trainer__batch_size=4))
    assert "left out     files that end in .\\udcfe: 1\n" in capsys.readouterr().out
    assert run(config(data=data, trainer__batch_size=4))["state"] == "finished"


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_broken_image_whose_name_is_not_utf8_is_named(tmp_path, content):
    make_folder(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path / "train" / "cat") + b"/9\xff.png")).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(opened(tmp_path).batches(split_batches(11, 11), "train", None))
    assert "train/cat/9\\udcff.png" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train" / "cat" / "9.png").symlink_to("nowhere.png")
    with pytest.raises(ConfigError, match=r"cat/9\.png cannot be read \(No such file or directory\): copy it again"):
        opened(tmp_path)
    assert opened(tmp_path, skip_corrupt=True).left_out == {"images that cannot be read": 1}


def test_only_the_splits_that_are_asked_for_are_read(tmp_path):
    make_folder(tmp_path, [("test", 3)])
    options = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32)
    source = make_source(options, AugmentConfig(), CPU, ["test"])
    assert (source.classes, source.sizes) == (2, {"train": 0, "test": 3 * 2})
    assert [len(labels) for _, labels in source.batches(split_batches(6, 4), "test", None)] == [4, 2]
    with pytest.raises(ConfigError, match=r"expected a folder with train/ and val/ \(or test/\), one folder a class"):
        make_source(options, AugmentConfig(), CPU)
    with pytest.raises(ConfigError, match=r"expected a folder with train/, one folder a class in each"):
        make_source(options, AugmentConfig(), CPU, ["train"])


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
