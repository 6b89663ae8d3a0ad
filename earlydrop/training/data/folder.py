"""Image folders such as ImageNet, read image by image, with the released augmentation."""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.files import UNREADABLE, ImageFiles, Samples, find_images
from earlydrop.training.data.source import Batch, KeyedIndices, Once, Source, alone
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable
from earlydrop.training.streams import stream_seed

_CROP = 224 / 256  # of the evaluation transform
_GRACE = 30.0  # seconds that a worker lives on after SIGTERM
_HELD = {signal.SIGTERM, signal.SIGINT}  # while workers start


def make_transforms(image_size: int, options: AugmentConfig) -> tuple[Any, Any]:
    """The training and the evaluation transform: PIL image to normalised tensor, (3, H, W).

    Without any augmentation the two are the same.

    Raises:
        ConfigError: ``augment.randaugment`` is not timm's notation.
    """
    from timm.data import create_transform

    clean = create_transform(image_size, is_training=False, crop_pct=_CROP, interpolation="bicubic")
    try:
        train = create_transform(
            image_size, is_training=True, hflip=0.5 if options.flip else 0.0, auto_augment=options.randaugment,
            color_jitter=options.color_jitter or None, re_prob=options.erasing, re_mode="pixel", interpolation="bicubic",
        )  # fmt: skip
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"augment.randaugment is {options.randaugment!r}: expected timm's notation, such as rand-m9-mstd0.5-inc1 ({error!r})"
        ) from error
    if not options.crop:
        train.transforms[:1] = clean.transforms[:2]  # resize and centre crop in place of the random crop
    for transform in train.transforms:
        for operation in getattr(transform, "ops", ()):
            if "Posterize" in operation.name:
                operation.aug_fn = _posterize
    return train, clean


def _posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Timm's posterize, for Pillow 13 too, which refuses to keep 0 bits: that is black, as it has always been."""
    from PIL import Image, ImageOps

    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)


class BrokenImageError(RuntimeError):
    """An image file cannot be read; the message, which a worker process may wrap in a traceback, ends with its path and the reason."""


def load_image(path: str) -> Any:
    """An image file as RGB; images of 16 bits a pixel at their full range.

    Raises:
        BrokenImageError: The file cannot be read, or holds numbers whose range is not known.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image, dtype=np.float64) / 257.0).round().astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels are of mode {image.mode}, whose range is not known: save it with 8 or 16 bits")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BrokenImageError(f"{printable(path)} cannot be read as an image: {printable(str(error))}") from error


def _outlive_signals(worker: int) -> None:
    """What ends or interrupts a run is sent to its whole group: workers go on for a while, so that the run can save and end them itself."""

    def end_later(number: int, frame: object) -> None:
        timer = threading.Timer(_GRACE, os._exit, (143,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end_later)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def _start_method() -> str:
    """How workers start: as Python starts processes here, but by spawn where that is forkserver.

    A forked and a spawned process inherit the signal mask of the process that starts them. A process that a fork server forks inherits
    the server's, which was set when the server was started.
    """
    usual = multiprocessing.get_start_method()
    return "spawn" if usual == "forkserver" else usual


@contextmanager
def _signals_held() -> Iterator[None]:
    """Workers started here inherit the mask, so that no signal can end one before `_outlive_signals` has run in it."""
    if sys.platform != "win32" and hasattr(signal, "pthread_sigmask"):
        if _start_method() == "spawn":  # the first spawn starts Python's resource tracker, which takes away our mask
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:  # Windows has no mask, and no scheduler that sends signals
        yield


class _FolderImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images of a folder by (key, index): the key names the random stream of a batch, None the evaluation transform."""

    def __init__(self, files: ImageFiles, train_transform: Any, clean_transform: Any) -> None:
        self.files = files
        self.train_transform, self.clean_transform = train_transform, clean_transform

    def __getitem__(self, item: tuple[int | None, int, int, str]) -> tuple[Tensor, int]:
        key, index, seed, purpose = item
        path, label = self.files.samples[index]
        image = load_image(path)
        if key is None:
            return self.clean_transform(image), label
        drawn = stream_seed(seed, purpose, key, index)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(drawn)
            return self.train_transform(image), label


def _same_classes(config: DataConfig, train: list[str], test: list[str], name: str) -> None:
    """Refuse splits whose class folders differ."""
    for there, lacks, more in (("train", name, set(train) - set(test)), (name, "train", set(test) - set(train))):
        if more:
            raise ConfigError(
                f"data.root is {config.root!r}: {there}/ has {len(more)} classes that {lacks}/ lacks, such as {min(more)!r}; "
                f"expected the same class folders in both ({len(train)} in train/, {len(test)} in {name}/)"
            )


def _readable(path: str) -> bool:
    try:
        load_image(path)
    except BrokenImageError:
        return False
    return True


