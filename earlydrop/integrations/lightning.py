"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from earlydrop.scheduler import DropoutScheduler
from earlydrop.schedules import Schedule


class DropoutCallback(Callback):
    """Schedule the dropout of a LightningModule.

    The rate is a function of ``trainer.global_step``, so resuming needs no state of its own. It is logged as ``dropout_rate``.

    Args:
        schedule: A schedule; durations in epochs or percent are resolved from the trainer's own length.
        **options: ``kind``, ``sites`` and ``masks`` of `DropoutScheduler`.
    """

    def __init__(self, schedule: Schedule, **options: Any) -> None:
        self.schedule = schedule
        self.options = options
        self.scheduler: DropoutScheduler | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        epochs = max(trainer.max_epochs or 1, 1)
        schedule = self.schedule.resolve(total, max(total // epochs, 1))
        self.scheduler = DropoutScheduler(pl_module, schedule, **self.options)
        self.scheduler.set_step(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.scheduler is not None:
            pl_module.log("dropout_rate", self.scheduler.last_rate)
            self.scheduler.set_step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scheduler is not None:
            self.scheduler.restore()
            self.scheduler = None
