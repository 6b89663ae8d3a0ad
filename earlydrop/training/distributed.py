"""The workers of one run; a single process is a group of one.

``torchrun`` starts the workers and sets their ranks in the environment.
`earlydrop.training.reduce` sums their gradients. Decisions on the host (to stop, to save, to resume
from a step) use a separate gloo group, so that they do not wait for a device.
"""

from __future__ import annotations

import ctypes
import datetime
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from earlydrop.training.fields import ConfigError
from earlydrop.training.names import first_line
from earlydrop.training.reduce import GradientSum, wait_for

T = TypeVar("T")


class WorkerLostError(RuntimeError):
    """Another worker is gone, or did not answer in time; the message says how to go on."""


@dataclass(frozen=True)
class Group:
    """This process among the workers of a run.

    Attributes:
        rank: The number of this worker, from 0.
        size: The number of workers.
        timeout: Seconds after which a worker that does not answer counts as lost.
        reductions: The process group that reduces tensors on the training device; None for a
            single process.
        decisions: The process group for decisions on the host; None for a single process.
    """

    rank: int = 0
    size: int = 1
    timeout: float = 0.0
    reductions: Any = None
    decisions: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the worker that writes, tracks and draws progress."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This worker's items: every ``size``-th of them, starting at its rank."""
        return list(items[self.rank :: self.size])

    def block(self, count: int) -> range:
        """This worker's consecutive share of ``count`` items. The group's size must divide it."""
        length = count // self.size
        return range(self.rank * length, (self.rank + 1) * length)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the workers, in place."""
        if self.size > 1:
            with answered(self):
                dist.all_reduce(values, group=self.reductions)
        return values

    def ask_largest(self, values: Sequence[float]) -> Callable[[], list[float]]:
        """Ask for the largest of each value over the workers, without waiting for the others.

        Every worker must call this, and must call the returned function before the group ends.

        Args:
            values: The values of this worker.

        Returns:
            A function that waits for the others and gives the largest values.
        """
        if self.size == 1:
            return lambda: list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        with answered(self):
            work = dist.all_reduce(
                largest, op=dist.ReduceOp.MAX, group=self.decisions, async_op=True
            )

        def read() -> list[float]:
            with answered(self):
                wait_for(work)
            return largest.tolist()

        return read

    def largest(self, values: Sequence[float]) -> list[float]:
        """For each value, the largest among the workers."""
        return self.ask_largest(values)()

    def decide(self, make: Callable[[], T]) -> T:
        """Call a function on rank 0 and give its result to all.

        Raises:
            ConfigError: With several workers, the function raised a ``ConfigError`` or an
                ``OSError`` on rank 0. Every worker raises this ``ConfigError``.
        """
        if self.size == 1:
            return make()
        content: list[Any] = [None, None]
        if self.main:
            try:
                content[0] = make()
            except (ConfigError, OSError) as error:
                content[1] = error if isinstance(error, ConfigError) else ConfigError(str(error))
        with answered(self):
            dist.broadcast_object_list(content, src=0, group=self.decisions)
        if content[1] is not None:
            raise content[1]
        return content[0]  # type: ignore[no-any-return]

    def gradient_sum(self, model: nn.Module) -> GradientSum | None:
        """A sum of the model's gradients over the workers; None for a single process.

        It first copies the weights and buffers of the first worker to all workers.
        """
        if self.size == 1:
            return None
        with answered(self):
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), src=0, group=self.reductions)
        return GradientSum(model.parameters(), self.reductions)


ALONE = Group()
"""A single process."""


class Requests:
    """Requests of any worker to stop or to save. All workers carry them out after the same step.

    A single process acts at once. Several workers ask each other after every step and read the
    answer after the next step, so that no step waits. All read the same answer. So all stop, or
    save, one step after the request. An answer that is read after the last step stops nothing: the
    run is complete.

    Args:
        group: The workers.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._answer: Callable[[], list[float]] | None = None

    def exchange(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Tell the others of this worker's requests.

        Returns:
            Whether to stop and whether to save now: for a single process its own requests, else
            those of any worker after the step before.
        """
        if self._group.size == 1:
            return stop, save
        stop_now, save_now = self.read()
        if not stop_now:  # what is saved now need not be saved after the next step
            self._answer = self._group.ask_largest((stop, save and not save_now))
        return stop_now, save_now

    def read(self) -> tuple[bool, bool]:
        """Read and clear the last answer: whether any worker asked to stop, and to save."""
        answer, self._answer = self._answer, None
        stop, save = answer() if answer is not None else (0.0, 0.0)
        return bool(stop), bool(save)


@contextmanager
def answered(group: Group) -> Iterator[None]:
    """Context that turns a failed collective call into a `WorkerLostError` if a worker is lost.

    Raises:
        WorkerLostError: Another worker is gone or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if group.size == 1 or not _is_lost(error):
            raise
        raise WorkerLostError(
            f"worker {group.rank} of {group.size}: another worker is gone, or did not answer "
            "within distributed.timeout="
            f"{group.timeout:g} s; see the message of that worker, then run the same command to "
            "resume from the last checkpoint"
        ) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error comes from the communication between workers.

    Torch has types for the errors of NCCL, of a store and of the network. Errors of gloo are plain
    ``RuntimeError``s, so they are recognised by the module that raised them: `torch.distributed`.
    """
    if isinstance(error, dist.DistError):
        return True
    if type(error) is not RuntimeError or error.__traceback__ is None:
        return False
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    module: str = innermost.f_globals.get("__name__", "")
    return module == "torch.distributed" or module.startswith("torch.distributed.")


def world_size() -> int:
    """The number of workers that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@functools.cache
def join(timeout: float, device: torch.device) -> Group:
    """Join the workers that the launcher started. A process joins only once.

    Args:
        timeout: Seconds that each worker waits for the others.
        device: The training device of this worker. GPUs reduce through NCCL, others through gloo.

    Raises:
        ConfigError: The workers do not connect in time, or the launcher's variables are missing
            from the environment.
    """
    size = world_size()
    if size == 1:
        return ALONE
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set: start the workers with torchrun"
        )
    _end_with_launcher()
    rank, limit = int(os.environ["RANK"]), datetime.timedelta(seconds=timeout)
    cuda = device.type == "cuda"
    if cuda and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo", timeout=limit, device_id=device if cuda else None
        )
        decisions: Any = dist.new_group(backend="gloo", timeout=limit) if cuda else dist.group.WORLD
        dist.barrier(group=decisions)
    except (RuntimeError, ValueError) as error:
        if "duplicate gpu" in str(error).lower():
            raise ConfigError(
                f"worker {rank} of {size} has the same GPU as another one ({device}): start as "
                "many workers on a node as it has GPUs, or "
                "let each see one of its own"
            ) from error
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"worker {rank} of {size} did not meet the others at {where} within "
            f"distributed.timeout={timeout:g} s "
            f"({first_line(error)}): start all of them, with the same rendezvous"
        ) from error
    return Group(rank, size, timeout=timeout, reductions=dist.group.WORLD, decisions=decisions)


