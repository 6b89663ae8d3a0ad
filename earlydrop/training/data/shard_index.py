"""The index of a shard: the positions of its samples, found once for every tar file."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from earlydrop.training.data.files import IMAGE_ENDINGS, type_in_words
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable

INDEXES = Path("~/.cache/earlydrop/shards")
"""Where the index of each shard is kept. It is made anew for a file that was changed."""

_LABEL = ".cls"
_BLOCK = 512  # bytes: a tar file is made of such blocks, and ends with two of zeros


class ShardIndex(NamedTuple):
    """The positions of the samples in one shard.

    Attributes:
        names: The name of each image in the tar file, such as ``00000012.jpg``, N of them.
        offsets: Position of the first byte of each image in the tar file, N of them.
        lengths: Number of bytes of each image, N of them.
        labels: The class of each image, N of them.
        left_out: How many other files the tar file holds, by type of file.
    """

    names: list[str]
    offsets: list[int]
    lengths: list[int]
    labels: list[int]
    left_out: Counter[str]


def read_index(path: Path) -> ShardIndex:
    """Find the positions of the samples in a shard.

    Raises:
        ConfigError: It is not a tar file, is cut off or holds no sample. Or a sample does not have
            exactly one image and one label, its image is empty, or its label is not a class number.
    """
    rows: list[tuple[str, int, int, int]] = []
    left_out: Counter[str] = Counter()
    try:
        with tarfile.TarFile(path) as tar:
            files = (member for member in tar if member.isreg())
            for key, members in itertools.groupby(files, lambda file: key_of_member(file.name)):
                image, label = _image_and_label(path, key, list(members), left_out)
                rows.append(
                    (image.name, image.offset_data, image.size, _label_of(path, tar, label))
                )
            _refuse_cut(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read as a tar file ({printable(str(error))}): copy it again"
        ) from error
    if not rows:
        raise ConfigError(
            f"{path} holds no sample: expected images such as 00000012.jpg, each with its label in "
            f"00000012{_LABEL}"
        )
    names, offsets, lengths, labels = (list(column) for column in zip(*rows, strict=True))
    return ShardIndex(names, offsets=offsets, lengths=lengths, labels=labels, left_out=left_out)


def key_of_member(name: str) -> str:
    """The key of a member: its name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _image_and_label(
    path: Path, key: str, members: list[tarfile.TarInfo], left_out: Counter[str]
) -> tuple[tarfile.TarInfo, tarfile.TarInfo]:
    """The two members that make a sample; the others are counted."""
    images: list[tarfile.TarInfo] = []
    labels: list[tarfile.TarInfo] = []
    for member in members:
        ending = member.name[len(key) :].lower()
        if ending in IMAGE_ENDINGS:
            images.append(member)
        elif ending == _LABEL:
            labels.append(member)
        else:
            left_out[type_in_words(member.name)] += 1
    prefix = f"{path}: sample {printable(key)!r}"
    if len(images) != 1:
        raise ConfigError(
            f"{prefix} has {len(images)} images: expected one, such as {printable(key)}.jpg; make "
            "the shard again"
        )
    if len(labels) != 1:
        raise ConfigError(
            f"{prefix} has {len(labels)} labels: expected one, {printable(key)}{_LABEL}; make the "
            "shard again"
        )
    if images[0].size == 0:
        raise ConfigError(f"{prefix} has an empty image; make the shard again")
    return images[0], labels[0]


def _label_of(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = tar.extractfile(member)
    text = content.read().decode("utf-8", "replace").strip() if content is not None else ""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(
            f"{path}: {printable(member.name)} is {text[:40]!r}: expected the number of a class, "
            "from 0 on"
        )
    return int(text)


def _refuse_cut(path: Path, end: int) -> None:
    """Refuse a tar file without the zeros that end it.

    A file that was cut between two members would otherwise read as complete.
    """
    with path.open("rb") as file:
        file.seek(end)
        after = file.read(_BLOCK)
    if len(after) < _BLOCK or any(after):
        raise ConfigError(
            f"{path} is cut off or damaged at byte {end}: a tar file ends with zeros; copy it again"
        )


def cached_index(path: Path) -> ShardIndex:
    """Read the index of a shard from `INDEXES`, or find it and keep it there.

    If that folder cannot be written to, the index is not kept.

    Raises:
        ConfigError: As `read_index`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): copy it again") from error
    # "2" is the version of the format of an index.
    identity = f"2:{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    cache = INDEXES.expanduser() / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):
        kept = ShardIndex(**json.loads(cache.read_text(encoding="utf-8")))
        return kept._replace(left_out=Counter(kept.left_out))
    index = read_index(path)
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(index._asdict()), encoding="utf-8")
        os.replace(part, cache)
    return index
