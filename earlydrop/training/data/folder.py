"""Image folders such as ImageNet, one folder per class."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.decode import Decode
from earlydrop.training.data.files import ImageFiles, Samples, find_images
from earlydrop.training.data.loading import LoadedImages, check_same_classes, leave_out_corrupt
from earlydrop.training.data.source import Once, alone
from earlydrop.training.data.transforms import load_image
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable


class FolderImages:
    """The images of one split, with the interface `earlydrop.training.data.loading.Images`."""

    def __init__(self, files: ImageFiles) -> None:
        self.classes: list[str] = files.classes
        self.left_out: Counter[str] = files.left_out
        self.samples: Samples = files.samples

    @property
    def labels(self) -> Any:
        return self.samples.labels

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, decode: Decode = load_image) -> Any:
        return decode(self.samples[index][0])

    def file_names(self) -> list[str]:
        return [os.path.basename(path) for path, _ in self.samples]

    def keep(self, indices: Sequence[int]) -> None:
        self.samples = Samples(self.samples[index] for index in indices)


def splits_of(config: DataConfig, splits: Sequence[str]) -> dict[str, Path]:
    """The folder of each split that is asked for. The split ``test`` is ``val/``, else ``test/``.

    Raises:
        ConfigError: ``data.root`` is null, or a folder is not there.
    """
    if config.root is None:
        raise ConfigError(
            f"data.root is null: data={config.name} needs the folder that holds train/ and val/"
        )
    root = Path(config.root).expanduser()
    test = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    folders = {split: root / ("train" if split == "train" else test) for split in splits}
    if not all(folder.is_dir() for folder in folders.values()):
        expected = " and ".join(
            "train/" if split == "train" else "val/ (or test/)" for split in splits
        )
        inside = "tar files" if config.name == "shards" else "one folder per class"
        raise ConfigError(
            f"data.root is {config.root!r}: expected a folder with {expected}, {inside} in each"
        )
    return folders


def digest_of(splits: dict[str, FolderImages]) -> str:
    """Hash of the images' names, sizes and labels.

    Their content is not hashed, because reading every image of ImageNet would take an hour.

    Raises:
        ConfigError: A file cannot be read, or is empty. An interrupted copy leaves empty files.
    """
    digest = hashlib.sha256()
    for split, images in splits.items():
        for path, label in images.samples:
            try:
                size = os.stat(path).st_size
                fault = "is empty" if size == 0 else None
            except OSError as error:  # such as a link to a file that is gone
                fault = f"cannot be read ({error.strerror})"
            if fault is not None:
                raise ConfigError(
                    f"{printable(path)} {fault}: copy it again, or leave such images out with "
                    "data.skip_corrupt=true"
                )
            above, name = os.path.split(path)
            line = f"{split}/{os.path.basename(above)}/{name}:{size}:{label}\n"
            # A name that is not UTF-8 is hashed by its bytes.
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _listed(config: DataConfig, folders: dict[str, Path]) -> tuple[dict[str, FolderImages], str]:
    """The images of each split, and the hash of all of them.

    Raises:
        ConfigError: A split cannot be read, has a class without an image, or has an empty file; or
            the classes of the splits differ.
    """
    try:
        splits = {split: FolderImages(find_images(folder)) for split, folder in folders.items()}
    except OSError as error:
        raise ConfigError(f"data.root is {config.root!r}: {printable(str(error))}") from error
    check_same_classes(
        config.root or "", splits, {split: f"{folder.name}/" for split, folder in folders.items()}
    )
    if config.skip_corrupt:
        leave_out_corrupt(splits, config.workers)
    return splits, digest_of(splits)


class FolderSource(LoadedImages):
    """A folder laid out as ImageNet: ``train`` and ``val`` (or ``test``) of class folders."""

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
                "data.train_images is for datasets in memory: make a smaller folder instead"
            )
        super().__init__(lambda: once(lambda: _listed(config, folders)), config, options, device)
