"""Decoding of images, and their transforms: the released augmentation, in timm's implementation.

A transform has two halves. The first, `Transform`, runs where the image is read and ends with
values of uint8. The second, `normalised`, runs on the device that trains. So a batch goes from
process to process, and to the device, in a quarter of the memory of float32. The numbers are those
of timm's own transform to the bit.

Shape legend: B images, H x W pixels, K erased boxes, P values in all boxes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from earlydrop.training.config import AugmentConfig
from earlydrop.training.data.copies import sent
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import printable

_CROP = 224 / 256  # of the evaluation transform


def make_transforms(image_size: int, options: AugmentConfig) -> tuple[Any, Any]:
    """The training transform and the evaluation transform.

    Each turns a PIL image into a normalised tensor, (3, H, W). Without any augmentation the two are
    the same.

    Raises:
        ConfigError: ``augment.randaugment`` is not timm's notation.
    """
    from timm.data import create_transform

    clean = create_transform(image_size, is_training=False, crop_pct=_CROP, interpolation="bicubic")
    try:
        train = create_transform(
            image_size,
            is_training=True,
            hflip=0.5 if options.flip else 0.0,
            auto_augment=options.randaugment,
            color_jitter=options.color_jitter or None,
            re_prob=options.erasing,
            re_mode="pixel",
            interpolation="bicubic",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"augment.randaugment is {options.randaugment!r}: expected timm's notation, such as "
            f"rand-m9-mstd0.5-inc1 ({error!r})"
        ) from error
    if not options.crop:
        resize, centre_crop = clean.transforms[:2]
        train.transforms[:1] = [resize, centre_crop]  # in place of the random crop
    for transform in train.transforms:
        operations = list(getattr(transform, "ops", ()))  # of RandAugment
        for sub_policy in getattr(transform, "policy", ()):  # of AutoAugment
            operations += sub_policy
        for operation in operations:
            if "Posterize" in operation.name:
                operation.aug_fn = _posterize
    return train, clean


def _posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Timm's posterize. Pillow 13 refuses to keep 0 bits; here such an image becomes black."""
    from PIL import Image, ImageOps

    if bits_to_keep >= 8:
        return image
    return (
        ImageOps.posterize(image, bits_to_keep)
        if bits_to_keep > 0
        else Image.new(image.mode, image.size)
    )


class BrokenImageError(RuntimeError):
    """An image cannot be read.

    The last line of the message names the image and the reason. In an error from a worker process,
    the lines of a traceback come before it.
    """


