"""Random streams: every random number of a run is a function of (seed, purpose, step or image), and of nothing else.

So two runs that differ only in their schedule see the same initial weights, batches and augmentation, and a run can go on after any
step without its past.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, purpose: str, *index: int) -> int:
    """The seed of one stream.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, such as ``"order"`` or ``"dropout"``.
        *index: Step, epoch or image.

    Returns:
        63 well-mixed bits.

    >>> stream_seed(0, "dropout", 1) == stream_seed(0, "dropout", 1) != stream_seed(0, "dropout", 2)
    True
    """
    text = ":".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def stream(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator for one stream.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for.
        *index: Step, epoch or image.

    Returns:
        A fresh generator.
    """
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *index))
