"""Copies to the device that trains, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from earlydrop.training.data.source import Batch


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device.

    A copy from the host to a CUDA device goes through pinned memory, and the host does not wait for
    the device. Any other copy is that of ``Tensor.to``. The caching allocator of pinned memory
    keeps the source until the copy is done.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def on_their_own_stream(
    steps: Iterator[list[Batch]], device: torch.device
) -> Iterator[list[Batch]]:
    """Make the batches of each step on a CUDA stream of their own.

    So the GPU may copy and augment them while it still computes the step before. Every random
    number is drawn when the host asks for it, in the same order as without such a stream. On
    devices other than CUDA nothing changes.
    """
    if device.type != "cuda":
        yield from steps
        return
    stream = torch.cuda.Stream(device)
    # The data that batches are made from may still be on its way on the current stream.
    stream.wait_stream(torch.cuda.current_stream(device))
    while True:
        with torch.cuda.stream(stream):
            batches = next(steps, None)
        if batches is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for batch in batches:
            for tensor in batch:
                if tensor.is_cuda:
                    tensor.record_stream(current)  # its memory stays until this stream has read it
        yield batches
