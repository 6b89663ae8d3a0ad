"""Callbacks for the Hugging Face ``Trainer``: `DropoutCallback` and `ProbeCallback`."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

try:
    from transformers import Trainer, TrainerCallback
    from transformers.integrations import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import has_length
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "transformers":
        raise
    remedy = "transformers is not installed: pip install 'earlydrop[hf]'"
    raise ModuleNotFoundError(remedy, name=error.name) from error

from earlydrop.gradients.probe import LossFunction
from earlydrop.integrations.length import Rates, RunLength, in_steps
from earlydrop.integrations.measuring import Measuring
from earlydrop.scheduler import DropoutScheduler


class DropoutCallback(TrainerCallback):
    """Schedule the dropout of the model that a Hugging Face ``Trainer`` trains.

    The rate is a function of ``global_step``, so resuming from a checkpoint needs no further state.
    The rate is logged as ``dropout_rate``, also in ``trainer.state.log_history``. Reporters
    (TensorBoard, Weights & Biases) run before the callbacks that a trainer is given. Call `lead` to
    put this callback in front of them, so that they report the rate.

    When ``train()`` ends, normally or by an exception, the model is released: it gets its own
    classes and rates back. A callback that is added by ``trainer.add_callback`` does not see
    exceptions; then the next ``train()`` of the model releases it.

    Args:
        schedule: A schedule, or a function from the step to a rate. Durations in percent are
            resolved from the trainer's ``max_steps``, durations in epochs from the length of its
            loader and the accumulation.
        **options: ``kind``, ``sites`` and ``masks`` of `DropoutScheduler`.
    """

    def __init__(self, schedule: Rates, **options: Any) -> None:
        self.schedule = schedule
        self.options = options
        self.scheduler: DropoutScheduler | None = None
        self._state: Any = None  # the trainer's state in the train() call that made the scheduler

    def lead(self, trainer: Any) -> None:
        """Run before the trainer's reporters, so that they get ``dropout_rate``.

        Args:
            trainer: The ``transformers.Trainer`` with this callback.

        Raises:
            ValueError: The trainer does not have this callback.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            raise ValueError(
                "the trainer does not have this callback: "
                "give it as Trainer(callbacks=[callback]) first"
            )
        callbacks.remove(self)
        callbacks.insert(0, self)

    def let_go(self) -> None:
        """Release the model, if it is driven. ``train()`` calls this at its end."""
        _DRIVING.discard(self)
        if self.scheduler is not None:
            self.scheduler.restore()
            self.scheduler = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = _calling_trainer()
        if trainer is not None:
            _let_go_after_train(trainer, self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reporters = _reporters_before(self)
        if reporters:
            warnings.warn(
                f"the reporters {', '.join(reporters)} run before this callback, so they "
                "do not get dropout_rate (the trainer's log history does): call "
                "callback.lead(trainer) before trainer.train()",
                stacklevel=2,
            )
        self._release_earlier(kwargs["model"], state)
        schedule = in_steps(self.schedule, _length(args, state, kwargs.get("train_dataloader")))
        self.scheduler = DropoutScheduler(kwargs["model"], schedule, **self.options)
        self._state = state
        _DRIVING.add(self)
        self.scheduler.set_step(state.global_step)

    def _release_earlier(self, model: Any, state: Any) -> None:
        """Release what an earlier ``train()`` of the model still drives.

        That ``train()`` ended by an exception, for example before a retry with a smaller batch.
        """
        self.let_go()
        modules = set(model.modules())
        for callback in list(_DRIVING):
            # A callback with this state belongs to this train() too, as one for the other kind.
            if callback.scheduler is None or callback._state is state:
                continue
            if any(site.module in modules for site in callback.scheduler.sites):
                callback.let_go()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.scheduler is not None:
            self.scheduler.set_step(state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.scheduler is not None and logs is not None:
            logs["dropout_rate"] = self.scheduler.last_rate
            if state.log_history:
                state.log_history[-1]["dropout_rate"] = self.scheduler.last_rate

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.let_go()


class ProbeCallback(TrainerCallback):
    """Measure gradients while a Hugging Face ``Trainer`` trains.

    The trainer logs ``probe/gradient_norm``, ``probe/gdv``, ``probe/gde`` and ``model/distance``
    into ``trainer.state.log_history`` and to its reporters. Training is bit for bit the same as
    without the callback: random numbers, ``.grad`` and buffers are as before.

    Args:
        every: Optimizer steps (``state.global_step``) between two measurements. The first is before
            the first step.
        batches: The number of mini-batches to take from the training data, the same ones every
            time; or a list of mini-batches. At least 2.
        dataset: The batches for the whole-dataset gradient of the GDE. Default: the mini-batches
            together. False leaves the GDE out; choose it for a model with noise that is not
            dropout.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss, a scalar. Default: the trainer's
            ``compute_loss``.
        initial: The module or state dict from which the model distance is taken. Default: the
            weights that the trainer was given, before it loads a checkpoint. A callback that
            ``trainer.add_callback`` adds takes those at the start of ``train()``, after the
            checkpoint.

    Put `DropoutCallback` before it in the list of callbacks. Otherwise it measures at the rates of
    the step before.

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

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if kwargs.get("model") is not None:
            self.measuring.keep_initial(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measuring.keep_initial(kwargs["model"])
        self.measuring.take(kwargs["model"], kwargs.get("train_dataloader"), args.train_batch_size)
        self._measure(state, control, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state, control, kwargs["model"])

    def _measure(self, state: Any, control: Any, model: nn.Module) -> None:
        trainer = _calling_trainer()
        if trainer is None or not self.measuring.due(state.global_step):
            return
        loss_fn = _Loss(trainer, self.measuring.loss_fn)
        should_log = control.should_log
        trainer.log(self.measuring.measure(model, loss_fn))
        control.should_log = should_log  # trainer.log() sets it to False


class _Loss:
    """The loss of a batch, as a trainer computes it.

    The probe searches a loss for random generators. This class has slots and no ``__dict__``. So
    the search does not enter the trainer, but finds the user's function as ``__wrapped__``.
    """

    __slots__ = ("__wrapped__", "trainer")

    def __init__(self, trainer: Any, given: LossFunction | None) -> None:
        self.trainer, self.__wrapped__ = trainer, given

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        inputs = self.trainer._prepare_inputs(batch)
        with self.trainer.compute_loss_context_manager():
            loss_fn = self.__wrapped__ or self.trainer.compute_loss
            loss: Tensor = loss_fn(module, inputs)
            return loss


_DRIVING: weakref.WeakSet[DropoutCallback] = weakref.WeakSet()
"""The callbacks that drive a model at present."""


def _length(args: Any, state: Any, loader: Any) -> RunLength:
    """The steps of the run and, if the loader has a length, the steps of an epoch."""
    if not has_length(loader):
        no_epoch = "the trainer's loader has no length, so the steps of an epoch are not known"
        return RunLength(state.max_steps, None, no_epoch=no_epoch)
    per_epoch = max(math.ceil(len(loader) / args.gradient_accumulation_steps), 1)
    return RunLength(state.max_steps, per_epoch)


def _calling_trainer() -> Trainer | None:
    """The trainer that is calling a callback, taken from the stack: callbacks do not get it."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    return None


def _reporters_before(callback: TrainerCallback) -> list[str]:
    """The names of the reporters that the calling trainer calls before a callback."""
    trainer = _calling_trainer()
    if trainer is None:
        return []
    callbacks = trainer.callback_handler.callbacks
    before = callbacks[: callbacks.index(callback)]
    return [
        name
        for name, reporter in INTEGRATION_TO_CALLBACK.items()
        if any(isinstance(earlier, reporter) for earlier in before)
    ]


def _let_go_after_train(trainer: Trainer, callback: DropoutCallback) -> None:
    """Make a trainer's ``train`` end with `DropoutCallback.let_go`.

    Callbacks are not told of exceptions.
    """
    train = trainer.train

    @functools.wraps(train)
    def train_then_let_go(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        finally:
            callback.let_go()

    trainer.train = train_then_let_go
