"""Data of somebody's own: a pair of datasets as images in memory, and a whole source."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source, own
from earlydrop.training.data.own import read_images
from earlydrop.training.fields import ConfigError

MODULE = """
import numpy as np
import torch
from earlydrop.training.data.source import Source

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)

def pictures():
    return [(image, i % 4) for i, image in enumerate(IMAGES)], [(image, 0) for image in IMAGES[:8]]

def tensors():
    images = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in IMAGES]
    train = [(image, torch.tensor(i % 4)) for i, image in enumerate(images)]
    return train, [(image, 0) for image in images[:8]]

class Whole(Source):
    def __init__(self, config, options, device, classes: int = 3):
        self.classes, self.channels, self.image_size = classes, 1, 4
        self.sizes, self.digest = {"train": config.train_images or 30, "test": 6}, "mine"

    def batches(self, keyed, split, augmented):
        for _, indices in keyed:
            yield indices.float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4), indices % self.classes

class Short(Whole):
    def batches(self, keyed, split, augmented):
        for _, indices in keyed:
            yield torch.zeros(len(indices), 1, 3, 3), indices % 3

def mixed():
    small = [(image[:4, :4], 0) for image in IMAGES[:1]]
    return [(image, i % 4) for i, image in enumerate(IMAGES)] + small, small

def half_scaled():
    train, test = pictures()
    return train, tensors()[1]

class Fixed(Whole):
    def __init__(self):
        self.classes, self.channels, self.image_size = 3, 1, 4
        self.sizes, self.digest = {"train": 30, "test": 6}, "fixed"

def stranger():
    class Other:
        sizes, batches = {}, None
    return Other()
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "ownpictures.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("ownpictures", None)


def source(name, **keys):
    return make_source(
        DataConfig(name=f"ownpictures:{name}", **keys),
        AugmentConfig(shift=0, flip=False),
        torch.device("cpu"),
    )


def all_of(source, split):
    return next(iter(source.batches([(0, torch.arange(source.sizes[split]))], split, None)))


@pytest.mark.parametrize("name", ["pictures", "tensors"])
def test_images_are_normalised_by_the_training_images(name):
    found = source(name)
    pixels = (
        np.random.default_rng(0)
        .integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
        .transpose(0, 3, 1, 2)
        / 255
    )
    mean, spread = (getattr(pixels, what)((0, 2, 3), keepdims=True) for what in ("mean", "std"))
    images, labels = all_of(found, "train")
    np.testing.assert_allclose(images.numpy(), (pixels - mean) / spread, atol=1e-5)
    assert labels.tolist() == [i % 4 for i in range(40)]
    np.testing.assert_allclose(
        all_of(found, "test")[0].numpy(), ((pixels - mean) / spread)[:8], atol=1e-5
    )
    assert (found.classes, found.channels, found.image_size, found.sizes) == (
        4,
        3,
        6,
        {"train": 40, "test": 8},
    )


def test_keys_of_image_folders_that_a_function_cannot_read_are_named(capsys):
    config = DataConfig(name="ownpictures:pictures", decoder="torchcodec")
    make_source(config, AugmentConfig(crop=True, shift=0), torch.device("cpu"))
    name = "data.name=ownpictures:pictures"
    said = capsys.readouterr().err
    assert f"warning: data.decoder not used: {name} has no parameter config\n" in said
    assert f"warning: augment.crop not used: {name} has no parameter options\n" in said


def test_one_image_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"its train images have different shapes, such as"):
        source("mixed")


def test_part_of_the_training_images_is_stratified_and_has_another_digest():
    few = source("pictures", train_images=10)
    assert all_of(few, "train")[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert few.digest != source("pictures").digest == source("pictures").digest
    with pytest.raises(
        ConfigError, match=r"data.train_images is 41: there are 40 training images of 4 classes"
    ):
        source("pictures", train_images=41)


def test_a_whole_source_is_taken_as_it_is():
    found = source("Whole", train_images=12, args={"classes": 2})
    assert (found.sizes["train"], found.classes) == (12, 2)
    for name, says in (
        ("Short", r"its train images have shape \(2, 1, 3, 3\), expected \(2, 1, 4, 4\)"),
        ("stranger", "is no Source"),
    ):
        with pytest.raises(ConfigError, match=says):
            source(name)


def test_images_of_another_scale_in_one_split_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"training images are torch.uint8 and its test images torch.float32: expected the",
    ):
        source("half_scaled")


