"""Tar files in the format of WebDataset, for file systems that are slow with many small files.

A tar file holds samples one after the other. A sample is an image and its label, two members with
the same key: ``00000012.jpg`` and ``00000012.cls``, whose text is the label's number. The key ends
at the first dot of the file's name. ``scripts/make_shards.py`` writes such files from an image
folder.

The package ``webdataset`` is not used. It reads a shard from start to end and shuffles samples as
they come, so the order depends on the number of workers and a stopped run cannot resume at the same
sample. Here the samples of a split are sorted by key, an epoch is a permutation of them, and the
random stream of a sample is named by its index. So shards and image folders give the same numbers.
This needs random access. Python's ``tarfile`` finds the position of each sample once
(`earlydrop.training.data.shard_index`). An image is then one read at a known offset.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.decode import Decode
from earlydrop.training.data.files import Samples
from earlydrop.training.data.folder import splits_of
from earlydrop.training.data.loading import LoadedImages, check_same_classes, leave_out_corrupt
from earlydrop.training.data.shard_index import ShardIndex, cached_index, key_of_member
from earlydrop.training.data.source import Once, alone
from earlydrop.training.data.transforms import BrokenImageError, load_image
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable

SHARD_LIST = "shardindex.json"
"""The list of a split's shards, in the format of ``wids``, with the number of samples of each."""
CLASS_LIST = "classes.json"
"""The names of the classes, in the order of their labels, beside the folders of the splits."""

_MOST_OPEN = 128  # files that a thread keeps open


def shards_of(folder: Path) -> dict[Path, int | None]:
    """The shards of a split in the order of their names, each with its number of samples.

    The number comes from the list of the split. Without a list it is None.

    Raises:
        ConfigError: There is none, one is missing, or they are compressed.
    """
    paths = sorted(folder.glob("*.tar"))
    listed = _listed(folder)
    if listed:
        missing = [name for name in listed if not (folder / name).is_file()]
    else:
        missing = _gaps([path.stem for path in paths])
    if missing:
        raise ConfigError(
            f"{folder / missing[0]} is missing (shards that are there: {len(paths)}): copy it again"
        )
    if not paths:
        packed = next(
            (path for path in sorted(folder.glob("*.t*gz")) + sorted(folder.glob("*.tar.*"))), None
        )
        if packed is not None:
            raise ConfigError(
                f"{packed} is compressed, so no sample can be read by itself: unpack it, images "
                "are compressed already"
            )
        raise ConfigError(
            f"{folder} holds no shard: expected tar files, such as {folder.name}-000000.tar"
        )
    return {path: listed.get(path.name) for path in paths}


def _listed(folder: Path) -> dict[str, int]:
    path = folder / SHARD_LIST
    if not path.is_file():
        return {}
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shardlist"]
        # A url may have the path that wids-index was given.
        return {PurePosixPath(shard["url"]).name: int(shard["nsamples"]) for shard in shards}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no list of shards ({error!r}): write it again, or delete it"
        ) from error


def _gaps(stems: Sequence[str]) -> list[str]:
    """The files missing from a numbering. Files missing at its start or end are not found.

    Numbers are a numbering if more than half of those between the first and the last are there.
    Others, such as dates, are not.
    """
    numbers: dict[tuple[str, int], set[int]] = {}
    for stem in stems:
        matched = re.fullmatch(r"(.*?)(\d+)", stem)
        if matched is not None:
            numbers.setdefault((matched[1], len(matched[2])), set()).add(int(matched[2]))
    missing: list[str] = []
    for (prefix, width), present in numbers.items():
        if 2 * len(present) <= max(present) - min(present):
            continue
        for number in sorted(set(range(min(present), max(present))) - present):
            missing.append(f"{prefix}{number:0{width}d}.tar")
    return missing


class _Open(threading.local):
    """Files that a thread of a process has open."""

    def __init__(self) -> None:
        self.files: dict[str, io.FileIO] = {}


