"""The images of an image folder with their classes, and the files that are left out, by reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""How the names of images end, in upper or lower case."""

HIDDEN = "hidden files and folders"
OUTSIDE = "files beside the class folders"
READ_ALREADY = "links to folders that are read already, or that hold the split"
OTHER = "files of other types"
UNREADABLE = "images that cannot be read"
_MOST_TYPES = 5


class Samples(Sequence[tuple[str, int]]):
    """Paths and labels as three arrays.

    A list of pairs would take 258 MB for ImageNet. Every loader process would end up with a copy of
    it, because Python stores a reference count in each object.
    """

    def __init__(self, samples: Iterable[tuple[str, int]] = ()) -> None:
        paths, labels = bytearray(), []
        ends: list[int] = []
        for path, label in samples:
            paths += os.fsencode(path)
            ends.append(len(paths))
            labels.append(label)
        self._paths = np.frombuffer(bytes(paths), dtype=np.uint8)
        self._ends = np.array([0, *ends], dtype=np.int64)
        self.labels = np.array(labels, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        start, end = self._ends[place], self._ends[place + 1]
        return os.fsdecode(self._paths[start:end].tobytes()), int(self.labels[place])


@dataclass
class ImageFiles:
    """The images of one split.

    Attributes:
        classes: Names of the class folders, sorted; a label is an index into them.
        samples: Path and label of every image.
        left_out: How many files, folders and links are not used, by reason.
    """

    classes: list[str] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)
    left_out: Counter[str] = field(default_factory=Counter)


def find_images(split: Path) -> ImageFiles:
    """The images of a folder with class folders, as torchvision's ``ImageFolder`` orders them.

    Names that begin with a dot, and ``__MACOSX``, are left out. A real folder is read only once, so
    links cannot form a loop. It is read by its own path if it has one below the split. Otherwise it
    is read by the first link to it: class folders that are links come first, then the links below
    class folders, both in the order of the classes. A link to the split itself, or to a folder that
    holds it, is not followed.

    Raises:
        ConfigError: There is no class folder, or one without an image.
        OSError: A folder cannot be read.
    """
    reader = _Reader(str(split))
    files = ImageFiles(reader.classes(), left_out=reader.left_out)
    if not files.classes:
        raise ConfigError(
            f"{split} holds no class folder: expected one folder per "
            f"class{_in_brackets(files.left_out)}"
        )
    reader.read_own_folders(files.classes)
    reader.follow_links(files.classes)
    samples: list[tuple[str, int]] = []
    for label, name in enumerate(files.classes):
        images = [(path, label) for _, paths in sorted(reader.images[name]) for path in paths]
        if not images:
            raise ConfigError(
                f"{split / printable(name)} holds no image: expected files that end in "
                f"{', '.join(IMAGE_ENDINGS)}"
                f"{_in_brackets(files.left_out)}"
            )
        samples += images
    files.samples = Samples(samples)
    return files


class _Reader:
    """Reads the folders of a split, each real one once."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.left_out: Counter[str] = Counter()
        # By class: folders with the paths of their images, and links to folders.
        self.images: dict[str, list[tuple[str, list[str]]]] = {}
        self.links: dict[str, list[str]] = {}
        real = Path(split).resolve()
        self.read = {str(folder) for folder in (real, *real.parents)}

    def classes(self) -> list[str]:
        """List the names of the class folders, sorted.

        A link to the folder of another class, to the split, or to a folder that holds the split is
        not a class.
        """
        folders: list[str] = []
        links: list[str] = []
        for entry in os.scandir(self.split):
            if _hidden(entry.name):
                self.left_out[HIDDEN] += 1
            elif not _is_folder(entry):
                self.left_out[OUTSIDE] += 1
            else:
                (links if entry.is_symlink() else folders).append(entry.name)
        known = [os.path.join(self.split, name) for name in folders]
        taken = self.read | {os.path.realpath(path) for path in known}
        for name in sorted(links):
            real = os.path.realpath(os.path.join(self.split, name))
            if real in taken:
                self.left_out[READ_ALREADY] += 1
            else:
                taken.add(real)
                folders.append(name)
        return sorted(folders)

    def read_own_folders(self, classes: list[str]) -> None:
        """Read the class folders and those below them, first those that are not links.

        Links below class folders are kept for later.
        """
        paths = {name: os.path.join(self.split, name) for name in classes}
        for name in sorted(classes, key=lambda name: os.path.islink(paths[name])):
            self.images[name], self.links[name] = [], []
            self._walk(name, paths[name])

    def follow_links(self, classes: list[str]) -> None:
        """Read the folders that the links lead to, and follow the links inside them."""
        for name in classes:
            links = self.links[name]  # grows while it is read
            for link in links:
                self._walk(name, link)

    def _walk(self, name: str, start: str) -> None:
        """Read a folder and those below it; links to folders are kept for later."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in self.read:
                self.left_out[READ_ALREADY] += 1
                continue
            self.read.add(real)
            images = []
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if _hidden(entry.name):
                    self.left_out[HIDDEN] += 1
                elif _is_folder(entry):
                    (self.links[name] if entry.is_symlink() else waiting).append(entry.path)
                elif entry.name.lower().endswith(IMAGE_ENDINGS):
                    images.append(entry.path)
                else:
                    self.left_out[type_in_words(entry.name)] += 1
            self.images[name].append((folder, images))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _hidden(name: str) -> bool:
    """Whether a name is hidden, or one that macOS adds to archives.

    Hidden names begin with a dot, such as ``.ipynb_checkpoints`` and ``._1.jpg``.
    """
    return name.startswith(".") or name == "__MACOSX"


def type_in_words(name: str) -> str:
    """The reason for which a file of another type is left out."""
    ending = os.path.splitext(name)[1].lower()
    return f"files that end in {printable(ending)}" if ending else "files without an ending"


def counts_in_words(left_out: Mapping[str, int]) -> str:
    """The files left out in words, such as ``files that end in .avif: 2``.

    Only the most frequent types of files are listed; the others are counted together.
    """
    counts = Counter(left_out)
    types = [
        reason for reason in counts if reason not in (HIDDEN, OUTSIDE, READ_ALREADY, UNREADABLE)
    ]
    for reason in sorted(types, key=lambda reason: (-counts[reason], reason))[_MOST_TYPES:]:
        counts[OTHER] += counts.pop(reason)
    return "; ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items()))


def _in_brackets(left_out: Mapping[str, int]) -> str:
    return f" (left out: {counts_in_words(left_out)})" if left_out else ""