def _end_with_launcher() -> None:
    """On Linux, ask this worker to stop, as by SIGTERM, when its launcher dies."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def leave(lost: bool = False) -> None:
    """Leave the workers' group, if there is one.

    Args:
        lost: Whether this worker leaves because of an error. Pending collective calls on GPUs are
            then aborted, because the other workers may never answer them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    try:
        with suppress(RuntimeError) if lost else nullcontext():
            everyone = dist.group.WORLD
            if lost and everyone is not None and dist.get_backend() == "nccl":
                everyone.abort()
            dist.destroy_process_group()
    finally:
        join.cache_clear()


def check_parts(accumulate: int, batch_size: int, size: int) -> None:
    """Refuse a number of workers that cannot share the parts of a batch equally.

    Raises:
        ConfigError: They cannot. The message names the numbers that can.
    """
    if accumulate % size == 0:
        return
    counts = [n for n in range(1, accumulate + 1) if accumulate % n == 0]
    fits = [n for n in range(size, batch_size + 1, size) if batch_size % n == 0]
    advice = f", or set trainer.accumulate={fits[0]}, which changes the results" if fits else ""
    raise ConfigError(
        f"{size} workers cannot share the trainer.accumulate={accumulate} parts of a batch "
        f"equally: start {_either(counts)} of them{advice}"
    )


def _either(counts: list[int]) -> str:
    return ", ".join(map(str, counts[:-1])) + (" or " if counts[:-1] else "") + str(counts[-1])
