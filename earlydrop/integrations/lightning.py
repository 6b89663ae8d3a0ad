"""Callbacks for Lightning's ``Trainer``: `DropoutCallback` and `ProbeCallback`."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lightning":
        raise
    remedy = "Lightning is not installed: pip install 'earlydrop[lightning]'"
    raise ModuleNotFoundError(remedy, name=error.name) from error

from earlydrop.gradients.probe import LossFunction
from earlydrop.integrations.length import Rates, RunLength, in_steps
from earlydrop.integrations.measuring import Measuring
from earlydrop.scheduler import DropoutScheduler

SAVED = "earlydrop"
"""The key of the step count in Lightning's checkpoints of a manual optimization."""


class DropoutCallback(Callback):
    """Schedule the dropout of a LightningModule. The rate is logged as ``dropout_rate``.

    A step of the schedule is a batch in which an optimizer stepped. With automatic optimization the
    count is ``trainer.global_step``, and resuming needs no further state. With manual optimization,
    Lightning counts each step of each optimizer; here, their steps in one batch count as one. This
    count is saved in Lightning's checkpoints.

    The model is released when ``fit()`` ends, also by an exception.

    Args:
        schedule: A schedule, or a function from the step to a rate. Durations in percent are
            resolved from ``max_steps`` and ``max_epochs``, durations in epochs from the length of
            the loader and the accumulation. With manual optimization, such durations assume one
            step per batch (with ``max_steps``, one step of each optimizer). Another pace is an
            error in the first two steps, and one warning later.
        **options: ``kind``, ``sites`` and ``masks`` of `DropoutScheduler`.
    """

    def __init__(self, schedule: Rates, **options: Any) -> None:
        self.schedule = schedule
        self.options = options
        self.scheduler: DropoutScheduler | None = None
        self._stepped = 0  # batches in which an optimizer stepped
        self._global_step = 0  # Lightning's count at that time
        # Whether the durations of the schedule assume one step per batch (manual optimization).
        self._paced = False

    def let_go(self) -> None:
        """Release the model, if it is driven. ``fit()`` calls this at its end."""
        if self.scheduler is not None:
            self.scheduler.restore()
            self.scheduler = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.let_go()
        schedule = in_steps(self.schedule, _length(trainer, pl_module))
        self._resume_count(trainer, pl_module)
        self._paced = not pl_module.automatic_optimization and schedule != self.schedule
        self.scheduler = DropoutScheduler(pl_module, schedule, **self.options)
        self.scheduler.set_step(self._stepped)

    def _resume_count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the count of steps at the start of training.

        It is ``trainer.global_step``. With manual optimization it is the saved count, if the
        checkpoint holds one, plus 1 if an optimizer has stepped since it was written.
        """
        counted = 0 < self._global_step <= trainer.global_step
        several = not pl_module.automatic_optimization and len(trainer.optimizers) > 1
        if trainer.global_step > 0 and several and not counted:
            entry = f"{{'steps': BATCHES, 'global_step': {trainer.global_step}}}"
            raise ValueError(
                f"global_step is {trainer.global_step} at the start: it is the sum over the "
                f"steps of {len(trainer.optimizers)} optimizers, and the checkpoint does not hold "
                "this callback's count of batches. Write the count into the file: "
                f"checkpoint['{SAVED}'] = {entry}"
            )
        if pl_module.automatic_optimization or not counted:
            self._stepped = self._global_step = trainer.global_step
        self._count(trainer)

    def _count(self, trainer: Trainer) -> int:
        """Count the batch that has ended, if an optimizer stepped in it.

        Returns:
            The increase of Lightning's ``global_step`` in the batch.
        """
        grown = int(trainer.global_step) - self._global_step
        if grown > 0:
            self._stepped += 1
        self._global_step = trainer.global_step
        return grown

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not pl_module.automatic_optimization:
            checkpoint[SAVED] = {"steps": self._stepped, "global_step": self._global_step}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        saved = checkpoint.get(SAVED, {"steps": 0, "global_step": 0})
        self._stepped, self._global_step = saved["steps"], saved["global_step"]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.scheduler is not None:
            pl_module.log("dropout_rate", self.scheduler.last_rate)
            before = self._stepped
            grown = self._count(trainer)
            if self._paced and not self._pace_is_kept(trainer, grown):
                self._report_pace(trainer, grown, refuse=before < 2)
            self.scheduler.set_step(self._stepped)

    def _pace_is_kept(self, trainer: Trainer, grown: int) -> bool:
        """Whether the steps in a batch agree with the pace that `_length` assumes."""
        if trainer.max_steps != -1:  # it counts the steps of all optimizers
            return grown == len(trainer.optimizers)
        return grown > 0

    def _report_pace(self, trainer: Trainer, grown: int, refuse: bool) -> None:
        """Report that `_length` assumed another pace: as an error, or once as a warning."""
        message = (
            f"{self.schedule!r} has a duration in epochs or percent: with manual optimization "
            "an optimizer must step in every batch, and with max_steps each of the optimizers "
            f"({len(trainer.optimizers)} here) once, but in this batch there were {grown} steps; "
            "give the duration in steps (batches in which an optimizer stepped)"
        )
        if refuse:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
        self._paced = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.let_go()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.let_go()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.let_go()


class ProbeCallback(Callback):
    """Measure gradients while a LightningModule trains.

    ``probe/gradient_norm``, ``probe/gdv``, ``probe/gde`` and ``model/distance`` go to the trainer's
    loggers, at the step of the measurement, and into ``trainer.callback_metrics`` (except those of
    the first measurement, at the start of training). Training is bit for bit the same as without
    the callback: random numbers, ``.grad``, buffers and the states of torchmetrics are as before.

    Args:
        every: Optimizer steps (``trainer.global_step``) between two measurements. The first is
            before the first step. Each other one is after a batch that ends at a multiple of
            ``every``. Two optimizers that step in each batch add 2 per batch.
        batches: The number of mini-batches to take from the training data, the same ones every
            time; or a list of mini-batches. At least 2.
        dataset: The batches for the whole-dataset gradient of the gradient direction error (GDE).
            Default: the mini-batches together. False leaves the GDE out; choose it for a model with
            noise that is not dropout.
        loss_fn: ``loss_fn(module, batch)`` returns the mean loss, a scalar. Default: the loss of
            ``training_step``, without its ``self.log``. With manual optimization, give it.
        initial: The module or state dict from which the model distance is taken. Default: the
            weights at the start of ``fit()``, before it loads a checkpoint.

    Raises:
        ValueError: ``every`` is not a number of at least 1, or ``batches`` is neither a number of
            at least 2 nor a list of at least two mini-batches.
    """

    def __init__(
        self,
        every: int,
        batches: int | Iterable[Any] = 8,
        *,
        dataset: Iterable[Any] | bool | None = None,
        loss_fn: LossFunction | None = None,
        initial: nn.Module | Mapping[str, Tensor] | None = None,
    ) -> None:
        self.measuring = Measuring(
            every=every, batches=batches, dataset=dataset, loss_fn=loss_fn, initial=initial
        )
        self._measured = -1  # the step of the last measurement

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.measuring.keep_initial(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.measuring.loss_fn is None and not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} uses manual optimization, so a call of its "
                "training_step would change the weights: give ProbeCallback(loss_fn=...), a "
                "function of (module, batch)"
            )
        loader = trainer.train_dataloader
        self.measuring.take(pl_module, loader, getattr(loader, "batch_size", None))
        self._measured = -1
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        values = self._measure(trainer, pl_module)
        if values:
            pl_module.log_dict(values, logger=False)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        step = int(trainer.global_step)
        if step == self._measured or not self.measuring.due(step):
            return {}
        self._measured = step
        loss_fn = _Loss(trainer, pl_module, self.measuring.loss_fn)
        with _silenced(pl_module):
            values = self.measuring.measure(pl_module, loss_fn)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        return values


class _Loss:
    """The loss of a batch, as a trainer computes it.

    It has slots and no ``__dict__``, so the search for random generators does not walk through the
    trainer. It finds the user's function as ``__wrapped__``.
    """

    __slots__ = ("__wrapped__", "pl_module", "trainer")

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, given: LossFunction | None
    ) -> None:
        self.trainer, self.pl_module, self.__wrapped__ = trainer, pl_module, given

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        batch = self.trainer.strategy.batch_to_device(batch)
        with self.trainer.precision_plugin.train_step_context():
            if self.__wrapped__ is not None:
                return self.__wrapped__(module, batch)
            arguments = (batch, 0) if _takes_index(self.pl_module) else (batch,)
            output: Any = self.pl_module.training_step(*arguments)
            loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
            return loss


def _takes_index(pl_module: LightningModule) -> bool:
    """Whether a training step takes the index of its batch too."""
    parameters = inspect.signature(pl_module.training_step).parameters.values()
    return len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _is_metric(module: nn.Module) -> bool:
    """Whether a module is a metric of torchmetrics."""
    return any(cls.__module__.startswith("torchmetrics.") for cls in type(module).__mro__)


@contextmanager
def _silenced(pl_module: LightningModule) -> Iterator[None]:
    """Within it, ``self.log`` does nothing. Afterwards metrics of torchmetrics are as before."""
    kept = []
    for module in filter(_is_metric, pl_module.modules()):
        kept.append((module, {name: _copy(value) for name, value in vars(module).items()}))
    before = vars(pl_module).get("log")
    pl_module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del pl_module.log
        if before is not None:
            pl_module.log = before  # type: ignore[method-assign]
        for module, values in kept:
            vars(module).update(values)


def _copy(value: Any) -> Any:
    """A copy of a value that a metric changes in place; another value as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(value) if type(value) is list else value


