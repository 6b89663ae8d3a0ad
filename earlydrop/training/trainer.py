"""The trainer: one run from its plan to its last checkpoint, resumable after any step, bit for bit."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.classic.max_norm import max_norm_
from earlydrop.distance import model_distance
from earlydrop.metrics import improved
from earlydrop.sites import find_sites
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import training_order
from earlydrop.training.data.source import Batch
from earlydrop.training.distributed import Group
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.evaluate import autocast, evaluate_all, evaluate_mc
from earlydrop.training.fields import ConfigError
from earlydrop.training.optim import add_penalties, learning_rate, make_optimizer
from earlydrop.training.peaks import Driver
from earlydrop.training.plan import Plan
from earlydrop.training.probes import probe_gradients
from earlydrop.training.record.checkpoint import load_checkpoint, save_best, save_checkpoint
from earlydrop.training.record.folder import RunFolder, read_metrics
from earlydrop.training.record.provenance import environment
from earlydrop.training.streams import stream_seed

log = logging.getLogger(__name__)


class Trainer:
    """One run.

    Args:
        plan: What to do.
        model: The model at its initial weights, from `earlydrop.training.prepare`.
        scheduler: What drives its dropout, if anything does.
        folder: Where it is recorded, held by this process; None on every worker but the first.
        track: Called with (step, metrics) for every line of ``metrics.jsonl``.
        stop: Called after each step; True asks to stop.
        progress: Called with (step, metrics) after each logged step.
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
        progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
        group: Group | None = None,
    ) -> None:
        self.plan, self.model, self.scheduler, self.folder = plan, model, scheduler, folder
        self.group = group or Group()
        self.track, self.stop, self.progress = track, stop, progress
        self.sites = [site for site in find_sites(self.model) if site.driven]
        self.initial = copy.deepcopy({name: p.detach() for name, p in self.model.named_parameters()})
        self.optimizer = make_optimizer(self.model, plan.config.optim)
        self.objective = Objective(plan.source, plan.config.augment)
        self.called: nn.Module = torch.compile(self.model) if plan.config.trainer.compile else self.model  # type: ignore[assignment]
        self.reduction = self.group.gradient_sum(self.model)
        self.step = 0
        self.window: list[Tensor] = []  # (this worker's part of the loss, gradient norm) of the steps since the last logged one
        self.watched: list[float] = []  # values of trainer.stop_metric so far
        self.environment = environment(plan.device, self.group.size)

    def resume(self) -> None:
        """Go on from the folder's newest whole checkpoint, if there is one.

        Raises:
            ConfigError: It was made on another device, thread count or torch, and ``resume`` is not ``force``.
        """
        content, self.watched = self.group.decide(self._load)
        if content is None:
            return
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        self.window = list(content["window"].to(self.plan.device))
        if not self.group.main:
            self.window = [torch.stack((torch.zeros_like(loss), norm)) for loss, norm in self.window]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        log.info("going on from step %d of %d", self.step, self.plan.total_steps)

    def _load(self) -> tuple[dict[str, Any] | None, list[float]]:
        """The newest whole checkpoint, with the metrics cut back to it, the watched metric's values so far; on the first worker."""
        folder = self._folder
        content = load_checkpoint(folder.path / "checkpoints", self.plan.fingerprint)
        if content is not None:
            self._same_environment(content["environment"])  # before anything is cut back
        folder.open_metrics(content["metrics_bytes"] if content else 0, content.get("metrics_sha256") if content else None)
        watched = self.plan.config.trainer.stop_metric
        return content, [line[watched] for line in read_metrics(folder.path / "metrics.jsonl") if watched in line]

    @property
    def _folder(self) -> RunFolder:
        if self.folder is None:
            raise RuntimeError(f"worker {self.group.rank} has no folder: only the first writes")
        return self.folder

    def _same_environment(self, there: dict[str, Any]) -> None:
        if there != self.environment and self.plan.config.resume != "force":
            here, absent = self.environment, {"workers": 1}
            differing = [
                f"{key} {there.get(key, absent.get(key))} there, {here.get(key, absent.get(key))} here"
                for key in {**here, **there}
                if there.get(key) != here.get(key)
            ]
            raise ConfigError(
                f"{self._folder.path} was begun in another environment ({'; '.join(differing)}), so the last bits may differ: "
                "go on there, or say resume=force, or start over with resume=never"
            )

    def save(self) -> None:
        """Write a checkpoint of the step reached, unless its numbers are not finite."""
        self._check_finite()
        window = torch.stack(self.window) if self.window else torch.empty(0, 2)
        if self.window:
            window[:, 0] = self.group.sum(window[:, 0].clone())
        if self.group.main:
            content = self._content() | {"optimizer": self.optimizer.state_dict(), "window": window} | self._folder.metrics_state()
            save_checkpoint(self._folder.path / "checkpoints", self.step, content)

    def _content(self) -> dict[str, Any]:
        """What every file of weights holds."""
        return {
            "fingerprint": self.plan.fingerprint,
            "environment": self.environment,
            "step": self.step,
            "model": self.model.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
        }

    def train(self) -> None:
        """Train to the end of the plan.

        Raises:
            Interrupted: ``stop`` asked for it; a checkpoint was saved.
            TrainingFailed: The loss is not finite.
        """
        plan, trainer = self.plan, self.plan.config.trainer
        self.model.train()
        if self.step == 0 and 0 in plan.probe_steps:
            self.record(self._probe())
        saved = began = logged = time.perf_counter()
        logged_step = first = self.step
        for parts in self.batches() if not self._out_of_patience() else ():
            self.train_step(parts)
            metrics = {}
            if self.step % trainer.log_every == 0 or self.step == plan.total_steps:
                metrics = self.read_window()
                now = time.perf_counter()
                rate = (self.step - logged_step) * trainer.batch_size / (now - logged)
                if self.group.main:
                    self._folder.write_timing({"step": self.step, "images_per_second": rate, "seconds": now - began})
                self.progress(self.step, metrics | {"images_per_second": rate})
            if self.scheduler is not None:
                self.scheduler.step()
            if self.step in plan.eval_steps or self.step in plan.probe_steps:
                self._check_finite()
            if self.step in plan.eval_steps:
                metrics |= self._evaluate()
            if self.step in plan.probe_steps:
                metrics |= self._probe()
            stopped = self._stops_early(metrics)
            if stopped and plan.config.evaluation.interim_images is not None:  # the numbers that a run ends with are on all images
                metrics |= evaluate_all(self.model, self.objective, plan, True, self.group)
            last = self.step == plan.total_steps or stopped
            if last and trainer.mc_passes is not None:
                metrics |= self._monte_carlo(trainer.mc_passes)
            if metrics:
                self.record(metrics)
                logged, logged_step = time.perf_counter(), self.step
            if last:
                break
            due = self.group.main and time.perf_counter() - saved > trainer.checkpoint_seconds
            stop, save = self.group.largest(
                (float(self.stop()), float(due))
            )  # any worker may be asked to stop; the first has the clock
            if stop or save:
                self.save()
                saved = time.perf_counter()
            if stop:
                raise Interrupted
        if self.step > first:
            self.save()

    def _evaluate(self) -> dict[str, float]:
        """Evaluate; where a metric is watched, keep the weights at which it was best."""
        metrics = evaluate_all(self.model, self.objective, self.plan, self.step == self.plan.total_steps, self.group)
        watched = self.plan.config.trainer.stop_metric
        if watched is not None and self.group.main and all(improved(watched, metrics[watched], before) for before in self.watched):
            content = self._content() | {"metric": watched, "value": metrics[watched]}
            save_best(self._folder.path / "checkpoints", content)
        return metrics

    def _stops_early(self, metrics: dict[str, float]) -> bool:
        """Whether the watched metric has not improved in the last ``stop_patience`` evaluations."""
        trainer = self.plan.config.trainer
        if trainer.stop_metric is None or trainer.stop_metric not in metrics:
            return False
        self.watched.append(metrics[trainer.stop_metric])
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        trainer = self.plan.config.trainer
        if trainer.stop_metric is None or not self.watched:
            return False
        best = 0
        for i, value in enumerate(self.watched):
            best = i if improved(trainer.stop_metric, value, self.watched[best]) else best
        return len(self.watched) - 1 - best >= trainer.stop_patience

    def _monte_carlo(self, passes: int) -> dict[str, float]:
        if self.scheduler is None or self.scheduler.last_rate == 0:
            log.warning("stopped early at step %d, where no dropout was on: Monte Carlo dropout was not measured", self.step)
            return {}
        return evaluate_mc(self.model, self.plan, passes)

    def batches(self) -> Iterator[list[Batch]]:
        """This worker's parts of the training batches, from the step reached to the last.

        What is random in a part is drawn for (seed, step, part), so the numbers do not depend on how the parts are shared.
        """
        plan, parts = self.plan, self.plan.config.trainer.accumulate
        mine = self.group.block(parts)
        order = training_order(
            plan.config.seed, plan.source.sizes["train"], plan.config.trainer.batch_size, self.step, plan.total_steps
        )
        keyed = ((step * parts + i, chunk) for step, indices in order for i, chunk in enumerate(indices.chunk(parts)) if i in mine)
        batches = iter(self.objective.batches(keyed, plan.config.seed, "augment"))
        while part := list(itertools.islice(batches, len(mine))):
            yield part

    def train_step(self, parts: list[Batch]) -> None:
        """One optimizer step on this worker's parts of its batch; nothing of it waits for the device."""
        plan, config = self.plan, self.plan.config
        rate = learning_rate(self.step, config.optim.lr, config.optim.min_lr, plan.warmup_steps, plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=plan.device)
        for i, (x, y) in zip(self.group.block(config.trainer.accumulate), parts, strict=True):
            torch.manual_seed(stream_seed(config.seed, "dropout", self.step, i))
            with self._reducing(x is parts[-1][0]):
                with autocast(plan):
                    part = self.objective.loss(self.called(x), y) / config.trainer.accumulate
                part.backward()
            loss += part.detach()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if config.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.optim.clip, norm)
        if config.optim.l1 is not None or config.optim.l2 is not None:
            add_penalties(self.optimizer, config.optim.l1, config.optim.l2)
        self.optimizer.step()
        if config.optim.max_norm is not None:
            max_norm_(self.model, config.optim.max_norm)
        self.window.append(torch.stack((loss, norm)))
        self.step += 1

    def _reducing(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are summed over the workers once a step, during the backward pass of the last part."""
        return self.reduction.summed() if last and self.reduction is not None else nullcontext()

    def read_window(self) -> dict[str, float]:
        """The training metrics since the last logged step: the one moment that waits for the device."""
        values = self._check_finite()
        self.window = []
        losses, norms = zip(*values, strict=True)
        metrics = {
            "train/loss": math.fsum(losses) / len(losses),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/gradient_norm": math.fsum(norms) / len(norms),
            "model/distance": model_distance(self.model, self.initial),
        }
        for kind in ("unit", "path"):
            metrics[f"dropout/{kind}_rate"] = max((site.rate for site in self.sites if site.kind == kind), default=0.0)
        return metrics

    def _check_finite(self) -> list[list[float]]:
        """The window's losses and gradient norms, all of them finite."""
        values: list[list[float]] = []
        if self.window:
            window = torch.stack(self.window)
            window[:, 0] = self.group.sum(window[:, 0].clone())
            values = window.tolist()
        for i, (loss, norm) in enumerate(values):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                step = self.step - len(values) + i
                what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
                raise TrainingFailed(f"the training {what} at step {step}: lower optim.lr, lengthen optim.warmup or set optim.clip")
        return values

    def _probe(self) -> dict[str, float]:
        try:
            return probe_gradients(self.model, self.objective, self.plan, self.step, self.group)
        except ValueError as error:
            raise TrainingFailed(f"the probe at step {self.step}: {error}") from error

    def record(self, metrics: dict[str, float]) -> None:
        """Write a line of ``metrics.jsonl`` for the step reached, and pass it on.

        Raises:
            TrainingFailed: A metric is not finite.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"{name} is {value} after step {self.step}: lower optim.lr, lengthen optim.warmup or set optim.clip"
                )
        if self.group.main:
            self._folder.write_metrics(self.step, metrics)
            self.track(self.step, metrics)
