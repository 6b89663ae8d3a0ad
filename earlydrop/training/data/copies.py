"""Copies to the device that trains, for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device.

    From the host to a GPU it goes by way of pinned memory, and the host goes on at once.

    Args:
        values: Of any shape; what is not on the host, or goes elsewhere than to a GPU, is moved as
            usual.
        device: Where it goes.

    Returns:
        The same values there. The caching allocator of pinned memory keeps the source until the
        copy is done.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
