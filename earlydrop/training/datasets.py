"""Datasets: where the images come from. Small ones are whole arrays in memory; image folders are read image by image."""

from __future__ import annotations

import gzip
import hashlib
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from earlydrop.training.config import ConfigError, DataConfig

EMBEDDED = Path(__file__).parent / "fashion_mnist_mini.xz"
EMBEDDED_SHA256 = "5e8d0c078385f6bdda2fd863bc57fc1b11a43a93dd6995ffd2dcc8c90c0bdff2"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageArrays:
    """A dataset in memory.

    Attributes:
        train_images: uint8, (N, C, H, W).
        train_labels: uint8, (N,).
        test_images: uint8, (M, C, H, W).
        test_labels: uint8, (M,).
        classes: Number of classes.
        digest: SHA-256 of the content.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    classes: int
    digest: str


def read_idx(path: Path) -> Array:
    """Read a gzipped or plain IDX file, the format of MNIST.

    Args:
        path: The file.

    Returns:
        Its uint8 array.

    Raises:
        ConfigError: The file is not an IDX file of bytes, or is cut short.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = raw[3] if len(raw) > 4 and raw[:3] == b"\x00\x00\x08" else 0
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i]) for i in range(dimensions))
    if not shape or len(raw) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise ConfigError(f"{path} is not a complete IDX file: fetch the published file again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _arrays(train: Array, train_labels: Array, test: Array, test_labels: Array, classes: int) -> ImageArrays:
    train, test = (images[:, None] if images.ndim == 3 else images for images in (train, test))
    digest = hashlib.sha256()
    for array in (train, train_labels, test, test_labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return ImageArrays(train, train_labels, test, test_labels, classes, digest.hexdigest())


def _embedded(config: DataConfig) -> ImageArrays:
    content = lzma.decompress(EMBEDDED.read_bytes())
    if hashlib.sha256(content).hexdigest() != EMBEDDED_SHA256:
        raise ConfigError(f"{EMBEDDED.name} is damaged: its content has another SHA-256 than published; install earlydrop again")
    flat = np.frombuffer(content, np.uint8)
    train, train_labels, test, test_labels = np.split(flat, np.cumsum([10_000 * 784, 10_000, 2_500 * 784]))
    return _arrays(train.reshape(-1, 28, 28), train_labels, test.reshape(-1, 28, 28), test_labels, 10)


def _fashion_mnist(config: DataConfig) -> ImageArrays:
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    folders = [_DEBIAN]
    if config.root is not None:
        root = _existing_root(config)
        folders = [root, root / "FashionMNIST" / "raw"]
    for folder in folders:
        for ending in ("", ".gz"):
            files = [folder / (name + ending) for name in names]
            if all(file.is_file() for file in files):
                train, train_labels, test, test_labels = map(read_idx, files)
                return _arrays(train, train_labels, test, test_labels, 10)
    return _torchvision(config)


def _existing_root(config: DataConfig) -> Path:
    root = Path(config.root or "").expanduser()
    if not root.is_dir():
        raise ConfigError(f"data.root is {config.root!r}: there is no such folder; give the folder that holds {config.name}")
    return root


def _torchvision(config: DataConfig) -> ImageArrays:
    """MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 by torchvision, downloaded to ``data.root`` if they are not there."""
    import torchvision.datasets

    makers: dict[str, tuple[Callable[..., object], int]] = {
        "mnist": (torchvision.datasets.MNIST, 10),
        "fashion_mnist": (torchvision.datasets.FashionMNIST, 10),
        "cifar10": (torchvision.datasets.CIFAR10, 10),
        "cifar100": (torchvision.datasets.CIFAR100, 100),
    }
    make, classes = makers[config.name]
    root = str(_existing_root(config)) if config.root is not None else None
    parts: list[Array] = []
    for train in (True, False):
        try:
            if root is None:
                raise RuntimeError("data.root is not set")
            try:
                dataset = make(root, train=train, download=False)
            except RuntimeError:
                dataset = make(root, train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise ConfigError(_how_to_get(config, error)) from error
        images, labels = np.asarray(dataset.data), np.asarray(dataset.targets)  # type: ignore[attr-defined]
        parts += [images.transpose(0, 3, 1, 2) if images.ndim == 4 else images, labels.astype(np.uint8)]
    return _arrays(parts[0], parts[1], parts[2], parts[3], classes)


def _how_to_get(config: DataConfig, error: Exception) -> str:
    ways = [f"set data.root to a folder where torchvision has {config.name} or can download it to (it needs a network)"]
    if config.name == "fashion_mnist":
        ways.insert(0, "install Debian's package dataset-fashion-mnist")
    ways.append("use data=fashion_mnist_mini, which comes with earlydrop")
    return f"data.name is {config.name!r}, which is not on this machine ({error}). Either {', or '.join(ways)}"


ARRAYS: dict[str, Callable[[DataConfig], ImageArrays]] = {
    "fashion_mnist_mini": _embedded,
    "fashion_mnist": _fashion_mnist,
    "mnist": _torchvision,
    "cifar10": _torchvision,
    "cifar100": _torchvision,
}
NAMES = (*ARRAYS, "imagefolder")


def load_arrays(config: DataConfig) -> ImageArrays:
    """Load a dataset that fits in memory.

    Args:
        config: ``data.name``, ``data.root`` and ``data.train_images``.

    Returns:
        The arrays; of the training images the first ``train_images`` by class, if that is given.

    Raises:
        ConfigError: Unknown name, a missing root, a dataset that is not there, or more training images than it has.
    """
    if config.name not in ARRAYS:
        raise ConfigError(f"data.name is {config.name!r}: expected one of {', '.join(NAMES)}")
    arrays = ARRAYS[config.name](config)
    if config.train_images is None:
        return arrays
    if config.train_images > len(arrays.train_labels) or config.train_images < arrays.classes:
        raise ConfigError(
            f"data.train_images is {config.train_images}: {config.name} has {len(arrays.train_labels)} training images of "
            f"{arrays.classes} classes; expected a number between the two"
        )
    keep = _stratified(arrays.train_labels, config.train_images, arrays.classes)
    return _arrays(arrays.train_images[keep], arrays.train_labels[keep], arrays.test_images, arrays.test_labels, arrays.classes)


def _stratified(labels: Array, count: int, classes: int) -> npt.NDArray[np.int64]:
    """The first images of each class, as equally many as ``count`` allows, in their own order."""
    each = [count // classes + (c < count % classes) for c in range(classes)]
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(each)]))
