"""Further test sets (``data.extra``) for the training classes. There are two kinds.

- A folder with one folder for each class: ImageNet-V2 (Recht et al. 2019, arXiv:1902.10811), -A
  (Hendrycks et al. 2021, arXiv:1907.07174), -R (Hendrycks et al. 2021, arXiv:2006.16241), -Sketch
  (Wang et al. 2019, arXiv:1905.13549). Its folders are matched to the training classes by name. If
  all names are numbers and the training classes are not, as in ImageNet-V2, a number is the index
  of a training class, from 0. The set may have images of only some classes: ImageNet-A and -R have
  200 of 1,000. Prediction and loss then use only the logits of these classes, as in Hendrycks et
  al.
- A JSON file of label lists for the images of the test set, sorted by file name, such as ReaL
  (Beyer et al. 2020, arXiv:2006.07159). A prediction is right if it is in the list of its image.
  Images with an empty list are left out, and there is no loss.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from earlydrop.training.config import DataConfig
from earlydrop.training.data.files import Samples, find_images
from earlydrop.training.data.folder import FolderImages, digest_of
from earlydrop.training.data.loading import Images, LoadedImages, leave_out_corrupt
from earlydrop.training.data.source import ExtraSet, Once
from earlydrop.training.extra import holds_lists
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable

_AGREEMENT = 0.5
"""Minimum share of images whose label is in their list. ImageNet with ReaL has about 0.9."""
_EXPECTED_LISTS = "expected a list of labels for every image, such as [[65], [970, 795], []]"


def splits_needed(config: DataConfig) -> set[str]:
    """The splits of the data that its further test sets need: label lists need the test split."""
    return {"test"} if any(map(holds_lists, map(str, config.extra.values()))) else set()


def add_extra(source: LoadedImages, config: DataConfig, once: Once) -> None:
    """Open the further test sets of a source, and add them to it.

    Args:
        source: The data; its classes are those that the sets are matched to.
        config: Its configuration.
        once: Runs the work that one of several workers can do for all.

    Raises:
        ConfigError: A set cannot be read, is empty, or has a class or a label that the training
            data lacks.
    """
    opened: dict[str, ExtraSet] = {}
    for name, place in config.extra.items():
        if holds_lists(place):
            opened[name] = _lists(f"data.extra.{name} is {place!r}", place, source)
            continue
        split = f"extra/{name}"
        classes = source.images(_any_split(source)).classes
        found = once(functools.partial(_read, name, config, classes))
        source.add(split, found.images)
        columns = found.columns if len(found.columns) < len(classes) else None
        opened[name] = ExtraSet(
            split=split,
            indices=torch.arange(len(found.images)),
            classes=len(found.columns),
            matched=found.matched,
            columns=None if columns is None else torch.tensor(columns),
            answers=None,
            digest=found.digest,
            left_out=found.images.left_out,
        )
    source.extra = opened


def _any_split(source: LoadedImages) -> str:
    """A split that is open; all have the same classes."""
    return "test" if source.sizes["test"] else "train"


class _Read(NamedTuple):
    """The images of a folder, labelled by their class's place in ``columns``."""

    images: FolderImages
    columns: list[int]
    matched: str
    digest: str


def _read(name: str, config: DataConfig, classes: Sequence[str]) -> _Read:
    """Read a folder, and match its classes to those of training."""
    place = config.extra[name]
    prefix = f"data.extra.{name} is {place!r}"
    try:
        files = find_images(Path(place).expanduser())
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{prefix}: {printable(str(error))}") from error
    places, matched = _matched(prefix, files.classes, classes)
    columns = sorted(places)
    position = {place: i for i, place in enumerate(columns)}
    new_label = [position[place] for place in places]
    files.samples = Samples((path, new_label[label]) for path, label in files.samples)
    files.classes = [classes[place] for place in columns]
    images = FolderImages(files)
    if config.skip_corrupt:
        leave_out_corrupt({f"data.extra.{name}": images}, config.workers)
    return _Read(images, columns, matched, digest_of({name: images}))


