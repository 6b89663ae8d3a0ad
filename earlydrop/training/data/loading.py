"""Images that are decoded and augmented one by one, by this process or by worker processes."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import itertools
import random
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.copies import sent
from earlydrop.training.data.decode import Decode, decoder_of, for_tensors
from earlydrop.training.data.files import UNREADABLE
from earlydrop.training.data.source import Batch, KeyedIndices, Source
from earlydrop.training.data.transforms import (
    BrokenImageError,
    PixelBatch,
    Pixels,
    Transform,
    collate,
    load_image,
    make_transforms,
    normalised,
)
from earlydrop.training.data.workers import AHEAD, WorkerPool
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable
from earlydrop.training.streams import stream_seed


class Images(Protocol):
    """The images of one split, by index.

    Attributes:
        classes: Names of the classes; a label is an index into them.
        labels: The label of every image, (N,).
        left_out: How many files, folders and links are not used, by reason.
    """

    classes: list[str]
    left_out: Counter[str]

    @property
    def labels(self) -> Any: ...

    def __len__(self) -> int: ...

    def load(self, index: int, decode: Decode = load_image) -> Any:
        """The image as RGB, as ``decode`` gives it.

        Raises:
            BrokenImageError: It cannot be read.
        """
        ...

    def file_names(self) -> list[str]:
        """The name of every image's file, without its folders."""
        ...

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the images at these indices."""
        ...


class _Item(NamedTuple):
    """An image to read.

    Without a key, the image is not augmented. Otherwise the key is part of the name of its random
    stream.
    """

    split: str
    image: int
    key: int | None
    seed: int
    purpose: str


class _Transformed(torch.utils.data.Dataset[tuple[Pixels, int]]):
    """Images of all splits, cropped, and augmented if their item has a key."""

    def __init__(
        self, splits: Mapping[str, Images], train: Transform, clean: Transform, decode: Decode
    ) -> None:
        self.splits, self.train, self.clean, self.decode = splits, train, clean, decode

    def __getitem__(self, item: _Item) -> tuple[Pixels, int]:
        images = self.splits[item.split]
        image = images.load(item.image, self.decode)
        label = int(images.labels[item.image])
        if item.key is None:
            return self.clean(image), label
        drawn = stream_seed(item.seed, item.purpose, item.key, item.image)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            return self.train(image), label


class LoadedImages(Source):
    """Images that are read one by one, with the released augmentation.

    Augmentation follows the keys of `AugmentConfig`, in timm's implementation. It is drawn for each
    image from the seed, the purpose, the key of the batch and the image's index, so the number of
    workers changes nothing. Worker processes live as long as the source, or until `close`.
    """

    reads_files = True

    def __init__(
        self,
        opened: Callable[[], tuple[Mapping[str, Images], str]],
        config: DataConfig,
        options: AugmentConfig,
        device: torch.device,
    ) -> None:
        """Open the images.

        Args:
            opened: A function that returns the images of each split and their hash. It is called
                after the options are checked, because listing a large folder takes minutes.
            config: The keys of ``data``.
            options: How training images are augmented.
            device: Where batches are made.
        """
        self.image_size = config.image_size or 224
        self.channels = 3
        self.device = device
        decode = decoder_of(config.decoder)
        transforms = make_transforms(self.image_size, options)
        if config.decoder != "pil":
            transforms = for_tensors(transforms[0]), for_tensors(transforms[1])
        train, clean = (Transform(whole) for whole in transforms)
        splits, self.digest = opened()
        self.left_out = sum((images.left_out for images in splits.values()), Counter())
        self.classes = len(next(iter(splits.values())).classes)
        self.sizes = {"train": 0, "test": 0} | {
            split: len(images) for split, images in splits.items()
        }
        self.workers = config.workers
        self._erasing = options.erasing
        self._table = clean.table.to(device)  # the training transform has the same table
        self._dataset = _Transformed(splits, train, clean, decode)
        self._pool = WorkerPool(self._dataset, config.workers, pin=device.type == "cuda")
        # Not at the exit of the process: there WorkerPool stops its workers itself.
        weakref.finalize(self, self._pool.close).atexit = False

    def serial(self) -> LoadedImages:
        same = copy.copy(self)
        same.workers = 0
        return same

    def close(self) -> None:
        self._pool.close()

    def images(self, split: str) -> Images:
        """The images of a split."""
        return self._dataset.splits[split]

    def add(self, split: str, images: Images) -> None:
        """Add a split for `batches` to read. Call it before the first batch is read."""
        self._dataset.splits = {**self._dataset.splits, split: images}

    def shared_memory(self, *batch_sizes: int) -> int:
        image_bytes = 3 * self.image_size**2
        # The noise is float32, in a box of at most a third of an erased image.
        noise_per_byte = 4 * self._erasing / 3
        images = self.workers * AHEAD * sum(batch_sizes)
        return int(images * image_bytes * (1 + noise_per_byte))

    def batches(
        self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None
    ) -> Iterator[Batch]:
        seed, purpose = augmented or (0, "")

        def items() -> Iterator[list[_Item]]:
            for key, indices in keyed:
                stream_key = None if augmented is None else key
                yield [_Item(split, index, stream_key, seed, purpose) for index in indices.tolist()]

        read = self._pool.read(items()) if self.workers else self._read_here(items())
        try:
            for batch in read:
                yield normalised(batch, self._table), sent(batch.labels, self.device)
        except BrokenImageError as error:
            # A worker's error comes with its traceback in front.
            line = str(error).strip().splitlines()[-1]
            raise ConfigError(line.partition("BrokenImageError: ")[2] or line) from None
        finally:
            read.close()

    def _read_here(self, batches: Iterable[list[_Item]]) -> Generator[PixelBatch, None, None]:
        for batch in batches:
            yield collate([self._dataset[item] for item in batch])


def check_same_classes(root: str, splits: Mapping[str, Images], names: Mapping[str, str]) -> None:
    """Refuse a training and a test set whose classes differ.

    ``names`` holds the name of each split in the data, for messages.
    """
    if len(splits) < 2:
        return
    train, test = splits["train"].classes, splits["test"].classes
    for owner, other, only_in_owner in (
        (names["train"], names["test"], set(train) - set(test)),
        (names["test"], names["train"], set(test) - set(train)),
    ):
        if only_in_owner:
            raise ConfigError(
                f"data.root is {root!r}: {owner} has classes that {other} lacks: "
                f"{len(only_in_owner)}, such as {min(only_in_owner)!r}; expected the same classes "
                f"in both ({len(train)} in {names['train']}, {len(test)} in {names['test']})"
            )


_CHUNK = 100  # images that a thread decodes before it takes more


def _readable(images: Images, indices: range) -> list[int]:
    """The indices of the images that can be decoded."""
    readable = []
    for index in indices:
        try:
            images.load(index)
        except BrokenImageError:
            continue
        readable.append(index)
    return readable


def leave_out_corrupt(splits: Mapping[str, Images], workers: int) -> dict[str, list[int]]:
    """Decode every image once, and take those that cannot be decoded out of the splits.

    Returns:
        The indices of the images that are kept, by split.

    Raises:
        ConfigError: A class has no image left in a split.
    """
    kept: dict[str, list[int]] = {}
    for split, images in splits.items():
        count, classes = len(images), set(map(int, images.labels))
        chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        # Decoding releases the GIL.
        with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
            parts = pool.map(functools.partial(_readable, images), chunks)
            kept[split] = list(itertools.chain.from_iterable(parts))
        keep_readable(images, kept[split])
        lost = classes - set(map(int, images.labels))
        if lost:
            raise ConfigError(
                f"no image of class {printable(images.classes[min(lost)])!r} in the split "
                f"{split!r} can be read: copy the data again"
            )
    return kept


def keep_readable(images: Images, indices: Sequence[int]) -> None:
    """Keep only the readable images, and count the others in ``left_out``."""
    unreadable = len(images) - len(indices)
    if unreadable:
        images.keep(indices)
        images.left_out[UNREADABLE] += unreadable
