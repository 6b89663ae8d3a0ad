"""The pace of a run, for ``timing.jsonl``: throughput, waiting for data, utilisation and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Pace:
    """Times a run between two logged steps.

    Args:
        device: Where the run trains.
        step: The step that it begins at.
        batch_size: Images of an optimizer step, over all workers.
        utilisation_per_image: Model FLOP utilisation for each image per second; None if unknown.
    """

    def __init__(
        self,
        device: torch.device,
        step: int,
        batch_size: int,
        utilisation_per_image: float | None = None,
    ) -> None:
        self.device, self.batch_size = device, batch_size
        self.utilisation_per_image = utilisation_per_image
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._began = time.perf_counter()
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin a new interval at a step. What came before, such as an evaluation, is not timed."""
        self._since, self._step, self._waited = time.perf_counter(), step, 0.0

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the items of an iterator, and add up the time spent waiting for them."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def record(self, step: int) -> dict[str, float]:
        """A line of ``timing.jsonl``, about the steps since the last `restart`.

        Returns:
            ``step``; ``images_per_second``, over all workers; ``seconds`` since this process began
            to train; ``data_wait``, the share of the time that this worker waited for its data, in
            [0, 1]; where the GPU's peak is known, ``mfu``, the model FLOP utilisation; on a CUDA
            device, ``peak_memory``, the largest number of bytes that tensors held since this
            process began to train.
        """
        now = time.perf_counter()
        elapsed = now - self._since
        rate = (step - self._step) * self.batch_size / elapsed
        line = {
            "step": step,
            "images_per_second": rate,
            "seconds": now - self._began,
            "data_wait": self._waited / elapsed,
        }
        if self.utilisation_per_image is not None:
            line["mfu"] = rate * self.utilisation_per_image
        if self.device.type == "cuda":
            line["peak_memory"] = torch.cuda.max_memory_allocated(self.device)
        return line
