"""A callback for the Hugging Face ``Trainer``."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from earlydrop.scheduler import DropoutScheduler
from earlydrop.schedules import Schedule


class DropoutCallback(TrainerCallback):
    """Schedule the dropout of the model that a Hugging Face ``Trainer`` trains.

    The rate is a function of ``global_step``, so resuming from a checkpoint needs no state of its own. It is logged as
    ``dropout_rate``, in ``trainer.state.log_history`` too.

    Args:
        schedule: A schedule; durations in epochs or percent are resolved from the trainer's own length.
        **options: ``kind``, ``sites`` and ``masks`` of `DropoutScheduler`.
    """

    def __init__(self, schedule: Schedule, **options: Any) -> None:
        self.schedule = schedule
        self.options = options
        self.scheduler: DropoutScheduler | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
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
