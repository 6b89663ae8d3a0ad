"""Endless images of 1,000 characters, which a model cannot overfit.

They are drawn anew for every step from the fonts that come with matplotlib.

A class is a letter. An image shows it in a random face, under a random affine map, in random
contrast, with noise. Only the characters and two fixed sets for evaluation are stored. The images
of a training batch are drawn from the stream that its key names, so a run trains on no image twice
and resumes like any other.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data.copies import sent
from earlydrop.training.data.source import Batch, KeyedIndices, Source
from earlydrop.training.fields import ConfigError
from earlydrop.training.streams import stream

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
CLASSES, SIDE = 1_000, 28
FIXED = 5_000
"""Size of the test set, and default size of the set that stands for the training set where images
are read without augmentation.

Both sets are fixed: the same for every run with the same `data.train_images`.
"""

_PIXELS = 20  # size of the type
_TURN = 0.2  # radians
_SHEAR = 0.2  # tangent
_SCALE = 0.15  # share
_SHIFT = 0.15  # share of half the side
_NOISE = 0.15  # standard deviation
_MEAN, _SPREAD = 0.065, 0.237  # approximate mean and standard deviation, to normalise the images


def letters(charmaps: list[set[int]], draw_shape: Any, classes: int) -> list[int]:
    """The first letters, by code point, that every face has and that differ in the first face.

    ``draw_shape`` draws a code point in the first face, as bytes.
    """
    by_shape: dict[bytes, int] = {}
    for code in sorted(set.intersection(*charmaps)):
        if unicodedata.category(chr(code)).startswith("L"):
            by_shape.setdefault(draw_shape(code), code)
            if len(by_shape) == classes:
                return list(by_shape.values())
    raise ConfigError(
        f"data.name is 'glyphs': the fonts here share {len(by_shape)} letters of different shape, "
        f"of {classes} that are needed ({', '.join(FACES)}, which come with matplotlib); "
        "install matplotlib again"
    )


@functools.cache
def glyph_images() -> npt.NDArray[np.uint8]:
    """Every class in every face, (CLASSES, faces, SIDE, SIDE); drawn once a process.

    Raises:
        ConfigError: A font is missing, or lacks characters.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in FACES if not (folder / f"{name}.ttf").is_file()]
    if missing:
        raise ConfigError(
            f"data.name is 'glyphs': matplotlib's font {missing[0]} is not there; install "
            "matplotlib again"
        )
    fonts = [FT2Font(str(folder / f"{name}.ttf")) for name in FACES]

    def draw(font: Any, code: int) -> npt.NDArray[np.uint8]:
        font.clear()
        font.set_size(_PIXELS, 72)
        font.set_text(chr(code), 0.0)
        font.draw_glyphs_to_bitmap(antialiased=True)
        return np.array(font.get_image(), np.uint8)

    def shape(code: int) -> bytes:
        image = draw(fonts[0], code)
        return bytes(str(image.shape), "ascii") + image.tobytes()

    codes = letters([set(font.get_charmap()) for font in fonts], shape, CLASSES)
    images = np.zeros((CLASSES, len(FACES), SIDE, SIDE), np.uint8)
    for i, code in enumerate(codes):
        for j, font in enumerate(fonts):
            image = draw(font, code)[:SIDE, :SIDE]
            top, left = ((SIDE - side) // 2 for side in image.shape)
            images[i, j, top : top + image.shape[0], left : left + image.shape[1]] = image
    return images


def draw_glyphs(glyphs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Images of the given classes, each in a random face, affine map and contrast, with noise.

    Args:
        glyphs: (CLASSES, faces, SIDE, SIDE) in [0, 1].
        labels: (B,), on the CPU.
        generator: Where everything is drawn from.

    Returns:
        (B, 1, SIDE, SIDE), normalised, where ``glyphs`` is.
    """
    count, device = len(labels), glyphs.device
    faces = torch.randint(glyphs.shape[1], (count,), generator=generator)
    turn, shear, across, down, right, lower, contrast = (
        torch.rand(7, count, generator=generator) * 2 - 1
    ).unbind()
    angle = turn * _TURN
    cosine, sine = angle.cos(), angle.sin()
    x, y = 1 / (1 + across * _SCALE), 1 / (1 + down * _SCALE)
    rows = (
        torch.stack((cosine * x, (shear * _SHEAR * cosine - sine) * x, right * _SHIFT), 1),
        torch.stack((sine * y, (shear * _SHEAR * sine + cosine) * y, lower * _SHIFT), 1),
    )
    grid = F.affine_grid(
        sent(torch.stack(rows, 1), device), [count, 1, SIDE, SIDE], align_corners=False
    )
    images = F.grid_sample(
        glyphs[sent(labels, device), sent(faces, device)].unsqueeze(1), grid, align_corners=False
    )
    images = images * sent(0.75 + 0.25 * contrast, device).view(-1, 1, 1, 1)
    noise = sent(torch.randn(images.shape, generator=generator), device)
    return images.add_(noise, alpha=_NOISE).sub_(_MEAN).mul_(1 / _SPREAD)


class GlyphSource(Source):
    """The endless images.

    Training draws labels and images from the stream of (seed, purpose, key) and ignores the
    indices. ``train_eval`` is drawn in the same way, from a stream that is the same for every run.

    Images without augmentation (``test``, ``train_clean``) come from two fixed sets, which are the
    same for every run. An epoch of training is as long as the fixed set of ``train_clean``.
    """

    def __init__(self, config: DataConfig, options: AugmentConfig, device: torch.device) -> None:
        for key, value, given in (
            ("data.image_size", config.image_size, SIDE),
            ("data.root", config.root, None),
        ):
            if value not in (None, given):
                raise ConfigError(
                    f"{key} is {value!r}: data=glyphs draws images of {SIDE} pixels from "
                    "matplotlib's fonts; leave it null"
                )
        images = glyph_images()
        self.classes, self.channels, self.image_size = CLASSES, 1, SIDE
        self.sizes = {"train": config.train_images or FIXED, "test": FIXED}
        constants = (_TURN, _SHEAR, _SCALE, _SHIFT, _NOISE, _MEAN, _SPREAD, self.sizes)
        self.digest = hashlib.sha256(images.tobytes() + str(constants).encode()).hexdigest()
        self._glyphs = torch.from_numpy(images).to(device).float() / 255
        self._fixed = {
            split: self._draw(count, stream(0, f"glyphs-{split}"))
            for split, count in self.sizes.items()
        }

    def _draw(self, count: int, generator: torch.Generator) -> Batch:
        labels = torch.randint(CLASSES, (count,), generator=generator)
        return draw_glyphs(self._glyphs, labels, generator), sent(labels, self._glyphs.device)

    def batches(
        self, keyed: KeyedIndices, split: str, augmented: tuple[int, str] | None
    ) -> Iterator[Batch]:
        for key, indices in keyed:
            if augmented is not None:
                yield self._draw(len(indices), stream(*augmented, key))
            else:
                images, labels = self._fixed[split]
                where = sent(indices, labels.device)
                yield images[where], labels[where]
