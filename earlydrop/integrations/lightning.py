"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

import math
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from earlydrop.integrations.length import Rates, RunLength, in_steps
from earlydrop.scheduler import DropoutScheduler

SAVED = "earlydrop"
"""Where the count of steps stands in Lightning's checkpoints of a manual optimization."""


class DropoutCallback(Callback):
    """Schedule the dropout of a LightningModule. The rate is logged as ``dropout_rate``.

    A step of the schedule is a batch after which an optimizer stepped: with one optimizer ``trainer.global_step``, and with
    several, which Lightning counts each by itself, one step whatever their number. With automatic optimization resuming needs
    no state of its own; with manual optimization the count is saved in Lightning's checkpoints.

    The model is given back when ``fit()`` ends, by an exception too.

    Args:
        schedule: A schedule, or a function from the step to a rate. Durations in percent are resolved from ``max_steps`` and
            ``max_epochs``, those in epochs from the length of the loader and the accumulation. With manual optimization a step
            at each batch is expected then: first batches without one are refused, later ones warned of.
        **options: ``kind``, ``sites`` and ``masks`` of `DropoutScheduler`.
    """

    def __init__(self, schedule: Rates, **options: Any) -> None:
        self.schedule = schedule
        self.options = options
        self.scheduler: DropoutScheduler | None = None
        self._stepped = 0  # batches after which an optimizer stepped
        self._global_step = 0  # what Lightning had counted by then
        self._paced = False  # whether the schedule's durations hold for one pace of a manual optimization only

    def let_go(self) -> None:
        """Give the model back, if it is driven. ``fit()`` calls this at its end."""
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
        """Bring the count of steps to where the trainer begins: at 0, or where it was saved."""
        counted = 0 < self._global_step <= trainer.global_step
        several = not pl_module.automatic_optimization and len(trainer.optimizers) > 1
        if trainer.global_step > 0 and several and not counted:
            raise ValueError(
                f"global_step is {trainer.global_step} at the start, in which Lightning counts the steps of "
                f"{len(trainer.optimizers)} optimizers, and the checkpoint was saved without this callback's count of batches: "
                f"write it into the file, checkpoint['{SAVED}'] = {{'steps': BATCHES, 'global_step': {trainer.global_step}}}"
            )
        if pl_module.automatic_optimization or not counted:
            self._stepped = self._global_step = trainer.global_step
        self._count(trainer)

    def _count(self, trainer: Trainer) -> int:
        """Count the batch that has ended, if an optimizer stepped in it.

        Returns:
            By how much Lightning's ``global_step`` grew in it.
        """
        grown = int(trainer.global_step) - self._global_step
        self._stepped += grown > 0
        self._global_step = trainer.global_step
        return grown

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not pl_module.automatic_optimization:
            checkpoint[SAVED] = {"steps": self._stepped, "global_step": self._global_step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(SAVED, {"steps": 0, "global_step": 0})
        self._stepped, self._global_step = saved["steps"], saved["global_step"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.scheduler is not None:
            pl_module.log("dropout_rate", self.scheduler.last_rate)
            before = self._stepped
            grown = self._count(trainer)
            if self._paced and not self._pace_is_kept(trainer, grown):
                self._report_pace(trainer, grown, refuse=before < 2)
            self.scheduler.set_step(self._stepped)

    def _pace_is_kept(self, trainer: Trainer, grown: int) -> bool:
        """Whether the optimizers stepped in a batch as the length of the run was worked out with."""
        return grown == len(trainer.optimizers) if trainer.max_steps != -1 else grown > 0

    def _report_pace(self, trainer: Trainer, grown: int, refuse: bool) -> None:
        """Refuse a manual optimization whose first batches show that the length was worked out wrongly; later, warn once."""
        message = (
            f"{self.schedule!r} has a duration in epochs or percent, which with manual optimization is known only where each of "
            f"the optimizers ({len(trainer.optimizers)} here) steps once a batch; in this batch there were {grown} steps: give "
            "the duration in steps (batches in which an optimizer stepped)"
        )
        if refuse:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)
        self._paced = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.let_go()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.let_go()


def _length(trainer: Trainer, pl_module: LightningModule) -> RunLength:
    """The steps of the run and of an epoch, from the loader's length, the accumulation and the trainer's limits.

    With manual optimization they are counted as if each optimizer stepped once a batch.
    """
    batches, epochs, most = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    if most != -1 and not pl_module.automatic_optimization:
        most = math.ceil(most / max(len(trainer.optimizers), 1))
    in_epochs = None
    if batches == math.inf:
        no_epoch = "the loader has no length, so the steps of an epoch are not known"
        per_epoch = None
    else:
        in_each = [math.ceil(batches / parts) for parts in _accumulation(trainer, epochs)]
        no_epoch = "the accumulation changes between epochs, and with it the steps of an epoch"
        per_epoch = in_each[0] if len(set(in_each)) == 1 else None
        in_epochs = sum(in_each) if epochs not in (None, -1) else None
    known = [limit for limit in (in_epochs, most if most != -1 else None) if limit is not None]
    no_total = "neither max_steps nor max_epochs with a loader of known length says it"
    return RunLength(min(known) if known else None, per_epoch, no_total, no_epoch)


def _accumulation(trainer: Trainer, epochs: int | None) -> list[int]:
    """In how many parts each epoch's batches are accumulated; for a run without end, of the epochs until it changes no more."""
    changing = [each for each in trainer.callbacks if isinstance(each, GradientAccumulationScheduler)]
    if not changing:
        return [trainer.accumulate_grad_batches] * max(epochs or 1, 1)
    last = max(changing[0].scheduling)
    until = epochs if epochs not in (None, -1) else last + 1
    return [changing[0].get_accumulate_grad_batches(epoch) for epoch in range(max(until or 1, 1))]
