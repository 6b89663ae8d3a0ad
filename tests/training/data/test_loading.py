import multiprocessing
import shutil
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


def test_an_image_folder_is_the_same_whatever_the_workers(tmp_path):
    make_folder(tmp_path)
    seen = []
    for workers in (0, 2):
        config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers)
        released = AugmentConfig(
            mixup=0.8, crop=True, randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.4, erasing=0.25
        )
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
        drawn = torch.stack(
            [
                images
                for images, _ in source.batches(
                    [(key, every) for key in range(8)], split, (0, "augment")
                )
            ]
        )
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
    source = make_source(
        DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers),
        AugmentConfig(),
        CPU,
    )
    before = set(multiprocessing.active_children())
    with pytest.raises(ConfigError) as caught:
        list(source.batches(split_batches(10, 5), "train", None))
    assert str(broken) in str(caught.value)
    assert "cannot be read as an image" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    # The workers have ended, though the error's traceback still holds the loader.
    assert set(multiprocessing.active_children()) <= before


def test_the_plan_says_how_much_shared_memory_workers_take(tmp_path, config, capsys, monkeypatch):
    make_folder(tmp_path / "data")
    data = {
        "name": "imagefolder",
        "root": str(tmp_path / "data"),
        "image_size": 16,
        "workers": 3,
        "train_images": None,
    }
    options = {
        "data": data,
        "trainer__batch_size": 4,
        "evaluation__batch_size": 100,
        "probe__at": [],
        "augment__erasing": 0.0,
    }
    run(config(mode="plan", **options))
    needed = (
        3 * 2 * (4 + 100) * 3 * 16 * 16
    )  # workers, batches ahead, images of training and of an evaluation, bytes of an image
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("shared "))
    assert (
        f"{needed / 1e3:.3g} kB for each worker, of batches that data.workers=3 read ahead" in line
    )
    assert "too little" not in line
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    run(config(mode="plan", **options))
    assert (
        "too little; set fewer data.workers or a smaller evaluation.batch_size"
        in capsys.readouterr().out
    )
    run(config(mode="plan", **(options | {"data": data | {"workers": 0}})))
    assert "\nshared " not in capsys.readouterr().out
