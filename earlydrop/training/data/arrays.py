"""Datasets that fit in memory: the embedded one, Fashion-MNIST, MNIST and CIFAR."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import augment
from earlydrop.training.data.copies import sent
from earlydrop.training.data.embedded import unpacked
from earlydrop.training.data.source import Batch, KeyedIndices, Source
from earlydrop.training.fields import ConfigError
from earlydrop.training.streams import stream

EMBEDDED = Path(__file__).parent / "fashion_mnist_mini.xz"
EMBEDDED_SHA256 = "5e8d0c078385f6bdda2fd863bc57fc1b11a43a93dd6995ffd2dcc8c90c0bdff2"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADS = Path("~/.cache/earlydrop/data")
"""The folder of downloaded datasets if ``data.root`` is null."""

Array = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class AbsentDataError(ConfigError):
    """A dataset is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class ImageArrays:
    """A dataset in memory.

    Attributes:
        train_images: uint8, (N, C, H, W).
        train_labels: int64, (N,).
        test_images: uint8, (M, C, H, W).
        test_labels: int64, (M,).
        classes: Number of classes.
        digest: SHA-256 of the content.
    """

    train_images: Array
    train_labels: Labels
    test_images: Array
    test_labels: Labels
    classes: int
    digest: str


def read_idx(path: Path) -> Array:
    """Read a gzipped or plain IDX file of bytes, the format of MNIST.

    Raises:
        ConfigError: The file is not an IDX file, cannot be read or unpacked, or is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): fetch the published file again"
        ) from error
    dimensions = raw[3] if len(raw) > 4 and raw[:3] == b"\x00\x00\x08" else 0
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i]) for i in range(dimensions))
    if not shape or len(raw) != 4 + 4 * dimensions + math.prod(shape):
        raise ConfigError(f"{path} is not a complete IDX file: fetch the published file again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def image_arrays(
    train: Array, train_labels: Any, test: Array, test_labels: Any, classes: int
) -> ImageArrays:
    """A dataset from its arrays; images may lack the channel, labels may be of any integer type.

    Raises:
        ConfigError: There are no images, the images are not square or not bytes, the training and
            the test images differ in shape, the number of labels differs from the number of images,
            or a label is not one of the classes.
    """
    train, train_labels = _checked_split("training", train, train_labels, classes)
    test, test_labels = _checked_split("test", test, test_labels, classes)
    if train.shape[1:] != test.shape[1:]:
        raise ConfigError(
            f"training images have shape {train.shape[1:]}, test images {test.shape[1:]}: expected "
            "the same"
        )
    # Labels that fit are hashed as single bytes: the published files store them so.
    narrow = np.uint8 if classes <= 256 else np.dtype("<i8")
    digest = hashlib.sha256()
    for array in (train, train_labels.astype(narrow), test, test_labels.astype(narrow)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return ImageArrays(train, train_labels, test, test_labels, classes, digest.hexdigest())


def _checked_split(split: str, images: Array, given: Any, classes: int) -> tuple[Array, Labels]:
    """The images of a split as (N, C, H, H) and its labels as int64, after their checks."""
    labels = np.asarray(given)
    is_square = images.ndim in (3, 4) and images.shape[-1] == images.shape[-2]
    if not is_square or images.dtype != np.uint8:
        raise ConfigError(
            f"the {split} images are {images.dtype} of shape {images.shape}: expected bytes, "
            "(N, H, H) or (N, C, H, H)"
        )
    if len(images) == 0:
        raise ConfigError(f"there are no {split} images: expected one or more")
    if labels.shape != (len(images),):
        raise ConfigError(
            f"there are {len(images)} {split} images and labels of shape {labels.shape}: "
            "expected one label per image"
        )
    smallest, largest = labels.min(), labels.max()
    if smallest < 0 or largest >= classes:
        raise ConfigError(
            f"a {split} label is {largest if largest >= classes else smallest}: "
            f"expected 0 to {classes - 1}"
        )
    return images[:, None] if images.ndim == 3 else images, labels.astype(np.int64)


@functools.cache
def _unpacked() -> ImageArrays:
    """The embedded images, unpacked once per process. The runs of a sweep share them."""
    content = unpacked(EMBEDDED, EMBEDDED_SHA256)
    flat = np.frombuffer(content, np.uint8)
    train, train_labels, test, test_labels = np.split(
        flat, np.cumsum([10_000 * 784, 10_000, 2_500 * 784])
    )
    return image_arrays(
        train.reshape(-1, 28, 28), train_labels, test.reshape(-1, 28, 28), test_labels, 10
    )


def _fashion_mnist(config: DataConfig) -> ImageArrays:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    folders = [_DEBIAN]
    if config.root is not None:
        root = Path(config.root).expanduser()
        folders = [root, root / "FashionMNIST" / "raw"]
    for folder in folders:
        for ending in ("", ".gz"):
            files = [folder / (name + ending) for name in names]
            if all(file.is_file() for file in files):
                train, train_labels, test, test_labels = map(read_idx, files)
                return image_arrays(train, train_labels, test, test_labels, 10)
    return _torchvision(config)


def _torchvision(config: DataConfig) -> ImageArrays:
    """MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 by torchvision.

    They are read from ``data.root``, or from `DOWNLOADS`. They are downloaded to this folder only
    if ``data.download`` is true.
    """
    import torchvision.datasets

    makers: dict[str, tuple[Callable[..., object], int]] = {
        "mnist": (torchvision.datasets.MNIST, 10),
        "fashion_mnist": (torchvision.datasets.FashionMNIST, 10),
        "cifar10": (torchvision.datasets.CIFAR10, 10),
        "cifar100": (torchvision.datasets.CIFAR100, 100),
    }
    make, classes = makers[config.name]
    root = (Path(config.root) if config.root is not None else DOWNLOADS).expanduser()
    parts: list[Any] = []
    for train in (True, False):
        dataset = _part(make, root, train, config)
        images = np.asarray(dataset.data)
        labels = np.asarray(dataset.targets)
        parts += [images.transpose(0, 3, 1, 2) if images.ndim == 4 else images, labels]
    return image_arrays(parts[0], parts[1], parts[2], parts[3], classes)


def _part(make: Callable[..., object], root: Path, train: bool, config: DataConfig) -> Any:
    """The training or test images of a torchvision dataset.

    Missing images are downloaded if ``data.download`` is true.

    Raises:
        AbsentDataError: There are no images, and none could be downloaded.
        ConfigError: The files are damaged.
    """
    try:
        return make(str(root), train=train, download=False)
    except (RuntimeError, OSError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError) or "not found" in str(error)
        if not absent:
            raise ConfigError(
                f"data.name is {config.name!r}: its files in {root} are damaged ({error}); delete "
                "them and fetch them again"
            ) from error
        if not config.download:
            raise AbsentDataError(_how_to_get(config, root, error)) from error
    print(f"downloading {config.name} into {root}", file=sys.stderr)
    try:
        return make(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise AbsentDataError(
            f"data.name is {config.name!r}: it could not be downloaded into {root} ({error}); "
            "get it in another way, and set data.root to its folder"
        ) from error


def _how_to_get(config: DataConfig, root: Path, error: Exception) -> str:
    ways = [
        f"fetch it with data.download=true, into {root if config.root is not None else DOWNLOADS}",
        f"set data.root to a folder into which torchvision downloaded {config.name}",
    ]
    if config.name == "fashion_mnist":
        package = "install Debian's package dataset-fashion-mnist"
        ways.insert(0, package if config.root is None else f"{package} and leave out data.root")
    ways.append("use data=fashion_mnist_mini, which comes with earlydrop")
    missing = "not on this machine"
    if "corrupted" in str(error):  # torchvision does not say which
        missing += ", or damaged"
    return (
        f"data.name is {config.name!r}: {missing} (looked for in {root}). "
        f"Either {', or '.join(ways)}"
    )


ARRAYS: dict[str, Callable[[DataConfig], ImageArrays]] = {
    "fashion_mnist_mini": lambda config: _unpacked(),
    "fashion_mnist": _fashion_mnist,
    "mnist": _torchvision,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
}
"""Every dataset in memory by its name."""


def load_arrays(config: DataConfig) -> ImageArrays:
    """Load a dataset. If ``data.train_images`` is given, keep only that many training images.

    Raises:
        ConfigError: ``data.root`` or the dataset is not there or cannot be read, or
            ``data.train_images`` is larger than the training set or smaller than the number of
            classes.
    """
    arrays = ARRAYS[config.name](config)
    if config.train_images is None:
        return arrays
    check_train_images(config, len(arrays.train_labels), arrays.classes)
    keep = stratified(arrays.train_labels, config.train_images, arrays.classes)
    return image_arrays(
        arrays.train_images[keep],
        arrays.train_labels[keep],
        arrays.test_images,
        arrays.test_labels,
        arrays.classes,
    )


def check_train_images(config: DataConfig, images: int, classes: int) -> None:
    """Refuse ``data.train_images`` above the number of training images, or below the classes."""
    if config.train_images is not None and not classes <= config.train_images <= images:
        raise ConfigError(
            f"data.train_images is {config.train_images}: {config.name} has {images} training "
            f"images of {classes} classes; expected {classes} to {images}"
        )


def check_image_size(config: DataConfig, size: int) -> None:
    """Refuse ``data.image_size`` that is not the size of the images, in pixels."""
    if config.image_size not in (None, size):
        raise ConfigError(
            f"data.image_size is {config.image_size}: {config.name} has images of {size} "
            "pixels; leave it null"
        )


def stratified(labels: Labels, count: int, classes: int) -> npt.NDArray[np.int64]:
    """Indices of the first images of each class, ascending.

    Each class gives the same number of images, or all that it has if these are fewer. If images
    remain to be chosen, the first classes with more images give one more each.

    Args:
        labels: The class of each image, of shape (images,).
        count: The number of images to keep, at most all.
        classes: The number of classes.
    """
    available = np.bincount(labels, minlength=classes)
    share = count // classes
    while share < available.max() and np.minimum(available, share + 1).sum() <= count:
        share += 1
    taken = np.minimum(available, share)
    larger = np.flatnonzero(available > share)
    taken[larger[: count - taken.sum()]] += 1
    kept = [np.flatnonzero(labels == label)[: taken[label]] for label in range(classes)]
    return np.sort(np.concatenate(kept))


class ImagesInMemory(Source):
    """Images kept on the device that trains. Batches are normalised, and augmented if asked."""

    def hold(
        self,
        images: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        scale: Tensor,
        offset: Tensor,
        options: AugmentConfig,
        device: torch.device,
    ) -> None:
        """Take the images of both splits.

        Args:
            images: Per split, of shape (count, channels, height, width).
            labels: Per split, of shape (count,).
            scale: One number per channel. A normalised image is ``image * scale - offset``.
            offset: One number per channel.
            options: How training images are augmented.
            device: Where batches are made.
        """
        pad = [options.shift] * 4
        self._options = options
        self._images = {split: F.pad(values, pad).to(device) for split, values in images.items()}
        self._labels = {split: values.to(device) for split, values in labels.items()}
        self._scale = scale.float().view(1, -1, 1, 1).to(device)
        self._offset = offset.float().view(1, -1, 1, 1).to(device)

    def batches(
        self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None
    ) -> Iterator[Batch]:
        for key, indices in keyed:
            generator = stream(*augmented, key) if augmented is not None else None
            images = augment.shift_and_flip(
                self._images[split], indices, self._options.shift, self._options.flip, generator
            )
            images = images * self._scale - self._offset
            if generator is not None and self._options.erasing > 0:
                images = augment.erase(images, self._options.erasing, generator)
            yield images, self._labels[split][sent(indices, self._labels[split].device)]


class ArraySource(ImagesInMemory):
    """Images in memory, normalised by the mean and standard deviation of the training images."""

    def __init__(self, config: DataConfig, options: AugmentConfig, device: torch.device) -> None:
        arrays = load_arrays(config)
        size = arrays.train_images.shape[-1]
        check_image_size(config, size)
        if options.shift >= size:
            raise ConfigError(
                f"augment.shift is {options.shift}: expected less than the image's {size} pixels"
            )
        self.classes, self.digest = arrays.classes, arrays.digest
        self.channels, self.image_size = arrays.train_images.shape[1], size
        self.sizes = {"train": len(arrays.train_labels), "test": len(arrays.test_labels)}
        axes = (0, 2, 3)
        mean = arrays.train_images.mean(axes, dtype=np.float64) / 255
        spread = arrays.train_images.std(axes, dtype=np.float64) / 255
        if not spread.all():
            raise ConfigError(
                f"data.name is {config.name!r}: a channel of its training images has the same "
                "value in every pixel, so it cannot be normalised; expected images that differ"
            )
        images = {"train": arrays.train_images, "test": arrays.test_images}
        labels = {"train": arrays.train_labels, "test": arrays.test_labels}
        self.hold(
            images={split: torch.from_numpy(array.copy()) for split, array in images.items()},
            labels={split: torch.from_numpy(array) for split, array in labels.items()},
            scale=torch.from_numpy(np.asarray(1 / (255 * spread))),
            offset=torch.from_numpy(np.asarray(mean / spread)),
            options=options,
            device=device,
        )