def load_image(file: Any, name: str | None = None) -> Any:
    """An image as RGB, 8 bits a channel.

    Grey values of 16 bits are divided by 257. Of 16-bit colours Pillow keeps the upper byte.

    Args:
        file: Its path, or its content as a binary file.
        name: The image's name in an error; by default its path. Give one for a binary file.

    Returns:
        The PIL image.

    Raises:
        BrokenImageError: It cannot be read, or holds numbers whose range is not known.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):
                return Image.fromarray(
                    (np.asarray(image, dtype=np.float64) / 257.0).round().astype(np.uint8)
                ).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, whose range is not known: save it with "
                    "8 or 16 bits"
                )
            return image.convert("RGB")
    except (
        OSError,
        RuntimeError,  # of AVIF and DDS
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        shown_name = printable(str(file) if name is None else name)
        raise BrokenImageError(
            f"{shown_name} cannot be read as an image: {printable(str(error))}"
        ) from error


class Pixels(NamedTuple):
    """One image before it is normalised.

    Attributes:
        values: (3, H, W), uint8.
        box: Top, left, height and width of the erased box; None without one.
        noise: The values in the box, (3, height, width), float32, normalised; None without one.
    """

    values: Tensor
    box: tuple[int, int, int, int] | None = None
    noise: Tensor | None = None


class PixelBatch(NamedTuple):
    """Images before they are normalised, and their labels.

    Attributes:
        values: (B, 3, H, W), uint8.
        labels: (B,), int64.
        boxes: Image, top, left, height and width of each erased box, (K, 5), int64.
        noise: The values in the boxes, one box after the other, (P,), float32.
    """

    values: Tensor
    labels: Tensor
    boxes: Tensor
    noise: Tensor


def collate(samples: Sequence[tuple[Pixels, int]]) -> PixelBatch:
    """A batch of single images."""
    boxes: list[tuple[int, ...]] = []
    noise = [torch.empty(0)]  # torch.cat needs at least one tensor
    for i, (pixels, _) in enumerate(samples):
        if pixels.box is not None and pixels.noise is not None:
            boxes.append((i, *pixels.box))
            noise.append(pixels.noise.flatten())
    return PixelBatch(
        values=torch.stack([pixels.values for pixels, _ in samples]),
        labels=torch.tensor([label for _, label in samples]),
        boxes=torch.tensor(boxes, dtype=torch.int64).view(-1, 5),
        noise=torch.cat(noise),
    )


class Transform:
    """The first half of a transform from `make_transforms`: all steps before float32.

    A call returns `Pixels`. The entries of `table` are computed by timm's own steps. The device
    looks them up instead of computing them, so every device gives the same numbers.

    Random erasing comes after the normalisation. Its box and its noise do not depend on the image.
    So it is applied to an image of NaN, and the part that is no longer NaN is returned.

    Attributes:
        table: The normalised number for each value of uint8 in each channel, (3, 256), float32.
    """

    def __init__(self, whole: Any) -> None:
        from PIL import Image

        names = [type(step).__name__ for step in whole.transforms]
        cut = names.index("MaybeToTensor") if "MaybeToTensor" in names else len(names)
        self._image_steps = whole.transforms[:cut]
        to_numbers = whole.transforms[cut : cut + 2]
        expected = (["Normalize"], ["Normalize", "RandomErasing"])
        if names[cut + 1 :] not in expected:
            raise RuntimeError(
                f"this timm's transform ends with {names[cut:]}: expected MaybeToTensor, Normalize "
                "and perhaps RandomErasing; install timm 1.0.20 to 1.0.31"
            )
        self._erasing = whole.transforms[-1] if names[-1] == "RandomErasing" else None
        # An image whose pixels are 0, 1, ... 255.
        ramp: Any = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGB")
        for step in to_numbers:
            ramp = step(ramp)
        self.table: Tensor = ramp[:, 0]  # (3, 256)

    def __call__(self, image: Any) -> Pixels:
        """Crop and augment an RGB image.

        Random numbers are drawn from the global generators of Python, NumPy and torch.
        """
        for step in self._image_steps:
            image = step(image)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        if self._erasing is None:
            return Pixels(values)
        drawn = self._erasing(torch.full(values.shape, torch.nan))
        rows, columns = (~drawn[0].isnan()).nonzero(as_tuple=True)
        if len(rows) == 0:
            return Pixels(values)
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        return Pixels(
            values, (top, left, height, width), drawn[:, top : top + height, left : left + width]
        )


def normalised(batch: PixelBatch, table: Tensor) -> Tensor:
    """Images as the model takes them, (B, 3, H, W), float32, on the device of the table.

    Args:
        batch: The images, on the host.
        table: `Transform.table`.
    """
    device = table.device
    values, noise = sent(batch.values, device), sent(batch.noise, device)
    images = torch.empty(values.shape, device=device)
    for channel in range(3):  # one at a time, since an index takes four bytes a pixel
        index = values[:, channel].flatten().int()
        images[:, channel] = table[channel].index_select(0, index).view(values[:, channel].shape)
    start = 0
    for i, top, left, height, width in batch.boxes.tolist():
        size = 3 * height * width
        images[i, :, top : top + height, left : left + width] = noise[start : start + size].view(
            3, height, width
        )
        start += size
    return images
