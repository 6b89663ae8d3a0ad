import dataclasses
import gzip
import hashlib
import lzma

import numpy as np
import pytest
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source
from earlydrop.training.data.arrays import (
    ARRAYS,
    ArraySource,
    image_arrays,
    load_arrays,
    read_idx,
    stratified,
)
from earlydrop.training.data.embedded import unpacked
from earlydrop.training.fields import ConfigError

CPU = torch.device("cpu")


def test_the_embedded_images():
    arrays = load_arrays(DataConfig())
    assert arrays.classes == 10
    assert arrays.train_images.shape == (10_000, 1, 28, 28)
    assert np.bincount(arrays.train_labels).tolist() == [1_000] * 10
    assert np.bincount(arrays.test_labels).tolist() == [250] * 10
    small = load_arrays(DataConfig(train_images=25))
    assert sorted(np.bincount(small.train_labels).tolist()) == [2] * 5 + [3] * 5
    assert small.digest != arrays.digest


def write_idx(folder, split, count, suffix):
    for kind, array in (
        ("images-idx3", np.arange(count * 784).reshape(count, 28, 28)),
        ("labels-idx1", np.arange(count) % 10),
    ):
        header = (
            b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape)
        )
        content = header + array.astype(np.uint8).tobytes()
        (folder / f"{split}-{kind}-ubyte{suffix}").write_bytes(
            gzip.compress(content) if suffix else content
        )


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_a_folder(tmp_path, suffix):
    for split in ("train", "t10k"):
        write_idx(tmp_path, split, 40, suffix)
    source = make_source(DataConfig(name="fashion_mnist", root=str(tmp_path)), AugmentConfig(), CPU)
    assert source.sizes == {"train": 40, "test": 40}
    broken = tmp_path / f"train-images-idx3-ubyte{suffix}"
    broken.write_bytes(
        gzip.compress(b"\x00\x00\x08\x03" + bytes(40))
        if suffix
        else b"\x00\x00\x08\x03" + bytes(40)
    )
    with pytest.raises(ConfigError, match="not a complete IDX file"):
        read_idx(broken)


def test_images_are_normalised():
    source = ArraySource(DataConfig(), AugmentConfig(shift=0, flip=False), CPU)
    ((images, _),) = source.batches([(0, torch.arange(10_000))], "train", None)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "imagenet22k"}, "'imagenet22k'.*fashion_mnist_mini"),
        ({"name": "mnist"}, "not on this machine.*fashion_mnist_mini"),
        ({"name": "fashion_mnist", "root": "/nowhere"}, "'/nowhere'.*no such folder"),
        ({"name": "imagefolder"}, "data.root is null"),
        ({"train_images": 20_000}, "20000.*10000 training images"),
        ({"image_size": 32}, "image_size is 32.*28"),
    ],
)
def test_missing_data_is_an_error_that_names_the_ways(options, says):
    with pytest.raises(ConfigError, match=says):
        make_source(DataConfig(**options), AugmentConfig(), CPU)


@pytest.mark.parametrize(("download", "planning"), [(False, False), (True, False), (True, True)])
def test_data_is_downloaded_only_where_that_was_asked_for(
    monkeypatch, tmp_path, download, planning
):
    asked = []

    class Absent:
        def __init__(self, root, train, download):
            asked.append(download)
            raise RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr("torchvision.datasets.MNIST", Absent)
    config = DataConfig(name="mnist", root=str(tmp_path), download=download)
    if planning:
        planned = make_source(config, AugmentConfig(), CPU, planning=True)
        assert planned.sizes == {"train": 60_000, "test": 10_000}
    else:
        with pytest.raises(ConfigError):
            make_source(config, AugmentConfig(), CPU)
    assert (True in asked) == (download and not planning)


def test_labels_of_a_thousand_classes_stay_what_they_are(monkeypatch):
    labels = np.arange(1_000)
    images = np.arange(16_000).reshape(1_000, 4, 4).astype(np.uint8)
    monkeypatch.setitem(
        ARRAYS, "thousand", lambda _: image_arrays(images, labels, images, labels, 1_000)
    )
    source = ArraySource(DataConfig(name="thousand"), AugmentConfig(shift=0), CPU)
    ((_, found),) = source.batches([(0, torch.tensor([0, 256, 999]))], "train", None)
    assert found.tolist() == [0, 256, 999]
    few, many = (
        image_arrays(images[:9], labels[:9], images[:9], labels[:9], classes)
        for classes in (10, 257)
    )
    assert few.digest != many.digest  # labels are hashed as bytes only where they fit


