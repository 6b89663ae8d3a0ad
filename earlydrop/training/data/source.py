"""The interface between a dataset and the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
KeyedIndices = Iterable[tuple[int, Tensor]]
"""For each batch, a key that names its random stream, and its image indices, (B,)."""

Once = Callable[[Callable[[], Any]], Any]
"""Calls a function on one of several workers.

All of them get its result, or the `ConfigError` that it raises.
"""


class ExtraSet(NamedTuple):
    """A further test set (``data.extra``): images of a split of a `Source`, and their scoring.

    Attributes:
        split: The split that `Source.batches` reads it as.
        indices: The images of the split that count, (N,).
        classes: Number of classes that it has images of.
        matched: Words for how its classes were matched to those of training.
        columns: The classes whose logits count, K of them, ascending. A label is an index into
            them. None if all classes count.
        answers: The right labels of every image of the split, (M, L), padded with -1, from a file
            of label lists. None if each image has the label of its folder.
        digest: Hash of the names, sizes and labels of its images, or of the file of label lists.
        left_out: How many files, folders and links of it are not used, by reason.
    """

    split: str
    indices: Tensor
    classes: int
    matched: str
    columns: Tensor | None
    answers: Tensor | None
    digest: str
    left_out: Mapping[str, int]


def alone(make: Callable[[], Any]) -> Any:
    """Call a function in this process: the `Once` of a single process."""
    return make()


class Source(Protocol):
    """Images by index, clean or augmented.

    A text has contexts in place of images, here and elsewhere.

    Attributes:
        classes: Number of classes; of a text, of tokens.
        channels: Channels of an image; 0 for a text.
        image_size: Side of an image in pixels; 0 for a text.
        context: Tokens of a context; None for images.
        sizes: Number of images in the splits ``"train"`` and ``"test"``; 0 in one that was not
            asked for. Endless data gives the size of a fixed set that replaces the split.
        digest: Hash of the content; part of the fingerprint.
        reads_files: Whether every batch is read from files, so that reading may limit the speed of
            a run.
        left_out: How many files, folders and links of the data are not used, by reason.
        absent: Whether these are published sizes of a dataset that is not on this machine.
        extra: The further test sets (``data.extra``), by name.
    """

    classes: int
    channels: int
    image_size: int
    context: int | None = None
    sizes: dict[str, int]
    digest: str
    reads_files: bool = False
    left_out: Mapping[str, int] = MappingProxyType({})
    absent: bool = False
    extra: Mapping[str, ExtraSet] = MappingProxyType({})

    def batches(
        self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None
    ) -> Iterator[Batch]:
        """Images and labels for batches of indices, in order.

        Args:
            keyed: The batches' keys and indices.
            split: ``"train"`` or ``"test"``.
            augmented: Seed and purpose of the stream that augmentation is drawn from, by key; None
                for clean images.

        Yields:
            Images, (B, C, H, W) float32 and normalised, and labels, (B,) int64, on the device that
            trains; of a text, tokens and the tokens that come next, both (B, T) int64.
        """
        ...

    def serial(self) -> Source:
        """The same data, read by the process that asks for it."""
        return self

    def close(self) -> None:
        """End the processes that read the data; the next batch starts new ones."""
        return

    def shared_memory(self, *batch_sizes: int) -> int:
        """Bytes of shared memory for the batches that are read ahead.

        Args:
            *batch_sizes: Images of a batch, for each pass that runs at the same time.
        """
        return 0

    def blank(self, count: int, device: torch.device) -> Tensor:
        """A batch of ``count`` zero inputs."""
        if self.context is not None:
            return torch.zeros(count, self.context, dtype=torch.int64, device=device)
        return torch.zeros(count, self.channels, self.image_size, self.image_size, device=device)
