"""The order of images in batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from earlydrop.training.streams import stream


def split_batches(count: int, size: int) -> list[tuple[int, Tensor]]:
    """All indices in order, in batches keyed from 0; the last may be smaller."""
    return list(enumerate(torch.arange(count).split(size)))


def training_order(
    seed: int, images: int, batch_size: int, start: int, stop: int
) -> Iterator[tuple[int, Tensor]]:
    """Step and indices, (batch_size,), of the steps ``start`` to ``stop - 1``.

    Each epoch has its own permutation. An incomplete last batch is left out.
    """
    steps_per_epoch = images // batch_size
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    for step in range(start, stop):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = torch.randperm(images, generator=stream(seed, "order", epoch))
        position = step % steps_per_epoch * batch_size
        yield step, order[position : position + batch_size]
