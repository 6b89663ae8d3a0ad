"""A callback for the Hugging Face ``Trainer``."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback

from earlydrop.scheduler import DropoutScheduler
from earlydrop.schedules import Schedule


class DropoutCallback(TrainerCallback):
    """Schedule the dropout of the model that a Hugging Face ``Trainer`` trains.

    The rate is a function of ``global_step``, so resuming from a checkpoint needs no state of its own. It is logged as
    ``dropout_rate``, in ``trainer.state.log_history`` too. Reporters (TensorBoard, Weights & Biases) run before the callbacks that a
    trainer is given: `lead` puts this one in front of them, so that they report the rate.

    Args:
        schedule: A schedule; durations in epochs or percent are resolved from the trainer's own length.
        **options: ``kind``, ``sites`` and ``masks`` of `DropoutScheduler`.
    """

    def __init__(self, schedule: Schedule, **options: Any) -> None:
        self.schedule = schedule
        self.options = options
        self.scheduler: DropoutScheduler | None = None
        self._leads = False

    def lead(self, trainer: Any) -> None:
        """Run before the trainer's reporters, so that they see ``dropout_rate``.

        Args:
            trainer: The ``transformers.Trainer`` that was given this callback.

        Raises:
            ValueError: The trainer was not given this callback.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            raise ValueError("the trainer does not have this callback: give it as Trainer(callbacks=[callback]) first")
        callbacks.remove(self)
        callbacks.insert(0, self)
        self._leads = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reporters = args.report_to if isinstance(args.report_to, (list, tuple)) else [args.report_to]
        if not self._leads and any(name not in (None, "none") for name in reporters):
            warnings.warn(
                f"the reporters {', '.join(map(str, reporters))} run before this callback, so they do not get dropout_rate (the trainer's "
                "log history does): call callback.lead(trainer) before trainer.train()",
                stacklevel=2,
            )
        epochs = max(state.num_train_epochs, 1)
        schedule = self.schedule.resolve(state.max_steps, max(state.max_steps // epochs, 1))
        self.scheduler = DropoutScheduler(kwargs["model"], schedule, **self.options)
        self.scheduler.set_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.scheduler is not None:
            self.scheduler.set_step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.scheduler is not None and logs is not None:
            logs["dropout_rate"] = self.scheduler.last_rate
            if state.log_history:
                state.log_history[-1]["dropout_rate"] = self.scheduler.last_rate

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.scheduler is not None:
            self.scheduler.restore()
            self.scheduler = None