def _length(trainer: Trainer, pl_module: LightningModule) -> RunLength:
    """The steps of the run and of an epoch.

    They follow from the length of the loader, the accumulation and the limits of the trainer. With
    manual optimization, one step of the schedule per batch is assumed; with ``max_steps``, one step
    of each optimizer per batch.
    """
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    max_steps = trainer.max_steps
    if max_steps != -1 and not pl_module.automatic_optimization:
        max_steps = math.ceil(max_steps / max(len(trainer.optimizers), 1))
    steps_to_max_epochs = None
    if batches == math.inf:
        no_epoch = "the loader has no length, so the steps of an epoch are not known"
        per_epoch = None
    else:
        epoch_steps = [math.ceil(batches / parts) for parts in _accumulation(trainer, epochs)]
        no_epoch = "the accumulation changes between epochs, and with it the steps of an epoch"
        per_epoch = epoch_steps[0] if len(set(epoch_steps)) == 1 else None
        steps_to_max_epochs = sum(epoch_steps) if epochs not in (None, -1) else None
    limits = [] if steps_to_max_epochs is None else [steps_to_max_epochs]
    if max_steps != -1:
        limits.append(max_steps)
    no_total = "neither max_steps nor max_epochs with a loader of known length gives it"
    return RunLength(min(limits) if limits else None, per_epoch, no_total, no_epoch)


def _accumulation(trainer: Trainer, epochs: int | None) -> list[int]:
    """The batches that make one step, for each epoch.

    For a run without a last epoch, the list ends at the last change of the accumulation.
    """
    changing = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]
    if not changing:
        return [trainer.accumulate_grad_batches] * max(epochs or 1, 1)
    last = max(changing[0].scheduling)
    until = epochs if epochs not in (None, -1) else last + 1
    return [changing[0].get_accumulate_grad_batches(epoch) for epoch in range(max(until or 1, 1))]