def leave_out_corrupt(files: dict[str, ImageFiles], workers: int) -> None:
    """Decode every image once, and take those that cannot be decoded out of the splits.

    Raises:
        ConfigError: A class has no image left in a split.
    """
    for split, folder in files.items():
        paths = [path for path, _ in folder.samples]
        with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:  # decoding lets go of the interpreter
            whole = list(pool.map(_readable, paths, chunksize=64))
        kept = [sample for sample, good in zip(folder.samples, whole, strict=True) if good]
        lost = {label for _, label in folder.samples} - {label for _, label in kept}
        if lost:
            raise ConfigError(f"no image of {split}/{printable(folder.classes[min(lost)])} can be read: copy that folder again")
        if len(kept) < len(paths):
            folder.left_out[UNREADABLE] += len(paths) - len(kept)
        folder.samples = Samples(kept)


def _splits_of(config: DataConfig, splits: Sequence[str]) -> dict[str, Path]:
    """The folder of each split that is asked for.

    Raises:
        ConfigError: One of them is not there.
    """
    if config.root is None:
        raise ConfigError("data.root is null: data=imagefolder needs the folder that holds train/ and val/")
    root = Path(config.root).expanduser()
    test = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    folders = {split: root / ("train" if split == "train" else test) for split in splits}
    if not all(folder.is_dir() for folder in folders.values()):
        wanted = " and ".join("train/" if split == "train" else "val/ (or test/)" for split in splits)
        raise ConfigError(f"data.root is {config.root!r}: expected a folder with {wanted}, one folder a class in each")
    return folders


def _digest(files: dict[str, ImageFiles]) -> str:
    """Hash of the images' names, sizes and labels: reading every image of ImageNet would take an hour.

    A file without content is refused before anything is trained: a copy that broke off leaves such.
    """
    digest = hashlib.sha256()
    for split, folder in files.items():
        for path, label in folder.samples:
            try:
                size = os.stat(path).st_size
                fault = "is empty" if size == 0 else None
            except OSError as error:  # such as a link to a file that is gone
                fault = f"cannot be read ({error.strerror})"
            if fault is not None:
                raise ConfigError(f"{printable(path)} {fault}: copy it again, or leave such images out with data.skip_corrupt=true")
            above, name = os.path.split(path)
            line = f"{split}/{os.path.basename(above)}/{name}:{size}:{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))  # a name that is not UTF-8 by its bytes
    return digest.hexdigest()


def _listed(config: DataConfig, folders: dict[str, Path]) -> tuple[dict[str, ImageFiles], str]:
    """The images of each split, and the hash of all of them.

    Raises:
        ConfigError: A split cannot be read, has no image of a class, an empty file, or other classes than the other.
    """
    try:
        files = {split: find_images(folder) for split, folder in folders.items()}
    except OSError as error:
        raise ConfigError(f"data.root is {config.root!r}: {printable(str(error))}") from error
    if len(files) == 2:
        _same_classes(config, files["train"].classes, files["test"].classes, folders["test"].name)
    if config.skip_corrupt:
        leave_out_corrupt(files, config.workers)
    return files, _digest(files)


class FolderSource(Source):
    """A folder with ``train`` and ``val`` (or ``test``), each with one folder a class, as ImageNet is laid out.

    Augmentation is what the keys of `AugmentConfig` say, in timm's implementation, drawn for each image from (seed, batch, index), so the
    number of workers changes nothing.
    """

    reads_files = True

    def __init__(
        self,
        config: DataConfig,
        options: AugmentConfig,
        device: torch.device,
        splits: Sequence[str] = ("train", "test"),
        once: Once = alone,
    ) -> None:
        folders = _splits_of(config, splits)
        if config.train_images is not None:
            raise ConfigError("data.train_images is for datasets in memory: make a smaller folder instead")
        self.image_size, self.channels, self.device = config.image_size or 224, 3, device
        train_transform, clean_transform = make_transforms(self.image_size, options)
        files, self.digest = once(lambda: _listed(config, folders))
        self.left_out = sum((folder.left_out for folder in files.values()), Counter())
        self.classes = len(next(iter(files.values())).classes)
        self.sizes = {"train": 0, "test": 0} | {split: len(folder.samples) for split, folder in files.items()}
        self.workers = config.workers
        self._images = {split: _FolderImages(folder, train_transform, clean_transform) for split, folder in files.items()}

    def serial(self) -> FolderSource:
        same = copy.copy(self)
        same.workers = 0
        return same

    def batches(self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None) -> Iterator[Batch]:
        seed, purpose = augmented or (0, "")
        items = (
            [(key if augmented is not None else None, int(index), seed, purpose) for index in indices] for key, indices in keyed
        )
        loader = torch.utils.data.DataLoader(
            self._images[split], batch_sampler=items,  # type: ignore[arg-type]  # lazily: a long run has many
            num_workers=self.workers, pin_memory=self.device.type == "cuda",
            generator=torch.Generator(), worker_init_fn=_outlive_signals if self.workers else None,
            multiprocessing_context=_start_method() if self.workers else None,
        )  # fmt: skip
        with _signals_held() if self.workers else nullcontext():
            batches: Any = iter(loader)
        try:
            while (batch := next(batches, None)) is not None:
                yield batch[0].to(self.device, non_blocking=True), batch[1].to(self.device, non_blocking=True)
        except BrokenImageError as error:
            line = str(error).strip().splitlines()[-1]  # a worker's error comes with its traceback in front
            raise ConfigError(line.partition("BrokenImageError: ")[2] or line) from None
        finally:
            if self.workers:  # now, not when the last traceback that holds them is gone
                batches._shutdown_workers()
