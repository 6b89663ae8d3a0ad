"""Datasets by name.

To add one: a file here with a class that meets `earlydrop.training.data.source.Source`, its line in `DATASETS`, and a file in
``conf/data/``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from earlydrop.training.config import AugmentConfig, ConfigError, DataConfig
from earlydrop.training.data.arrays import ARRAYS, ArraySource
from earlydrop.training.data.folder import FolderSource
from earlydrop.training.data.glyphs import GlyphSource
from earlydrop.training.data.source import Source as Source
from earlydrop.training.data.text import TextSource

DATASETS: dict[str, Callable[[DataConfig, AugmentConfig, torch.device], Source]] = {
    **dict.fromkeys(ARRAYS, ArraySource),
    "imagefolder": FolderSource,
    "glyphs": GlyphSource,
    "text": TextSource,
}
"""What opens each dataset."""


def make_source(
    config: DataConfig, options: AugmentConfig, device: torch.device, splits: Sequence[str] = ("train", "test")
) -> Source:
    """Open a dataset. Of an image folder only the ``splits`` are read, so that the others need not be there.

    Raises:
        ConfigError: The dataset is unknown or not there.
    """
    if config.name not in DATASETS:
        raise ConfigError(f"data.name is {config.name!r}: expected one of {', '.join(DATASETS)}")
    if config.root is not None and config.name != "text" and not Path(config.root).expanduser().is_dir():
        raise ConfigError(f"data.root is {config.root!r}: there is no such folder")
    if DATASETS[config.name] is FolderSource:
        return FolderSource(config, options, device, splits)
    return DATASETS[config.name](config, options, device)
