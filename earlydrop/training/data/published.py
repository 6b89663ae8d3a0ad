"""Published sizes of datasets, known without opening them.

They are enough to plan a run on a dataset that is not on this machine, but not to train one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from earlydrop.training.config import DataConfig
from earlydrop.training.data.arrays import check_image_size, check_train_images
from earlydrop.training.data.glyphs import CLASSES
from earlydrop.training.data.source import Batch, KeyedIndices, Source
from earlydrop.training.data.text import BYTES

_PUBLISHED = {  # training and test images, classes, channels, pixels
    "mnist": (60_000, 10_000, 10, 1, 28),
    "fashion_mnist": (60_000, 10_000, 10, 1, 28),
    "cifar10": (50_000, 10_000, 10, 3, 32),
    "cifar100": (50_000, 10_000, 100, 3, 32),
}
_EMBEDDED = {"fashion_mnist_mini": 10, "glyphs": CLASSES, "text": BYTES}


def known_classes(name: str) -> int | None:
    """The number of classes of a dataset, by its name; None where only its files tell."""
    if name in _EMBEDDED:
        return _EMBEDDED[name]
    return _PUBLISHED[name][2] if name in _PUBLISHED else None


class PublishedSource(Source):
    """The sizes of a dataset, and blank images in place of its own."""

    absent = True

    def __init__(self, config: DataConfig, device: torch.device) -> None:
        train, test, self.classes, self.channels, self.image_size = _PUBLISHED[config.name]
        check_train_images(config, train, self.classes)
        check_image_size(config, self.image_size)
        self.sizes = {"train": config.train_images or train, "test": test}
        self.digest = "not on this machine"
        self._device = device

    def batches(
        self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None
    ) -> Iterator[Batch]:
        for _, indices in keyed:
            yield self.blank(len(indices), self._device), (indices % self.classes).to(self._device)
