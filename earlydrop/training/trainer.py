"""The trainer: one run, from its plan to its last checkpoint, resumable bit for bit."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.classic.max_norm import max_norm_
from earlydrop.distance import model_distance
from earlydrop.sites import find_sites
from earlydrop.training.average import WeightAverage
from earlydrop.training.curvature import probe_all
from earlydrop.training.data.copies import on_their_own_stream
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.source import Batch
from earlydrop.training.distributed import Group, Requests
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.evaluate import autocast, evaluate_all, evaluate_extra, evaluate_mc
from earlydrop.training.flops import utilisation_per_image
from earlydrop.training.optim import add_penalties, clip_gradients, learning_rate, make_optimizer
from earlydrop.training.pace import Pace
from earlydrop.training.parts import training_parts
from earlydrop.training.peaks import Driver
from earlydrop.training.plan import Plan
from earlydrop.training.profile import Profiler
from earlydrop.training.record.checkpoint import load_checkpoint, save_best, save_checkpoint
from earlydrop.training.record.folder import RunFolder, read_metrics
from earlydrop.training.record.provenance import check_environment, environment
from earlydrop.training.stopping import Patience
from earlydrop.training.streams import seed_device, stream_seed
from earlydrop.training.window import REMEDY, Window

log = logging.getLogger(__name__)


class Trainer:
    """Trains one run.

    Args:
        plan: The plan of the run.
        model: The model at its initial weights, from `earlydrop.training.prepare`.
        scheduler: The scheduler of the model's dropout; None if nothing is driven.
        folder: The folder of the run, which this process holds. None on all workers but the first.
        track: Called with (step, metrics) for every line of ``metrics.jsonl``, on the first worker.
        stop: Called after each step; True asks to stop.
        progress: Called with the metrics and the line of timing of each logged step.
        group: The workers of the run, of which this is one.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        scheduler: Driver | None,
        folder: RunFolder | None,
        track: Callable[[int, dict[str, float]], None],
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[dict[str, float], dict[str, float]], None] | None = None,
        group: Group | None = None,
    ) -> None:
        options = plan.config.trainer
        self.plan = plan
        self.model = model
        self.scheduler = scheduler
        self.folder = folder
        self.group = group or Group()
        self.track = track
        self.stop = stop
        self.progress = progress
        self.sites = [site for site in find_sites(self.model) if site.driven]
        self.initial = copy.deepcopy({name: p.detach() for name, p in model.named_parameters()})
        self.optimizer = make_optimizer(self.model, plan.config.optim)
        self.objective = Objective(plan.source, plan.config.augment)
        self.training_model: Any = self.model
        if options.compile:
            self.training_model = torch.compile(self.model, mode=options.compile_mode)
        self.reduction = self.group.gradient_sum(self.model)
        self.average = WeightAverage(self.model, options.ema) if options.ema is not None else None
        self.profiler = Profiler(options.profile, folder.path if folder is not None else None)
        self.step = 0
        self.window = Window(self.group)
        self.patience = Patience(options.stop_metric, options.stop_patience)
        self.environment = environment(plan.device, self.group.size)
        self._saved_at = time.perf_counter()
        self._requests = Requests(self.group)

    # The loop

    def train(self) -> None:
        """Train to the end of the plan.

        Raises:
            Interrupted: ``stop`` asked for it; a checkpoint was saved.
            TrainingFailed: A loss, a gradient norm or a metric is not finite, or a probe failed.
        """
        first = self.step
        self.model.train()
        if self.step == 0 and 0 in self.plan.probe_steps:
            self.record(self._probe())
        pace = self.pace()
        for parts in self._remaining_batches(pace):
            self.train_step(parts)
            metrics = self._log(pace)
            if self.scheduler is not None:
                self.scheduler.step()
            metrics |= self._evaluate_if_due()
            metrics |= self._probe_if_due()
            last = self.step == self.plan.total_steps or self.patience.is_over
            if last:
                metrics |= self._evaluate_at_the_end()
            if metrics:
                self.record(metrics)
                pace.restart(self.step)  # measuring does not count as training time
            if last:
                break
            self._save_or_stop()
        self._requests.read()
        if self.step > first:
            self.save()

    def _remaining_batches(self, pace: Pace) -> Iterator[list[Batch]]:
        """The parts of each remaining step; none if the run has already stopped early."""
        self._saved_at = time.perf_counter()
        if self.patience.is_over:
            return iter(())
        return self.profiler.around(pace.waiting(self.batches()), self.step)

    def batches(self) -> Iterator[list[Batch]]:
        """This worker's parts of the training batches, from the step reached to the last."""
        steps = training_parts(self.plan, self.objective, self.group, self.step)
        return on_their_own_stream(steps, self.plan.device)

    def train_step(self, parts: list[Batch]) -> None:
        """One optimizer step on this worker's parts of a batch; it never waits for the device."""
        options = self.plan.config.optim
        self._set_learning_rate()
        loss = self._accumulate_gradients(parts)
        norm = clip_gradients(self.model, options.clip)
        if options.l1 is not None or options.l2 is not None:
            add_penalties(self.optimizer, options.l1, options.l2)
        self.optimizer.step()
        if options.max_norm is not None:
            max_norm_(self.model, options.max_norm)
        if self.average is not None:
            self.average.update()
        self.window.append(loss, norm)
        self.step += 1

    def _set_learning_rate(self) -> None:
        plan, options = self.plan, self.plan.config.optim
        rate = learning_rate(
            step=self.step,
            base=options.lr,
            minimum=options.min_lr,
            warmup_steps=plan.warmup_steps,
            total_steps=plan.total_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _accumulate_gradients(self, parts: list[Batch]) -> Tensor:
        """Run the forward and backward passes of the parts; return their share of the mean loss.

        All parts run in one autocast context, so that each weight is cast only once per step. The
        backward passes run outside autocast, as PyTorch recommends. That of the last part sums the
        gradients of the workers.
        """
        plan, options = self.plan, self.plan.config.trainer
        self.optimizer.zero_grad(set_to_none=True)
        if options.compile:
            torch.compiler.cudagraph_mark_step_begin()  # the last step's outputs may be overwritten
        loss = torch.zeros((), device=plan.device)
        indices = self.group.block(options.accumulate)
        summed: Any = nullcontext if self.reduction is None else self.reduction.summed
        with autocast(plan):
            for i, (x, y) in zip(indices, parts, strict=True):
                seed = stream_seed(plan.config.seed, "dropout", self.step, i)
                seed_device(plan.device, seed)
                with summed() if i == indices[-1] else nullcontext():
                    part = self.objective.loss(self.training_model(x), y) / options.accumulate
                    with torch.autocast(plan.device.type, enabled=False):
                        part.backward()
                loss += part.detach()
        return loss

    # Measurements

    def _log(self, pace: Pace) -> dict[str, float]:
        """Log every ``log_every`` steps, and at the last step of the plan.

        A logged step writes a line of ``timing.jsonl`` and reports progress. The training metrics
        are returned, or an empty dictionary if the step is not logged.
        """
        if self.step % self.plan.config.trainer.log_every and self.step != self.plan.total_steps:
            return {}
        metrics = self.take_window()
        timing = pace.record(self.step)
        if self.group.main:
            self._folder.write_timing(timing)
        if self.progress is not None:
            self.progress(metrics, timing)
        return metrics

    def take_window(self) -> dict[str, float]:
        """Return the training metrics since the last logged step, and forget these steps.

        This waits for the device.
        """
        loss, norm = self.window.means(self.step)
        self.window.clear()
        metrics = {
            "train/loss": loss,
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": norm,
            "model/distance": model_distance(self.model, self.initial),
        }
        for kind in ("unit", "path"):
            rates = [site.rate for site in self.sites if site.kind == kind]
            metrics[f"dropout/{kind}_rate"] = max(rates, default=0.0)
        return metrics

    def _evaluate_if_due(self) -> dict[str, float]:
        """Evaluate if this step is in ``eval_steps``; else return nothing."""
        if self.step not in self.plan.eval_steps:
            return {}
        self.window.check_finite(self.step)
        last = self.step == self.plan.total_steps
        metrics = self._evaluate(last)
        watched = self.plan.config.trainer.stop_metric
        if watched is not None:
            same_images = not last or self.plan.config.evaluation.interim_images is None
            interim = metrics if same_images else self._evaluate(last=False)
            self._watch(watched, interim[watched])
        return metrics

    def _watch(self, watched: str, value: float) -> None:
        """Add a value of the watched metric; save the weights if it is the best so far.

        All values must come from the same images. So if earlier evaluations used only some of the
        images, the last one gives its value on these too.
        """
        if self.patience.take(value) and self.group.main:
            content = self._content() | {"metric": watched, "value": value}
            save_best(self._folder.path / "checkpoints", content)

    def _evaluate(self, last: bool) -> dict[str, float]:
        """Evaluate the weights, and their average where one is kept."""
        return evaluate_all(
            self.model,
            self.objective,
            self.plan,
            last=last,
            group=self.group,
            average=self.average,
        )

    def _evaluate_at_the_end(self) -> dict[str, float]:
        """Take the measurements of the end of the run.

        After an early stop, evaluate on all images if earlier evaluations used only some. Then
        evaluate on further test sets and, if ``trainer.mc_passes`` is set, with Monte Carlo
        dropout.
        """
        metrics: dict[str, float] = {}
        stopped_early = self.step < self.plan.total_steps
        if stopped_early and self.plan.config.evaluation.interim_images is not None:
            metrics |= self._evaluate(last=True)
        metrics |= evaluate_extra(self.model, self.plan, self.group, self.average)
        passes = self.plan.config.trainer.mc_passes
        if passes is None:
            return metrics
        if self.scheduler is None or self.scheduler.last_rate == 0:
            reason = f"stopped early at step {self.step}, where no dropout was on"
            log.warning("%s: Monte Carlo dropout was not measured", reason)
            return metrics
        return metrics | evaluate_mc(self.model, self.plan, passes)

    def _probe_if_due(self) -> dict[str, float]:
        if self.step not in self.plan.probe_steps:
            return {}
        self.window.check_finite(self.step)
        return self._probe()

    def _probe(self) -> dict[str, float]:
        try:
            return probe_all(
                self.model,
                self.optimizer,
                objective=self.objective,
                plan=self.plan,
                step=self.step,
                group=self.group,
            )
        except ValueError as error:
            raise TrainingFailed(f"the probe at step {self.step}: {error}") from error

    def pace(self) -> Pace:
        """Start the clock of the run."""
        return Pace(
            self.plan.device,
            self.step,
            self.plan.config.trainer.batch_size,
            utilisation_per_image(self.model, self.plan, self.group.size),
        )

    # Records and checkpoints

    def record(self, metrics: dict[str, float]) -> None:
        """Write a line of ``metrics.jsonl`` for the step reached, and call ``track`` with it.

        Only the first worker does so. All workers check the values.

        Raises:
            TrainingFailed: A metric is not finite.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingFailed(f"{name} is {value} after step {self.step}: {REMEDY}")
        if self.group.main:
            self._folder.write_metrics(self.step, metrics)
            self.track(self.step, metrics)

    def _save_or_stop(self) -> None:
        """Save a checkpoint if one is due or any worker was asked to stop.

        With several workers both happen one step after the request (see `Requests`).

        Raises:
            Interrupted: A worker was asked to stop.
        """
        seconds = time.perf_counter() - self._saved_at
        due = self.group.main and seconds > self.plan.config.trainer.checkpoint_seconds
        stop, save = self._requests.exchange(self.stop(), due)
        if stop or save:
            self.save()
            self._saved_at = time.perf_counter()
        if stop:
            raise Interrupted

    def save(self) -> None:
        """Write a checkpoint of the step reached.

        Raises:
            TrainingFailed: A loss or a gradient norm is not finite.
        """
        self.window.check_finite(self.step)
        window = self.window.summed()
        if self.group.main:
            content = self._content()
            content |= {"optimizer": self.optimizer.state_dict(), "window": window}
            content |= {"watched": self.patience.values}
            content |= self._folder.metrics_state()
            save_checkpoint(self._folder.path / "checkpoints", self.step, content)

    def _content(self) -> dict[str, Any]:
        """The content that checkpoints and ``best.pt`` have in common."""
        averaged = {"model_ema": self.average.state_dict()} if self.average is not None else {}
        return averaged | {
            "fingerprint": self.plan.fingerprint,
            "environment": self.environment,
            "step": self.step,
            "model": self.model.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
        }

    def resume(self) -> None:
        """Resume from the folder's newest complete checkpoint, if there is one.

        Raises:
            ConfigError: The checkpoint was made with another device, thread count, torch version or
                number of workers, and ``resume`` is not ``force``. Or ``metrics.jsonl`` was changed
                since then, or the checkpoint belongs to another configuration.
        """
        content = self.group.decide(self._load)
        if content is None:
            return
        self.patience.values = content["watched"]
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(content["model_ema"])
        self.step = content["step"]
        self.window.load(content["window"].to(self.plan.device))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        log.info("resuming from step %d of %d", self.step, self.plan.total_steps)

    def _load(self) -> dict[str, Any] | None:
        """Load the newest complete checkpoint, and cut ``metrics.jsonl`` back to its step.

        Only the first worker calls this. The result is None if there is no checkpoint.
        """
        folder = self._folder
        content = load_checkpoint(folder.path / "checkpoints", self.plan.fingerprint)
        if content is None:
            folder.open_metrics(0)
            return None
        if self.plan.config.resume != "force":  # before anything is cut back
            check_environment(folder.path, content["environment"], self.environment)
        folder.open_metrics(content["metrics_bytes"], content.get("metrics_sha256"))
        if "watched" not in content:  # a checkpoint of an earlier version
            watched = self.plan.config.trainer.stop_metric
            lines = read_metrics(folder.path / "metrics.jsonl")
            content["watched"] = [line[watched] for line in lines if watched in line]
        return content

    @property
    def _folder(self) -> RunFolder:
        if self.folder is None:
            raise RuntimeError(f"worker {self.group.rank} has no folder: only the first writes")
        return self.folder
