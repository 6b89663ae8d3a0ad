"""The sum of gradients over the workers, in the same order in a new and in a resumed run.

Every worker copies its gradients into flat buffers, and the buffers are summed over the workers.
They hold the gradients in one fixed order, from the last parameter to the first, as a backward pass
reaches them. So a run that was stopped adds the same numbers in the same order as one that was not.
DistributedDataParallel does not ensure this: it reorders its buckets after its first step, which is
a different step in a resumed run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20
"""Most bytes of a buffer; a larger parameter has a buffer of its own.

Large enough that latency does not dominate a sum, small enough that the first sum starts early in a
backward pass.
"""


class Bucket:
    """A flat buffer for the gradients of some parameters of one device and type.

    Args:
        parameters: The parameters, in their order in the buffer.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        first = parameters[0]
        sizes = [p.numel() for p in parameters]
        count = len(parameters)
        self.flat = torch.zeros(sum(sizes) + count, dtype=first.dtype, device=first.device)
        pieces = self.flat.split([*sizes, count])
        self.views = [piece.view(p.shape) for piece, p in zip(pieces[:-1], parameters, strict=True)]
        self.counts = pieces[-1]  # how many workers have a gradient of each
        # Places of the parameters whose gradient has not arrived yet.
        self.not_arrived: set[int] = set()
        self.work: Any = None

    def fill(self) -> None:
        """Copy the gradients into the buffer: 0 for a parameter that has none."""
        self.counts.fill_(1)
        for place, (view, p) in enumerate(zip(self.views, self.parameters, strict=True)):
            if p.grad is None:
                view.zero_()
                self.counts[place] = 0
            else:
                view.copy_(p.grad)

    def give_back(self) -> None:
        """Copy the sums back.

        A parameter without a gradient on this worker gets the sum of the others. If no worker has
        a gradient of it, it stays without one.
        """
        for place, (view, p) in enumerate(zip(self.views, self.parameters, strict=True)):
            if p.grad is not None:
                p.grad.copy_(view)
            elif self.counts[place] > 0:
                p.grad = view.clone()


class GradientSum:
    """Sums the gradients of a model over the workers while the backward pass still runs.

    Args:
        parameters: The model's parameters, in its order; those that are not trained are left out.
        group: The workers.
        bucket_bytes: Most bytes of a buffer; a larger parameter has a buffer of its own.

    Example: ``with reduction.summed(): loss.backward()``.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], group: Any, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.group = group
        self.buckets = _buckets([p for p in parameters if p.requires_grad], bucket_bytes)
        self.in_backward = False
        # Every worker reduces the buckets in their order, whichever is full first.
        self.next_bucket = 0
        for bucket in self.buckets:
            for place, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(self._hook(bucket, place))

    def _hook(self, bucket: Bucket, place: int) -> Any:
        def arrived(parameter: Tensor) -> None:
            if not self.in_backward:
                return
            if place not in bucket.not_arrived:
                raise RuntimeError(
                    f"a parameter of shape {tuple(parameter.shape)} got its gradient twice in one "
                    "backward pass, so the workers would add an unfinished one: call backward() "
                    "once inside summed(), checkpoint activations with use_reentrant=False, or "
                    "train in one process"
                )
            bucket.not_arrived.remove(place)
            self._start_full_ones()

        return arrived

    def _start_full_ones(self) -> None:
        while (
            self.next_bucket < len(self.buckets) and not self.buckets[self.next_bucket].not_arrived
        ):
            self._start()

    def _start(self) -> None:
        bucket = self.buckets[self.next_bucket]
        bucket.fill()
        bucket.work = dist.all_reduce(bucket.flat, group=self.group, async_op=True)
        self.next_bucket += 1

    @contextmanager
    def summed(self) -> Iterator[None]:
        """Context for a backward pass, after which every ``.grad`` is the sum over the workers.

        Raises:
            RuntimeError: A parameter got its gradient twice in the backward pass.
            DistError: A reduction failed.
        """
        for bucket in self.buckets:
            bucket.not_arrived = set(range(len(bucket.parameters)))
        self.next_bucket, self.in_backward = 0, True
        try:
            yield
        finally:
            self.in_backward = False
        # The first bucket with a parameter that had no part in the loss, and all after it.
        while self.next_bucket < len(self.buckets):
            self._start()
        for bucket in self.buckets:
            wait_for(bucket.work)
            bucket.give_back()


def wait_for(work: Any) -> None:
    """Wait for a reduction.

    Raises:
        DistError: It failed. Gloo raises a plain `RuntimeError`, which becomes a
            `DistBackendError`, the type of NCCL's errors.
    """
    try:
        work.wait()
    except dist.DistError:
        raise
    except RuntimeError as error:
        raise dist.DistBackendError(str(error)) from error


def _buckets(parameters: list[nn.Parameter], most: int) -> list[Bucket]:
    """The parameters in buckets of one device and type, from the last to the first."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        nbytes = parameter.numel() * parameter.element_size()
        fits = bool(groups) and _same_kind(groups[-1][0], parameter) and size + nbytes <= most
        if not fits:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += nbytes
    return [Bucket(group) for group in groups]


def _same_kind(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors can share a buffer."""
    return a.dtype == b.dtype and a.device == b.device
