"""Augmentation in a few vectorised operations, with draws from an explicit generator.

Shifts, flips and erased boxes are drawn per image, mixup and cutmix once per batch.
Every image has its own crop. A crop shared by the whole batch would make the gradients of its
images agree too much.

Shape legend: N images in the dataset, B in the batch, C channels, H × W pixels, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from earlydrop.training.data.copies import sent


def shift_and_flip(
    padded: Tensor, indices: Tensor, shift: int, flip: bool, generator: torch.Generator | None
) -> Tensor:
    """Shift and flip images, each by draws of its own.

    A shift is up to ``shift`` pixels up or down, and up to ``shift`` pixels left or right. If
    ``flip`` is true, an image is flipped left to right with probability ½. ``indices``, (B,),
    chooses the images; the result is (B, C, H, W).

    ``padded`` is the dataset with ``shift`` pixels of 0 around each image, (N, C, H + 2·shift, W +
    2·shift). Without a generator every image is taken as it is.
    """
    height, width = (side - 2 * shift for side in padded.shape[-2:])
    count, device = len(indices), padded.device
    if generator is None:
        return padded[sent(indices, device), :, shift : shift + height, shift : shift + width]
    offsets = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < (0.5 if flip else 0.0)
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.where(
        flipped, torch.arange(width - 1, -1, -1), torch.arange(width)
    )
    channels = torch.arange(padded.shape[1]).view(1, -1, 1, 1)
    where = (
        indices.view(-1, 1, 1, 1),
        channels,
        rows.view(count, 1, -1, 1),
        columns.view(count, 1, 1, -1),
    )
    return padded[tuple(sent(part, device) for part in where)]


def erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Random erasing (Zhong et al. 2020, arXiv:1708.04896), as in timm.

    One number differs: the aspect ratio of a box is at most 3.3, in timm 1 / 0.3.

    Each image is chosen with ``probability``. A box of a chosen image is replaced by normal noise.

    A box covers 1/50 to 1/3 of the image, at an aspect ratio of 0.3 to 3.3. Ten boxes are tried,
    and the first that fits is used. If none fits, the image stays as it is.

    Args:
        images: (B, C, H, W), normalised.
        probability: Probability that an image is erased.
        generator: Generator of all draws, on the CPU.

    Returns:
        (B, C, H, W).
    """
    count, _, height, width = images.shape
    draws = torch.rand(4, count, 10, generator=generator)
    area = (0.02 + draws[0] * (1 / 3 - 0.02)) * height * width
    aspect = torch.exp(math.log(0.3) + draws[1] * (math.log(3.3) - math.log(0.3)))
    heights = (area * aspect).sqrt().round()
    widths = (area / aspect).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    high = heights.gather(1, first)
    wide = widths.gather(1, first)
    top = (draws[2].gather(1, first) * (height - high + 1)).floor()
    left = (draws[3].gather(1, first) * (width - wide + 1)).floor()
    chosen = fits.gather(1, first) & (torch.rand(count, 1, generator=generator) < probability)
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + high)
    in_columns = (columns >= left) & (columns < left + wide)
    box = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
    erased = (box & chosen.unsqueeze(2)).unsqueeze(1)
    noise = torch.randn(images.shape, generator=generator)
    return torch.where(sent(erased, images.device), sent(noise, images.device), images)


def mix(
    images: Tensor,
    labels: Tensor,
    classes: int,
    mixup: float,
    cutmix: float,
    switch: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), one draw for the batch.

    Image i is mixed with image B - 1 - i.

    This is timm's ``batch`` mode, but a box with an odd side is one pixel smaller along it than in
    timm 1.0.31. The draws come from an explicit generator, and a batch may have an odd number of
    images. One of ``mixup`` and ``cutmix`` must be above 0.

    Args:
        images: (B, C, H, W), floating point.
        labels: (B,).
        classes: K.
        mixup: α of the Beta distribution of mixup's share; 0 for none.
        cutmix: α of cutmix; 0 for none.
        switch: Probability of cutmix where both are on.
        generator: Where the draws come from.

    Returns:
        The mixed images and their soft targets, (B, K).
    """
    # The fourth draw is not used. Without it, all later draws would differ from published runs.
    draws = torch.rand(4, generator=generator, dtype=torch.float64)
    cut = cutmix > 0 and (mixup <= 0 or draws[0] < switch)
    share = _beta(cutmix if cut else mixup, generator)
    if cut:
        height, width = images.shape[-2:]
        ratio = (1.0 - share) ** 0.5
        top, bottom = _side(height, ratio, draws[1].item())
        left, right = _side(width, ratio, draws[2].item())
        reversed_part = images[..., top:bottom, left:right].flip(0)
        images = images.clone()
        images[..., top:bottom, left:right] = reversed_part
        share = 1.0 - (bottom - top) * (right - left) / (height * width)
    else:
        images = share * images + (1.0 - share) * images.flip(0)
    targets = F.one_hot(labels, classes).to(images.dtype)
    return images, share * targets + (1.0 - share) * targets.flip(0)


def _side(length: int, ratio: float, position: float) -> tuple[int, int]:
    """Start and end of the pasted box along one side, clipped at the border."""
    centre, half = int(position * length), int(length * ratio) // 2
    return max(centre - half, 0), min(centre + half, length)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw from Beta(α, α)."""
    gammas = torch._standard_gamma(
        torch.full((2,), alpha, dtype=torch.float64), generator=generator
    )
    total = gammas.sum().item()
    return gammas[0].item() / total if total > 0 else 0.5