def _matched(prefix: str, names: Sequence[str], classes: Sequence[str]) -> tuple[list[int], str]:
    """The place of each class folder among the training classes, and how it was found.

    Raises:
        ConfigError: A folder is not a training class, or two folders are the same class.
    """
    known = f"the {len(classes):,} training classes, such as {printable(classes[0])!r}"
    if all(map(str.isdecimal, names)) and not all(map(str.isdecimal, classes)):
        places = [int(name) for name in names]
        if max(places) >= len(classes) or len(set(places)) < len(places):
            wrong = names[places.index(max(places))]
            raise ConfigError(
                f"{prefix}: its folders are numbers, up to {wrong!r}; expected each number once, "
                f"from 0 to {len(classes) - 1}: the index of one of {known}"
            )
        return places, "by index"
    place_of = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in names if name not in place_of]
    if unknown:
        raise ConfigError(
            f"{prefix}: {len(unknown)} of its {len(names)} folders, such as "
            f"{printable(unknown[0])!r}, are none of {known}; give a folder whose folders have the "
            "names of training classes"
        )
    return [place_of[name] for name in names], "by name"


def _lists(prefix: str, place: str, source: LoadedImages) -> ExtraSet:
    """A file of label lists for the images of the test set."""
    content = Path(place).expanduser().read_bytes()
    images = source.images("test")
    lists = parsed_lists(prefix, content, count=len(images), classes=source.classes)
    order = _by_file_name(prefix, images)
    answers = np.full((len(lists), max(map(len, lists))), -1, dtype=np.int64)
    for image, labels in zip(order, lists, strict=True):
        answers[image, : len(labels)] = labels
    counts = np.any(answers >= 0, axis=1)
    agree = (answers == np.asarray(images.labels)[:, None]).any(1)[counts].mean()
    if agree < _AGREEMENT:
        raise ConfigError(
            f"{prefix}: only {agree:.0%} of the test images have their own class in their list; "
            "expected lists in the order of the file names of these images, and labels in the "
            "order of the training classes; give the file of this test set; if shards renamed the "
            "images, use data=imagefolder"
        )
    return ExtraSet(
        split="test",
        indices=torch.from_numpy(np.flatnonzero(counts)),
        classes=len(np.unique(answers[answers >= 0])),
        matched="label lists",
        columns=None,
        answers=torch.from_numpy(answers),
        digest=hashlib.sha256(content).hexdigest(),
        left_out=Counter({"images with an empty list": int((~counts).sum())}),
    )


def parsed_lists(prefix: str, content: bytes, count: int, classes: int) -> list[list[int]]:
    """The lists of a JSON file; each holds labels of training classes.

    Args:
        prefix: The start of every message, such as ``data.extra.real is 'real.json'``.
        content: The file's content.
        count: Number of images, and so of lists, that is expected.
        classes: Number of training classes.

    Raises:
        ConfigError: It is not a JSON list of label lists, has another number of lists, has only
            empty lists, or has a label that is not a training class.
    """
    try:
        lists: Any = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{prefix}: it is no JSON ({error}); {_EXPECTED_LISTS}") from error
    if not isinstance(lists, list) or not all(_is_labels(labels) for labels in lists):
        raise ConfigError(f"{prefix}: it is not a list of label lists; {_EXPECTED_LISTS}")
    if len(lists) != count:
        raise ConfigError(
            f"{prefix}: it has {len(lists):,} lists and the test set {count:,} images; expected "
            "one list for each image"
        )
    largest = max((max(labels, default=-1) for labels in lists), default=-1)
    if largest < 0:
        raise ConfigError(f"{prefix}: every list in it is empty; {_EXPECTED_LISTS}")
    if largest >= classes:
        raise ConfigError(
            f"{prefix}: it has the label {largest}; expected 0 to {classes - 1}, the training "
            "classes"
        )
    return lists  # type: ignore[no-any-return]


def _is_labels(labels: Any) -> bool:
    """Whether something is a list of whole numbers from 0."""
    return isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)


def _by_file_name(prefix: str, images: Images) -> list[int]:
    """The images in the order of their files' names.

    Raises:
        ConfigError: Two images have the same file name, so the order is not defined.
    """
    names = images.file_names()
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ConfigError(
            f"{prefix}: {len(twice)} file names, such as {printable(twice[0])!r}, belong to "
            "several test images, so the order of the lists is not defined; expected a different "
            "file name for each image"
        )
    return sorted(range(len(names)), key=names.__getitem__)


def extra_record(extra: Mapping[str, ExtraSet]) -> dict[str, Any]:
    """The record of the further test sets: images, classes, how these were matched, and digest."""
    record = {}
    for name, extra_set in extra.items():
        record[name] = {
            "images": len(extra_set.indices),
            "classes": extra_set.classes,
            "matched": extra_set.matched,
            "digest": extra_set.digest,
        }
    return record


def scored(logits: Tensor, extra_set: ExtraSet) -> Tensor:
    """Select the logits of the classes of a further test set, (B, K), from all logits, (B, C)."""
    if extra_set.columns is None:
        return logits
    return logits.index_select(1, extra_set.columns.to(logits.device))
