"""Batches: from datasets to what the model sees, drawn from the run's random streams.

A *source* gives augmented or clean images for lists of indices. `Objective` adds mixing and the loss: it is the training objective,
used alike by training, by the probe and by the evaluation on the training set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from earlydrop.training import augment
from earlydrop.training.config import AugmentConfig, ConfigError, DataConfig
from earlydrop.training.datasets import NAMES, load_arrays
from earlydrop.training.streams import stream, stream_seed

Batch = tuple[Tensor, Tensor]
KeyedIndices = Iterable[tuple[int, Tensor]]
"""Batches to come: a number that names the batch's random stream, and the indices of its images, (B,)."""


class ArraySource:
    """Images in memory, on the device that trains, normalised by the training images' mean and spread.

    Args:
        config: Which dataset.
        options: Shift and flip.
        device: Where the images are kept.
    """

    def __init__(self, config: DataConfig, options: AugmentConfig, device: torch.device) -> None:
        arrays = load_arrays(config)
        size = arrays.train_images.shape[-1]
        if config.image_size not in (None, size):
            raise ConfigError(f"data.image_size is {config.image_size}: {config.name} has images of {size} pixels; leave it null")
        if options.shift >= size:
            raise ConfigError(f"augment.shift is {options.shift}: expected less than the image's {size} pixels")
        self.options = options
        self.classes, self.digest = arrays.classes, arrays.digest
        self.channels, self.image_size = arrays.train_images.shape[1], size
        self.sizes = {"train": len(arrays.train_labels), "test": len(arrays.test_labels)}
        pad = [options.shift] * 4
        images = {"train": arrays.train_images, "test": arrays.test_images}
        labels = {"train": arrays.train_labels, "test": arrays.test_labels}
        self._images = {split: F.pad(torch.from_numpy(array.copy()), pad).to(device) for split, array in images.items()}
        self._labels = {split: torch.from_numpy(array.astype(np.int64)).to(device) for split, array in labels.items()}
        axes = (0, 2, 3)
        mean = arrays.train_images.mean(axes, dtype=np.float64) / 255
        spread = arrays.train_images.std(axes, dtype=np.float64) / 255
        self._scale = torch.tensor(1 / (255 * spread), dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._offset = torch.tensor(mean / spread, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def batches(self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None) -> Iterator[Batch]:
        """Images and labels for batches of indices.

        Args:
            keyed: The batches' keys and indices.
            split: ``"train"`` or ``"test"``.
            augmented: Seed and purpose of the stream that augmentation is drawn from, by key; None for clean images.

        Yields:
            Images, (B, C, H, W) float32, and labels, (B,) int64, on the device.
        """
        for key, indices in keyed:
            generator = stream(*augmented, key) if augmented is not None else None
            images = augment.shift_and_flip(self._images[split], indices, self.options.shift, self.options.flip, generator)
            yield images * self._scale - self._offset, self._labels[split][indices.to(self._labels[split].device)]


class _FolderImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images of a folder by (key, index): the key names the random stream of a batch, None the evaluation transform."""

    def __init__(self, files: Any, train_transform: Any, clean_transform: Any) -> None:
        self.files = files
        self.train_transform, self.clean_transform = train_transform, clean_transform

    def __getitem__(self, item: tuple[int | None, int, int, str]) -> tuple[Tensor, int]:
        key, index, seed, purpose = item
        image, label = self.files[index]
        if key is None:
            return self.clean_transform(image), label
        drawn = stream_seed(seed, purpose, key, index)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            return self.train_transform(image), label


class FolderSource:
    """A folder with ``train`` and ``val`` (or ``test``), each with one folder a class, as ImageNet is laid out.

    Augmentation is timm's (random resized crop, RandAugment, random erasing, flip), drawn for each image from (seed, batch, index), so the
    number of workers changes nothing.

    Args:
        config: ``data.root``, ``data.image_size`` (default 224) and ``data.workers``.
        options: Flip; shift does not apply.
        device: Where the batches go.
    """

    def __init__(self, config: DataConfig, options: AugmentConfig, device: torch.device) -> None:
        import torchvision.datasets
        from timm.data import create_transform

        if config.root is None:
            raise ConfigError("data.root is null: data=imagefolder needs the folder that holds train/ and val/")
        root = Path(config.root).expanduser()
        test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        if not (root / "train").is_dir() or test is None:
            raise ConfigError(
                f"data.root is {config.root!r}: expected a folder with train/ and val/ (or test/), one folder a class in each"
            )
        if config.train_images is not None:
            raise ConfigError("data.train_images is for datasets in memory: make a smaller folder instead")
        self.image_size, self.channels, self.device = config.image_size or 224, 3, device
        train_transform = create_transform(
            self.image_size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel",
            interpolation="bicubic", hflip=0.5 if options.flip else 0.0,
        )  # fmt: skip
        clean_transform = create_transform(self.image_size, is_training=False, crop_pct=224 / 256, interpolation="bicubic")
        try:
            files = {
                "train": torchvision.datasets.ImageFolder(str(root / "train")),
                "test": torchvision.datasets.ImageFolder(str(test)),
            }
        except (FileNotFoundError, OSError) as error:
            raise ConfigError(f"data.root is {config.root!r}: {error}") from error
        if files["train"].classes != files["test"].classes:
            raise ConfigError(f"data.root is {config.root!r}: train/ and {test.name}/ do not have the same classes")
        self.classes = len(files["train"].classes)
        self.sizes = {split: len(folder.samples) for split, folder in files.items()}
        self.workers = config.workers
        self._images = {split: _FolderImages(folder, train_transform, clean_transform) for split, folder in files.items()}
        digest = hashlib.sha256()  # of names and sizes: reading every image of ImageNet would take an hour
        for split, folder in files.items():
            for path, label in folder.samples:
                file = Path(path)
                digest.update(f"{split}/{file.parent.name}/{file.name}:{file.stat().st_size}:{label}\n".encode())
        self.digest = digest.hexdigest()

    def batches(self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None) -> Iterator[Batch]:
        """Images and labels for batches of indices, read by worker processes; see `ArraySource.batches`.

        Args:
            keyed: The batches' keys and indices.
            split: ``"train"`` or ``"test"``.
            augmented: Seed and purpose of the augmentation's stream; None for the evaluation transform.

        Yields:
            Images and labels on the device.
        """
        seed, purpose = augmented or (0, "")
        items = (
            [(key if augmented is not None else None, int(index), seed, purpose) for index in indices] for key, indices in keyed
        )
        loader = torch.utils.data.DataLoader(
            self._images[split], batch_sampler=items,  # type: ignore[arg-type]  # lazily: a long run has many
            num_workers=self.workers, pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )  # fmt: skip
        for images, labels in loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


Source = ArraySource | FolderSource


def make_source(config: DataConfig, options: AugmentConfig, device: torch.device) -> Source:
    """Open a dataset.

    Args:
        config: Which, and where.
        options: Augmentation.
        device: Where the images go.

    Returns:
        The source.

    Raises:
        ConfigError: The dataset is unknown or not there.
    """
    if config.name not in NAMES:
        raise ConfigError(f"data.name is {config.name!r}: expected one of {', '.join(NAMES)}")
    if config.root is not None and not Path(config.root).expanduser().is_dir():
        raise ConfigError(f"data.root is {config.root!r}: there is no such folder")
    return FolderSource(config, options, device) if config.name == "imagefolder" else ArraySource(config, options, device)


def split_batches(count: int, size: int) -> list[tuple[int, Tensor]]:
    """All indices in order, in keyed batches; the last may be smaller.

    Args:
        count: Number of images.
        size: Images in a batch.

    Returns:
        Keys from 0, and indices.
    """
    return list(enumerate(torch.arange(count).split(size)))


def training_order(seed: int, images: int, batch_size: int, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """The training batches of steps ``start`` to ``stop``: each epoch its own permutation, a last incomplete batch left out.

    Args:
        seed: The run's seed.
        images: Number of training images.
        batch_size: Images in a batch.
        start: First optimizer step.
        stop: Step after the last.

    Yields:
        Step and indices, (batch_size,).
    """
    steps_per_epoch = images // batch_size
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    for step in range(start, stop):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = torch.randperm(images, generator=stream(seed, "order", epoch))
        position = step % steps_per_epoch * batch_size
        yield step, order[position : position + batch_size]


def _noting(keyed: KeyedIndices, keys: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Pass batches on and note their keys; a loader may ask for batches ahead of those that it gives."""
    for key, indices in keyed:
        keys.append(key)
        yield key, indices


class Objective:
    """The training objective: augmentation, mixing, label smoothing and cross-entropy.

    Args:
        source: The images.
        options: What is drawn.
    """

    def __init__(self, source: Source, options: AugmentConfig) -> None:
        self.source, self.options = source, options

    def batches(self, keyed: KeyedIndices, seed: int, purpose: str) -> Iterator[Batch]:
        """Augmented and mixed training batches.

        Args:
            keyed: The batches' keys and indices.
            seed: Seed of the streams.
            purpose: Purpose of the streams.

        Yields:
            Images, and labels or soft targets.
        """
        options = self.options
        keys: list[int] = []
        for position, (images, labels) in enumerate(self.source.batches(_noting(keyed, keys), "train", (seed, purpose))):
            if options.mixup > 0 or options.cutmix > 0:
                generator = stream(seed, purpose + "-mix", keys[position])
                yield augment.mix(images, labels, self.source.classes, options.mixup, options.cutmix, options.switch, generator)
            else:
                yield images, labels

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective's mean loss.

        Args:
            logits: (B, K).
            targets: Labels, (B,), or soft targets, (B, K).

        Returns:
            A scalar.
        """
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.options.smoothing)
