"""Datasets of Hugging Face from a local copy, by the package ``datasets``. Nothing is downloaded.

The image files are read as they are stored. They are decoded and augmented as in an image folder,
so the same images in the same order give the same numbers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.decode import Decode
from earlydrop.training.data.files import IMAGE_ENDINGS
from earlydrop.training.data.loading import (
    LoadedImages,
    check_same_classes,
    keep_readable,
    leave_out_corrupt,
)
from earlydrop.training.data.source import Once, alone
from earlydrop.training.data.transforms import BrokenImageError, load_image
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable

_TEST = ("validation", "val", "test")  # the first of these splits that is there is the test set
_FORMS = (
    "a folder written by save_to_disk, one with parquet files, or one with train/ and val/ of "
    "class folders"
)


class HuggingFaceImages:
    """The images of one split, with the interface `earlydrop.training.data.loading.Images`.

    Attributes:
        classes: Names of the classes; a label is an index into them.
        left_out: How many images are not used, by reason.
        labels: The label of every image, (N,).
        split: The dataset's own name of the split.
    """

    def __init__(self, rows: Any, split: str, image: str, label: str) -> None:
        import datasets

        subject = f"the split {split!r}"
        for key, column in (("data.image", image), ("data.label", label)):
            if column not in rows.column_names:
                raise ConfigError(
                    f"{key} is {column!r}: {subject} has the columns {', '.join(rows.column_names)}"
                )
        self.split, self._image = split, image
        self.left_out: Counter[str] = Counter()
        self.labels = _labels(rows, split, label)
        names = getattr(rows.features[label], "names", None)
        self.classes: list[str] = list(names or map(str, range(int(self.labels.max()) + 1)))
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            wrong = self.labels.min() if self.labels.min() < 0 else self.labels.max()
            raise ConfigError(
                f"data.label is {label!r}: {subject} has the label {wrong}, expected 0 to "
                f"{len(self.classes) - 1}"
            )
        try:
            self._rows = rows.select_columns([image]).cast_column(
                image, datasets.Image(decode=False)
            )
        except (TypeError, ValueError, NotImplementedError) as error:  # arrow's are some of these
            raise ConfigError(
                f"data.image is {image!r}: {subject} has {rows.features[image]} there, expected "
                f"images ({_first_line(error)})"
            ) from error

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, decode: Decode = load_image) -> Any:
        stored = self._rows[index][self._image]
        name = f"{self.split}[{index}]"
        if stored is None:
            raise BrokenImageError(f"{name} cannot be read as an image: it is null")
        if stored["path"]:
            name += f" ({stored['path']})"
        return decode(
            stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]), name
        )

    def file_names(self) -> list[str]:
        return [name for name, _ in self.described()]

    def keep(self, indices: Sequence[int]) -> None:
        self._rows = self._rows.select(indices)
        self.labels = self.labels[list(indices)]

    def described(self) -> Iterator[tuple[str, int]]:
        """File name and size in bytes of every image; no image is read."""
        import pyarrow.compute as compute

        column = self._rows.data.column(self._image)
        sizes: list[int | None] = []
        paths: list[str | None] = []
        for chunk in column.chunks:
            sizes += compute.binary_length(chunk.field("bytes")).to_pylist()
            paths += chunk.field("path").to_pylist()
        places = (
            range(len(sizes))
            if self._rows._indices is None
            else self._rows._indices.column(0).to_pylist()
        )
        for place in places:
            size, path = sizes[place], paths[place] or ""
            if size is None:
                size = os.stat(path).st_size if os.path.isfile(path) else 0
            yield os.path.basename(path), size


def _labels(rows: Any, split: str, label: str) -> Any:
    feature = rows.features[label]
    if "int" not in str(getattr(feature, "dtype", "")):
        advice = ""
        if type(feature).__name__ == "Value":
            advice = f"; dataset.class_encode_column({label!r}) numbers the classes"
        raise ConfigError(
            f"data.label is {label!r}: the split {split!r} has {feature} there, "
            f"expected a whole number for each image{advice}"
        )
    values = rows.select_columns([label])[:][label]
    if not values or None in values:
        raise ConfigError(
            f"data.label is {label!r}: the split {split!r} has "
            + ("an image without a label" if values else "no image")
        )
    return np.array(values, dtype=np.int64)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    enabled = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()


def _load(root: Path) -> Any:
    """Load every split of a local copy, in any of the supported forms.

    Raises:
        ConfigError: The folder has none of these forms, or cannot be read.
    """
    import datasets

    try:
        with _without_progress_bars():
            if (root / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(root))
            if next(root.rglob("*.parquet"), None) is not None:
                return datasets.load_dataset("parquet", data_dir=str(root))
            if any(path.suffix.lower() in IMAGE_ENDINGS for path in root.glob("*/*/*")):
                return datasets.load_dataset("imagefolder", data_dir=str(root))
    except Exception as error:  # of arrow, of parquet, of the file system
        raise ConfigError(
            f"data.root is {str(root)!r}: the package datasets cannot read it "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    if (root / "dataset_info.json").is_file():
        raise ConfigError(
            f"data.root is {str(root)!r}: it holds one split; save a DatasetDict with train and "
            "validation, or test"
        )
    raise ConfigError(f"data.root is {str(root)!r}: expected {_FORMS}")


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or ["?"])[0])


def _opened(config: DataConfig, splits: Sequence[str]) -> dict[str, HuggingFaceImages]:
    """The images of each split that is asked for.

    Raises:
        ConfigError: A split or a column is missing, or the splits' classes differ.
    """
    root = str(config.root)
    loaded = _load(Path(root).expanduser())
    names = {
        "train": "train",
        "test": next((name for name in _TEST if name in loaded), "validation"),
    }
    for split in splits:
        if names[split] not in loaded:
            expected = "train" if split == "train" else f"one of {', '.join(_TEST)}"
            raise ConfigError(
                f"data.root is {root!r}: it has the splits {', '.join(loaded)}, expected {expected}"
            )
    images = {
        split: HuggingFaceImages(loaded[names[split]], names[split], config.image, config.label)
        for split in splits
    }
    check_same_classes(root, images, names)
    return images


def _digest(images: dict[str, HuggingFaceImages]) -> str:
    """Hash of the images' file names, sizes and labels."""
    digest = hashlib.sha256()
    for split, split_images in images.items():
        for (name, size), label in zip(split_images.described(), split_images.labels, strict=True):
            if size == 0:
                subject = f"{split_images.split} has an image that is empty or gone"
                raise ConfigError(
                    f"{subject} ({printable(name) or 'without a name'}): copy the data again, or "
                    "leave such images out with data.skip_corrupt=true"
                )
            digest.update(f"{split}/{name}:{size}:{label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class HuggingFaceSource(LoadedImages):
    """A local copy of a dataset of Hugging Face, with a split to train on and one to test on."""

    def __init__(
        self,
        config: DataConfig,
        options: AugmentConfig,
        device: torch.device,
        splits: Sequence[str] = ("train", "test"),
        once: Once = alone,
    ) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise ConfigError(
                "data.name is 'huggingface': the package datasets is not installed; pip install "
                "'earlydrop[datasets]'"
            )
        if config.root is None:
            raise ConfigError(f"data.root is null: data=huggingface needs {_FORMS}")
        if config.train_images is not None:
            raise ConfigError(
                f"data.train_images is {config.train_images}: data=huggingface reads all; select "
                "fewer images instead"
            )

        def first() -> tuple[str, dict[str, list[int]]]:
            """Fill the package's cache and find the corrupt images, on one worker for all."""
            images = _opened(config, splits)
            kept = leave_out_corrupt(images, config.workers) if config.skip_corrupt else {}
            return _digest(images), kept

        def opened() -> tuple[dict[str, HuggingFaceImages], str]:
            digest, kept = once(first)
            images = _opened(config, splits)
            for split, indices in kept.items():
                keep_readable(images[split], indices)
            return images, digest

        super().__init__(opened, config, options, device)