def grey(count=8, shape=(4, 4), labels=None):
    images = np.arange(count * int(np.prod(shape))).reshape(count, *shape).astype(np.uint8)
    return images, np.arange(count) % 3 if labels is None else labels


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (grey(labels=np.arange(7)), grey(), "8 training images and labels of shape"),
        (grey(labels=np.arange(8)), grey(), "a training label is 7: expected 0 to 2"),
        (
            grey(labels=np.arange(8) - 4),
            grey(),
            "a training label is -4: expected 0 to 2|a training label is 3",
        ),
        (grey(shape=(4, 5)), grey(), "training images are uint8 of shape"),
        (
            (np.arange(8).astype(np.uint8), grey()[0]),
            grey(),
            "training images are uint8 of shape",
        ),  # files swapped
        (grey(), grey(shape=(5, 5)), "training images have shape"),
        (grey(0), grey(), "there are no training images"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(train, test, says):
    with pytest.raises(ConfigError, match=says):
        image_arrays(*train, *test, 3)


def test_constant_images_and_bad_archives_are_refused(tmp_path, monkeypatch):
    images, labels = np.full((8, 4, 4), 7, np.uint8), np.arange(8) % 3
    monkeypatch.setitem(ARRAYS, "grey", lambda _: image_arrays(images, labels, images, labels, 3))
    with pytest.raises(ConfigError, match="the same value in every pixel"):
        ArraySource(DataConfig(name="grey"), AugmentConfig(shift=0), CPU)
    for content in (b"", b"no gzip", gzip.compress(bytes(50))[:-12]):
        (tmp_path / "x.gz").write_bytes(content)
        with pytest.raises(ConfigError, match="fetch the published file again"):
            read_idx(tmp_path / "x.gz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08\x01",
        b"\x00\x00\x08\x01\x00\x00\x00\x02\x01",
        b"\x00\x00\x08\x01\x00\x00\x00\x02\x01\x02\x03",
        b"\x00\x00\x09\x01\x00\x00\x00\x02\x01\x02",
        b"\x00\x01\x08\x01\x00\x00\x00\x02\x01\x02",
        b"\x00\x00\x08\x00\x01",
    ],
)
def test_a_file_that_is_no_idx_file_is_refused(tmp_path, content):
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="not a complete IDX file"):
        read_idx(file)
    file.write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x02\x07\x08")
    assert read_idx(file).tolist() == [7, 8]


def test_only_augmented_images_are_erased():
    indices = torch.arange(64)
    plain = ArraySource(DataConfig(), AugmentConfig(), CPU)
    erased = ArraySource(DataConfig(), AugmentConfig(erasing=1.0), CPU)
    for augmented, expected in ((None, True), ((0, "augment"), False)):
        ((first, _),) = plain.batches([(0, indices)], "train", augmented)
        ((second, _),) = erased.batches([(0, indices)], "train", augmented)
        assert torch.equal(first, second) == expected


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_debian_has_a_package_of_fashion_mnist_alone(monkeypatch, tmp_path, name):
    config = DataConfig(name=name, root=str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        make_source(config, AugmentConfig(), CPU)
    advice = "install Debian's package dataset-fashion-mnist and leave out data.root, or"
    assert (advice in str(caught.value)) == (name == "fashion_mnist")


@pytest.mark.parametrize("count", [3, 10, 17, 20, 23])
def test_what_a_small_class_lacks_comes_from_the_others(count):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [15, 2, 6]))
    kept = stratified(labels, count, 3)
    assert len(kept) == count
    assert np.all(np.diff(kept) > 0)
    counts = np.bincount(labels[kept], minlength=3)
    for label, (number, available) in enumerate(zip(counts, (15, 2, 6), strict=True)):
        first = np.flatnonzero(labels == label)[:number]
        assert set(first) <= set(kept)
        assert number == available or number >= counts.max() - 1


def test_equal_classes_give_equal_shares():
    labels = np.tile([0, 1, 2], 10)
    assert np.bincount(labels[stratified(labels, 11, 3)]).tolist() == [4, 4, 3]


@pytest.mark.parametrize(("classes", "kind"), [(10, np.uint8), (256, np.uint8), (257, "<i8")])
def test_the_digest_is_that_of_the_images_and_of_labels_as_published(classes, kind):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (classes, 4, 4), dtype=np.uint8)
    labels = np.arange(classes)
    arrays = image_arrays(images, labels, images[:3], labels[:3], classes)
    digest = hashlib.sha256()
    for part in (images, labels.astype(kind), images[:3], labels[:3].astype(kind)):
        digest.update(part.tobytes())
    assert arrays.digest == digest.hexdigest()


def test_a_label_equal_to_the_number_of_classes_is_refused():
    images = np.zeros((3, 4, 4), dtype=np.uint8)
    with pytest.raises(ConfigError, match="label is 3: expected 0 to 2"):
        image_arrays(images, np.array([0, 1, 3]), images, np.array([0, 1, 2]), 3)


def test_all_training_images_and_one_of_each_class_are_the_limits():
    device = torch.device("cpu")
    for count in (10, 10_000):
        source = make_source(DataConfig(train_images=count), AugmentConfig(), device)
        assert source.sizes["train"] == count
    for count in (9, 10_001):
        with pytest.raises(ConfigError, match=f"data.train_images is {count}: .*10000 training"):
            make_source(DataConfig(train_images=count), AugmentConfig(), device)


def test_a_damaged_file_is_no_absent_one(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 3), ("t10k", 2)):
        images = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(784 * count)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(images)
        labels = bytes([0, 0, 8, 1, 0, 0, 0, count]) + bytes(range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    config = DataConfig(name="mnist", root=str(tmp_path))
    assert len(load_arrays(config).train_images) == 3
    cut = raw / "train-images-idx3-ubyte"
    cut.write_bytes(cut.read_bytes()[:-5])
    for download in (False, True):
        with pytest.raises(ConfigError, match=r"are damaged .* delete them and fetch them again"):
            load_arrays(dataclasses.replace(config, download=download))


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_an_embedded_file_that_is_damaged_is_named(content, tmp_path):
    file = tmp_path / "data.xz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data.xz cannot be read .*: install earlydrop again"):
        unpacked(file, "0")
    file.write_bytes(lzma.compress(b"other"))
    with pytest.raises(ConfigError, match=r"data.xz is damaged: the SHA-256"):
        unpacked(file, "0")
