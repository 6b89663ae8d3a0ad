"""Decoding by torchcodec, and crops of tensors: ``data.decoder=torchcodec``.

The random draws are those of ``data.decoder=pil``: the same boxes, flips and operations of
RandAugment. JPEG files have the same pixels if Pillow and torchcodec use the same version of
libjpeg-turbo. Crops are resized by torchvision: bicubic with antialiasing, as by Pillow, but
rounded differently. So the numbers of a run differ. All steps after the crop are Pillow's and
timm's.

Shape legend: H x W pixels.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earlydrop.training.data.transforms import load_image
from earlydrop.training.fields import ConfigError
from earlydrop.training.names import first_line

_JPEG, _EXIF = b"\xff\xd8\xff", b"Exif\0\0"

Decode = Callable[..., Any]
"""A function that reads an image from a path or an ``io.BytesIO``, with a name for errors."""


def decoder_of(name: str) -> Decode:
    """The function that decodes images: `load_image` for ``pil``, else `load_tensor`.

    Raises:
        ConfigError: torchcodec does not work on this machine.
    """
    if name == "pil":
        return load_image
    reason = torchcodec_problem()
    if reason is not None:
        raise ConfigError(
            f"data.decoder is {name!r}: the package torchcodec cannot be used ({reason}); install "
            "a torchcodec that fits this torch (pip install 'earlydrop[torchcodec]'), or set "
            "data.decoder=pil"
        )
    return load_tensor


@functools.cache
def torchcodec_problem() -> str | None:
    """The reason why torchcodec cannot be used; None if it can."""
    try:
        _jpeg_decoder()
    except (ImportError, OSError, RuntimeError) as error:
        return first_line(error)
    return None


def _jpeg_decoder() -> Callable[[bytes], Tensor]:
    from torchcodec.decoders import decode_jpeg

    decode: Callable[[bytes], Tensor] = decode_jpeg
    return decode


def load_tensor(file: Any, name: str | None = None) -> Tensor:
    """An image as RGB, (3, H, W), uint8.

    JPEG files are decoded by torchcodec. Pillow decodes all other files, and two sorts of JPEG:
    those with EXIF data, which torchcodec would rotate, and those that torchcodec refuses.

    Args:
        file: Its path, or its content as an `io.BytesIO`.
        name: The image's name in an error; by default its path.

    Raises:
        BrokenImageError: It cannot be read.
    """
    if isinstance(file, io.BytesIO):
        content = file.getvalue()
    else:
        try:
            content = Path(file).read_bytes()
        except OSError:
            content = b""  # Pillow says what is wrong
    if content.startswith(_JPEG) and _EXIF not in content:
        try:
            return _jpeg_decoder()(content)
        except RuntimeError:  # Pillow says what is wrong, or reads it
            pass
    image = load_image(
        io.BytesIO(content) if content else file, str(file) if name is None else name
    )
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def for_tensors(whole: Any) -> Any:
    """Replace the crop of a transform by one that takes a tensor, (3, H, W), uint8.

    Args:
        whole: A transform from `make_transforms`. It is changed in place and returned.
    """
    first, second = whole.transforms[:2]
    if type(first).__name__ == "RandomResizedCropAndInterpolation":
        whole.transforms[:1] = [_RandomCrop(first), as_image]
    else:
        whole.transforms[:2] = [_CentreCrop(first.size, second.size), as_image]
    return whole


def as_image(pixels: Tensor) -> Any:
    """The PIL image of a tensor, (3, H, W), uint8."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _resized(pixels: Tensor, size: list[int]) -> Tensor:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(
        pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return resized


class _RandomCrop:
    """Timm's random resized crop of a tensor, with its draws."""

    def __init__(self, crop: Any) -> None:
        self.crop = crop

    def __call__(self, pixels: Tensor) -> Tensor:
        top, left, height, width = self.crop.get_params(pixels, self.crop.scale, self.crop.ratio)
        box = pixels[:, top : top + height, left : left + width]
        return _resized(box, list(self.crop.size))


class _CentreCrop:
    """The evaluation transform's resize and centre crop of a tensor."""

    def __init__(self, size: Any, crop: Any) -> None:
        self.size = [size] if isinstance(size, int) else list(size)
        self.crop = list(crop)

    def __call__(self, pixels: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        cropped: Tensor = functional.center_crop(_resized(pixels, self.size), self.crop)
        return cropped