class ShardImages:
    """The images of one split, with the interface `earlydrop.training.data.loading.Images`.

    Attributes:
        classes: Names of the classes; a label is an index into them.
        left_out: How many other members the shards have, by reason.
        samples: Name and label of every image.
        lengths: Bytes of every image, (N,).
    """

    def __init__(self, indexes: Mapping[Path, ShardIndex]) -> None:
        indices = list(indexes.values())
        names = [name for index in indices for name in index.names]
        keys = list(map(key_of_member, names))
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__))  # equal keys by shard
        labels = np.concatenate([index.labels for index in indices])[order]
        self.classes: list[str] = []
        self.left_out: Counter[str] = sum((index.left_out for index in indices), Counter())
        self.samples = Samples(
            (names[place], int(label)) for place, label in zip(order, labels, strict=True)
        )
        self.lengths = np.concatenate([index.lengths for index in indices])[order]
        self._paths = [str(path) for path in indexes]
        self._offsets = np.concatenate([index.offsets for index in indices])[order]
        self._shards = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices])[
            order
        ]
        self._open = _Open()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_open": _Open()}

    @property
    def labels(self) -> Any:
        return self.samples.labels

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, decode: Decode = load_image) -> Any:
        path, length = self._paths[self._shards[index]], int(self.lengths[index])
        name = f"{path}: {self.samples[index][0]}"
        try:
            content = _read_at(self._file(path), int(self._offsets[index]), length)
        except OSError as error:
            raise BrokenImageError(
                f"{printable(name)} cannot be read as an image: {error.strerror}"
            ) from error
        return decode(io.BytesIO(content), name)

    def file_names(self) -> list[str]:
        return [os.path.basename(name) for name, _ in self.samples]

    def keep(self, indices: Sequence[int]) -> None:
        self.samples = Samples(self.samples[index] for index in indices)
        self.lengths, self._offsets, self._shards = (
            values[list(indices)] for values in (self.lengths, self._offsets, self._shards)
        )

    def _file(self, path: str) -> io.FileIO:
        files = self._open.files
        if path not in files:
            while len(files) >= _MOST_OPEN:
                files.pop(next(iter(files))).close()
            files[path] = io.FileIO(path)
        return files[path]


def _read_at(file: io.FileIO, offset: int, length: int) -> bytes:
    if hasattr(os, "pread"):  # forked processes share the position of an inherited open file
        content: bytes = os.pread(file.fileno(), length, offset)
        return content
    file.seek(offset)
    return file.read(length)


def _name_classes(root: Path, split: str, images: ShardImages, first: Mapping[int, Path]) -> None:
    """Set the names of the classes. Refuse labels that do not number the classes from 0."""
    listed = root / CLASS_LIST
    names: list[str] | None = None
    if listed.is_file():
        try:
            content = json.loads(listed.read_text(encoding="utf-8"))
            if not isinstance(content, list):
                raise TypeError(f"it holds a {type(content).__name__}")
            names = [str(name) for name in content]
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{listed} is no list of classes ({error!r}): write it again, or delete it"
            ) from error
    labels = sorted(first)
    count = labels[-1] + 1 if names is None else len(names)
    if labels[-1] >= count:
        raise ConfigError(
            f"{first[labels[-1]]} has the label {labels[-1]}: {listed} has {count} classes; give "
            "the shards of one dataset"
        )
    images.classes = [str(label) if names is None else names[label] for label in labels]
    if len(labels) < count:
        lacking = next(label for label in range(count) if label not in first)
        raise ConfigError(
            f"{root / split} has no image of class {lacking}, and labels up to {labels[-1]} "
            f"({first[labels[-1]].name}): expected images "
            f"of all classes, 0 to {count - 1}"
        )


def _opened(config: DataConfig, folders: dict[str, Path]) -> tuple[dict[str, ShardImages], str]:
    """The images of each split, and the hash of their names, sizes and labels.

    Raises:
        ConfigError: A shard is missing, cut off or of another dataset, or the splits' classes
            differ.
    """
    root = Path(config.root or "").expanduser()
    splits: dict[str, ShardImages] = {}
    for split, folder in folders.items():
        shards = shards_of(folder)
        with ThreadPoolExecutor(max(config.workers, 1)) as pool:
            indexes = dict(zip(shards, pool.map(cached_index, shards), strict=True))
        first: dict[int, Path] = {}
        for path, index in indexes.items():
            expected = shards[path]
            if expected is not None and expected != len(index.names):
                raise ConfigError(
                    f"{path} has {len(index.names)} samples: {folder / SHARD_LIST} says "
                    f"{expected}; copy it again, or delete the list"
                )
            for label in np.unique(index.labels).tolist():
                first.setdefault(label, path)
        splits[split] = ShardImages(indexes)
        _name_classes(root, folder.name, splits[split], first)
    check_same_classes(
        config.root or "", splits, {split: f"{folder.name}/" for split, folder in folders.items()}
    )
    if config.skip_corrupt:
        leave_out_corrupt(splits, config.workers)
    digest = hashlib.sha256()
    for split, images in splits.items():
        for (name, label), length in zip(images.samples, images.lengths, strict=True):
            digest.update(f"{split}/{name}:{length}:{label}\n".encode("utf-8", "surrogateescape"))
    return splits, digest.hexdigest()


class ShardSource(LoadedImages):
    """A folder with ``train`` and ``val`` (or ``test``), tar files of WebDataset in each."""

    def __init__(
        self,
        config: DataConfig,
        options: AugmentConfig,
        device: torch.device,
        splits: Sequence[str] = ("train", "test"),
        once: Once = alone,
    ) -> None:
        folders = splits_of(config, splits)
        if config.train_images is not None:
            raise ConfigError(
                f"data.train_images is {config.train_images}: data=shards reads all; make fewer "
                "shards instead"
            )
        super().__init__(lambda: once(lambda: _opened(config, folders)), config, options, device)
