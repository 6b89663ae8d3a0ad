"""What every dataset offers the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor]
KeyedIndices = Iterable[tuple[int, Tensor]]
"""Batches to come: a number that names the batch's random stream, and the indices of its images, (B,)."""


class Source(Protocol):
    """Images by index, clean or augmented.

    Attributes:
        classes: Number of classes.
        channels: Channels of an image.
        image_size: Side of an image in pixels.
        sizes: Number of images in the splits ``"train"`` and ``"test"``.
        digest: Hash of the content; part of the fingerprint.
    """

    classes: int
    channels: int
    image_size: int
    sizes: dict[str, int]
    digest: str

    def batches(self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None) -> Iterator[Batch]:
        """Images and labels for batches of indices, in order.

        Args:
            keyed: The batches' keys and indices.
            split: ``"train"`` or ``"test"``.
            augmented: Seed and purpose of the stream that augmentation is drawn from, by key; None for clean images.

        Yields:
            Images, (B, C, H, W) float32 and normalised, and labels, (B,) int64, on the device that trains.
        """
        ...
