"""Text for language models, byte by byte: the embedded King James Version, or any file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.copies import sent
from earlydrop.training.data.embedded import unpacked
from earlydrop.training.data.source import Batch, KeyedIndices, Source
from earlydrop.training.fields import ConfigError

EMBEDDED = Path(__file__).parent / "kjv.xz"
EMBEDDED_SHA256 = "96533061d67f56601ae280be597f6c34b29ecc10eacd1ae5fd7a16ffa6578b6c"
BYTES, CONTEXT = 256, 128
_TEST = 20  # one context in twenty


@functools.cache
def _embedded() -> bytes:
    return unpacked(EMBEDDED, EMBEDDED_SHA256)


def read_text(config: DataConfig) -> bytes:
    """The embedded text, or that of the file ``data.root``.

    Raises:
        ConfigError: The file is not there or cannot be read.
    """
    if config.root is None:
        return _embedded()
    path = Path(config.root).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"data.root is {config.root!r}: data=text needs a file ({error.strerror or error})"
        ) from error


class TextSource(Source):
    """Contexts of 128 bytes that do not overlap, with the byte that comes next at each place.

    Every twentieth context is for the test; of fewer than twenty, the last one is.

    ``data.train_images`` keeps that many contexts from the start; an epoch is one pass over them,
    in random order.
    """

    def __init__(self, config: DataConfig, options: AugmentConfig, device: torch.device) -> None:
        for key in ("mixup", "cutmix"):
            if getattr(options, key) > 0:
                raise ConfigError(
                    f"augment.{key} is {getattr(options, key):g}: bytes of a text cannot be mixed; "
                    "set it to 0"
                )
        if config.image_size is not None:
            raise ConfigError(
                f"data.image_size is {config.image_size}: data=text has no images; leave it null"
            )
        content = read_text(config)
        contexts = (len(content) - 1) // CONTEXT
        if contexts < 2:
            raise ConfigError(
                f"data.root is {config.root!r}: the text has {len(content)} bytes, expected at "
                f"least {2 * CONTEXT + 1} (one context to train on, one to test on, and the byte "
                "after them); give a longer text"
            )
        self.classes, self.channels, self.image_size, self.context = BYTES, 0, 0, CONTEXT
        every = torch.arange(contexts)
        test = every % _TEST == _TEST - 1 if contexts >= _TEST else every == contexts - 1
        train = every[~test]
        if config.train_images is not None:
            if config.train_images > len(train):
                raise ConfigError(
                    f"data.train_images is {config.train_images}: the text has {len(train)} "
                    f"contexts of {CONTEXT} bytes to train on"
                )
            train = train[: config.train_images]
        self._contexts = {"train": train.to(device), "test": every[test].to(device)}
        self.sizes = {split: len(which) for split, which in self._contexts.items()}
        self._bytes = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
        self.digest = hashlib.sha256(content + f" {CONTEXT} {self.sizes}".encode()).hexdigest()

    def batches(
        self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None
    ) -> Iterator[Batch]:
        contexts = self._contexts[split]
        places = torch.arange(CONTEXT + 1, device=contexts.device)
        for _, indices in keyed:
            windows = self._bytes[
                contexts[sent(indices, contexts.device)].unsqueeze(1) * CONTEXT + places
            ].long()
            yield windows[:, :-1], windows[:, 1:]