def test_a_source_without_train_images_refuses_them():
    assert source("Fixed").sizes["train"] == 30
    with pytest.raises(
        ConfigError, match=r"data.train_images is 12: data.name=.* has no such argument"
    ):
        source("Fixed", train_images=12)


def test_a_dataset_of_ours_takes_no_arguments():
    with pytest.raises(
        ConfigError, match=r"data.args.count is 3: data.name=mnist takes no arguments"
    ):
        make_source(
            DataConfig(name="mnist", args={"count": 3}), AugmentConfig(), torch.device("cpu")
        )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 6), (1, 6, 6)),
        ((6, 6, 1), (1, 6, 6)),
        ((6, 6, 3), (3, 6, 6)),
        ((6, 6, 4), (4, 6, 6)),
        ((1, 6, 6), (1, 6, 6)),
        ((3, 6, 6), (3, 6, 6)),
        ((4, 6, 6), (4, 6, 6)),
        ((6, 6, 2), (6, 6, 2)),
        ((3, 6, 3), (3, 6, 3)),
    ],
)
def test_the_channels_of_an_array_come_first_or_last(shape, expected):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    tensor = own.as_image("data", "train[0]", image)
    assert tuple(tensor.shape) == expected
    last = len(shape) == 3 and expected != shape
    assert np.array_equal(
        tensor.numpy(), image.transpose(2, 0, 1) if last else image.reshape(expected)
    )
    assert tuple(own.as_image("data", "train[0]", torch.ones(shape[:2])).shape) == (1, *shape[:2])


def test_bytes_and_floats_of_the_same_images_are_normalised_alike():
    of_bytes, of_floats = source("pictures"), source("tensors")
    for split in ("train", "test"):
        assert torch.allclose(all_of(of_bytes, split)[0], all_of(of_floats, split)[0], atol=1e-5)
    images = all_of(of_bytes, "train")[0].double()
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5)


@pytest.mark.parametrize("change", ["pixel", "label", "type", "shape", "split"])
def test_the_digest_changes_with_what_is_learned_from(change):
    images = {name: torch.zeros(4, 1, 2, 2, dtype=torch.uint8) for name in ("train", "test")}
    labels = {name: torch.zeros(4, dtype=torch.int64) for name in images}
    before = own.digest_of_images({name: (images[name], labels[name]) for name in images})
    if change == "pixel":
        images["test"][3, 0, 1, 1] = 1
    elif change == "label":
        labels["train"][2] = 1
    elif change == "type":
        images["train"] = images["train"].to(torch.int8)
    elif change == "shape":
        images["train"] = images["train"].reshape(4, 1, 1, 4)
    else:
        images["train"], images["test"] = images["train"][:3], torch.zeros(5, 1, 2, 2).byte()
    assert own.digest_of_images({name: (images[name], labels[name]) for name in images}) != before


def test_all_images_and_one_of_each_class_are_the_limits():
    assert source("pictures", train_images=40).sizes["train"] == 40
    assert source("pictures", train_images=4).sizes["train"] == 4
    with pytest.raises(ConfigError, match=r"data.train_images is 3"):
        source("pictures", train_images=3)


def read(*images):
    return read_images("data.name is 'x'", "train", [(image, 0) for image in images])[0]


def test_a_picture_with_a_palette_is_read_in_its_colours():
    picture = Image.new("P", (4, 4))
    picture.putpalette([255, 255, 255])
    assert read(picture).unique().tolist() == [255]


def test_bytes_and_floats_in_one_split_are_refused():
    white = np.full((4, 4), 255, np.uint8), np.ones((4, 4), np.float32)
    with pytest.raises(ConfigError, match=r"its train images are torch.float32 and torch.uint8"):
        read(*white)


@pytest.mark.parametrize("shape", [(784,), (1, 1, 28, 28)])
def test_an_array_of_other_dimensions_is_told_its_shape(shape):
    with pytest.raises(ConfigError, match=r"the image of train\[0\] has shape"):
        read(np.zeros(shape))
