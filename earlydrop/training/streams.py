"""Random streams: a run's random numbers are functions of (seed, purpose, step or image) alone.

So two runs that differ only in their schedule see the same initial weights, batches and
augmentation, and a run can resume after any step without repeating the steps before.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, purpose: str, *index: int) -> int:
    """The seed of one stream.

    Args:
        seed: The run's seed.
        purpose: The use of the numbers, such as ``"order"`` or ``"dropout"``.
        *index: Step, epoch or image.

    Returns:
        An integer in [0, 2**63), from a hash of the arguments.

    >>> stream_seed(0, "dropout", 1) == stream_seed(0, "dropout", 1) != stream_seed(0, "dropout", 2)
    True
    """
    text = ":".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def stream(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator for one stream."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, *index))


def seed_device(device: torch.device, seed: int) -> None:
    """Seed torch's default generators of a device and of the CPU, as ``torch.manual_seed`` does.

    It is faster than ``torch.manual_seed``, which can take a millisecond if torch was built for
    CUDA: until a GPU is used, that function stores the seed with a stack trace.

    Args:
        device: Where the random numbers will be drawn.
        seed: The seed.

    >>> seed_device(torch.device("cpu"), 3)
    >>> drawn = torch.rand(2)
    >>> _ = torch.manual_seed(3)
    >>> bool((drawn == torch.rand(2)).all())
    True
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()  # does nothing after the first call
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
