"""Datasets by name.

To add one: a file here with a class that meets `earlydrop.training.data.source.Source`, its line in
`DATASETS`, and a file in ``conf/data/``. A user's own data is named as ``module:function``
(`earlydrop.training.data.own`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.arrays import ARRAYS, AbsentDataError, ArraySource
from earlydrop.training.data.extra import add_extra
from earlydrop.training.data.folder import FolderSource
from earlydrop.training.data.glyphs import GlyphSource
from earlydrop.training.data.huggingface import HuggingFaceSource
from earlydrop.training.data.loading import LoadedImages
from earlydrop.training.data.own import own_source
from earlydrop.training.data.published import PublishedSource
from earlydrop.training.data.shards import ShardSource
from earlydrop.training.data.source import Once, alone
from earlydrop.training.data.source import Source as Source
from earlydrop.training.data.text import TextSource
from earlydrop.training.fields import ConfigError
from earlydrop.training.plugins import Code, is_own, load, nearest, registered

DATASETS: dict[str, Callable[..., Source]] = {
    **dict.fromkeys(ARRAYS, ArraySource),
    "imagefolder": FolderSource,
    "shards": ShardSource,
    "huggingface": HuggingFaceSource,
    "glyphs": GlyphSource,
    "text": TextSource,
}
"""The function or class that opens each dataset.

It is called with a `DataConfig`, an `AugmentConfig` and the device. A subclass of `LoadedImages`
also gets the splits to open, and a `Once`.
"""


def make_source(
    config: DataConfig,
    options: AugmentConfig,
    device: torch.device,
    splits: Sequence[str] = ("train", "test"),
    planning: bool = False,
    once: Once = alone,
) -> Source:
    """Open a dataset.

    Args:
        config: The keys of ``data``.
        options: How training images are augmented.
        device: Where batches are made.
        splits: The splits to open, for images that are read one by one. Other splits need not
            exist.
        planning: Whether the run is only planned. Then nothing is downloaded, and the published
            sizes stand for a dataset of earlydrop's that is not on this machine. Image folders,
            shards, Hugging Face datasets and a user's own data are opened as usual.
        once: Runs the work that one of several workers can do for all.

    Returns:
        The dataset.

    Raises:
        ConfigError: The dataset is unknown or not there, or ``data.args`` is given for one of
            earlydrop's.
    """
    code = _own(config.name)
    if code is not None:
        return own_source(code, config, options, device)
    if config.args:
        name = next(iter(config.args))
        raise ConfigError(
            f"data.args.{name} is {config.args[name]!r}: data.name={config.name} takes no "
            "arguments; leave it out"
        )
    _check_root(config)
    opener = DATASETS[config.name]
    if isinstance(opener, type) and issubclass(opener, LoadedImages):
        source = DATASETS[config.name](config, options, device, splits, once)
        add_extra(cast(LoadedImages, source), config, once)
        return source
    if planning:
        config = replace(config, download=False)
    try:
        return DATASETS[config.name](config, options, device)
    except AbsentDataError:
        if not planning:
            raise
        return PublishedSource(config, device)


def code_of_data(name: str) -> Code | None:
    """The user's code that opens a dataset; None if it is earlydrop's."""
    return _own(name) or registered(name, DATASETS[name])


def _check_root(config: DataConfig) -> None:
    """Refuse a folder that does not exist. The root of a text is a file."""
    if config.root is None or config.name == "text":
        return
    if not Path(config.root).expanduser().is_dir():
        raise ConfigError(f"data.root is {config.root!r}: there is no such folder")


def _own(name: str) -> Code | None:
    if name in DATASETS:
        return None
    if not is_own("data", name):
        raise ConfigError(
            f"data.name is {name!r}: expected one of {', '.join(DATASETS)}, or module:function of "
            f"your own{nearest(name, DATASETS)}"
        )
    return load("data.name", "data", name)
