"""The trainer: one run from its plan to its last checkpoint, resumable after any step, bit for bit."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from earlydrop.classic.max_norm import max_norm_
from earlydrop.distance import model_distance
from earlydrop.metrics import improved
from earlydrop.scheduler import DropoutScheduler
from earlydrop.sites import find_sites
from earlydrop.sites.audit import audit
from earlydrop.sites.traceless import leave_no_trace
from earlydrop.training.config import ConfigError
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import training_order
from earlydrop.training.evaluate import autocast, evaluate_all, evaluate_mc
from earlydrop.training.models import INPUT_DROPOUT, Task, build_model
from earlydrop.training.optim import add_penalties, learning_rate, make_optimizer
from earlydrop.training.plan import Plan
from earlydrop.training.probes import probe_gradients
from earlydrop.training.record.checkpoint import load_checkpoint, save_best, save_checkpoint
from earlydrop.training.record.folder import RunFolder, read_metrics
from earlydrop.training.record.provenance import environment
from earlydrop.training.streams import stream_seed

log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):  # noqa: N818
    """The run cannot go on; the message says at which step and why. Its last good checkpoint is kept."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint."""


def scheduled_model(plan: Plan) -> tuple[nn.Module, DropoutScheduler | None]:
    """The model at its initial weights on its device, and what drives its dropout: None for a schedule that never drops.

    Raises:
        ConfigError: The model has no site of the scheduled kind.
    """
    config, peak = plan.config, plan.schedule.peak
    kind = config.schedule.kind
    unit, path = (peak if kind in (each, "all") else 0.0 for each in ("unit", "path"))
    source = plan.source
    model = build_model(config.model, Task(source.channels, source.classes, source.image_size, unit, path), config.seed)
    model = model.to(plan.device)
    if peak == 0:
        return model, None
    try:
        sites = _driven if config.model.input_dropout else None
        return model, DropoutScheduler(model, plan.schedule, kind=kind, sites=sites, masks=config.trainer.masks)
    except ValueError as error:
        raise ConfigError(f"schedule.kind is {kind!r}, model.name is {config.model.name!r}: {error}") from error


def try_forward(model: nn.Module, plan: Plan) -> None:
    """Put one blank image through the model, leaving no trace, so that a model that cannot take it is refused before any work.

    Raises:
        ConfigError: The model cannot take images of this size, or gives something else than a score for each class.
    """
    source, name = plan.source, plan.config.model.name
    image = torch.zeros(1, source.channels, source.image_size, source.image_size, device=plan.device)
    try:
        with leave_no_trace(model), torch.no_grad(), autocast(plan):
            shape = tuple(model.eval()(image).shape)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, TypeError) as error:
        raise ConfigError(
            f"model.name is {name!r}: it cannot take {source.image_size}-pixel images ({str(error).splitlines()[0]}); "
            "give another model, or other images with data.image_size"
        ) from error
    if shape != (1, source.classes):
        raise ConfigError(
            f"model.name is {name!r}: it gives {shape} for one image, expected a score for each of {source.classes} classes"
        )


def refuse_what_still_drops(model: nn.Module, plan: Plan) -> None:
    """Watch two blank images pass through the model with its schedule at rate 0, leaving no trace: nothing may drop.

    Raises:
        ConfigError: Something does, beside the input dropout that no schedule drives; so no arm of a study would be what it says.
    """
    source = plan.source
    images = torch.zeros(2, source.channels, source.image_size, source.image_size, device=plan.device)
    kind = plan.config.schedule.kind if plan.schedule.peak > 0 else "all"
    with autocast(plan):
        found = audit(model, images, kind=kind)
    left = [drop for drop in found.undriven if drop.site != INPUT_DROPOUT]
    if left:
        raise ConfigError(f"model.name is {plan.config.model.name!r}: it drops what no schedule drives\n{found}")


def _driven(name: str, module: nn.Module) -> bool:
    """The sites of a model with input dropout that a schedule drives."""
    return name != INPUT_DROPOUT and any(site.base_rate > 0 for site in find_sites(module))


class Trainer:
    """One run.

    Args:
        plan: What to do.
        model: The model at its initial weights, from `scheduled_model`.
        scheduler: What drives its dropout, if anything does.
        folder: Where it is recorded; held by this process.
        track: Called with (step, metrics) for every line of ``metrics.jsonl``.
        stop: Called after each step; True asks to stop.
        progress: Called with (step, metrics) after each logged step.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        scheduler: DropoutScheduler | None,
        folder: RunFolder,
        track: Callable[[int, dict[str, float]], None],
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ) -> None:
        self.plan, self.model, self.scheduler, self.folder = plan, model, scheduler, folder
        self.track, self.stop, self.progress = track, stop, progress
        self.sites = [site for site in find_sites(self.model) if site.driven]
        self.initial = copy.deepcopy({name: p.detach() for name, p in self.model.named_parameters()})
        self.optimizer = make_optimizer(self.model, plan.config.optim)
        self.objective = Objective(plan.source, plan.config.augment)
        self.compiled: nn.Module = torch.compile(self.model) if plan.config.trainer.compile else self.model  # type: ignore[assignment]
        self.step = 0
        self.window: list[Tensor] = []  # (loss, gradient norm) of the steps since the last logged one, on the device
        self.watched: list[float] = []  # values of trainer.stop_metric so far
        self.environment = environment(plan.device)

    def resume(self) -> None:
        """Go on from the folder's newest whole checkpoint, if there is one.

        Raises:
            ConfigError: It was made on another device, thread count or torch, and ``resume`` is not ``force``.
        """
        checkpoints = self.folder.path / "checkpoints"
        content = load_checkpoint(checkpoints, self.plan.fingerprint)
        if content is not None:
            self._same_environment(content["environment"])  # before anything is cut back
        self.folder.open_metrics(content["metrics_bytes"] if content else 0, content.get("metrics_sha256") if content else None)
        watched = self.plan.config.trainer.stop_metric
        self.watched = [line[watched] for line in read_metrics(self.folder.path / "metrics.jsonl") if watched in line]
        if content is None:
            return
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        self.window = list(content["window"].to(self.plan.device))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        log.info("going on from step %d of %d", self.step, self.plan.total_steps)

    def _same_environment(self, there: dict[str, Any]) -> None:
        if there != self.environment and self.plan.config.resume != "force":
            here = self.environment
            differing = [f"{key} {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
            raise ConfigError(
                f"{self.folder.path} was begun in another environment ({'; '.join(differing)}), so the last bits may differ: "
                "go on there, or say resume=force, or start over with resume=never"
            )

    def save(self) -> None:
        """Write a checkpoint of the step reached, unless its numbers are not finite."""
        self._check_finite()
        content = (
            self._content()
            | {
                "optimizer": self.optimizer.state_dict(),
                "window": torch.stack(self.window) if self.window else torch.empty(0, 2),
            }
            | self.folder.metrics_state()
        )
        save_checkpoint(self.folder.path / "checkpoints", self.step, content)

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
            self._record(self._probe())
        saved = began = logged = time.perf_counter()
        logged_step = first = self.step
        for images, targets in self.batches() if not self._out_of_patience() else ():
            self.train_step(images, targets)
            metrics = {}
            if self.step % trainer.log_every == 0 or self.step == plan.total_steps:
                metrics = self._read_window()
                now = time.perf_counter()
                rate = (self.step - logged_step) * trainer.batch_size / (now - logged)
                self.folder.write_timing({"step": self.step, "images_per_second": rate, "seconds": now - began})
                self.progress(self.step, metrics | {"images_per_second": rate})
            if self.scheduler is not None:
                self.scheduler.step()
            if self.step in plan.eval_steps or self.step in plan.probe_steps:
                self._check_finite()
            if self.step in plan.eval_steps:
                metrics |= self._evaluate()
            if self.step in plan.probe_steps:
                metrics |= self._probe()
            last = self.step == plan.total_steps or self._stops_early(metrics)
            if last and trainer.mc_passes is not None:
                metrics |= self._monte_carlo(trainer.mc_passes)
            if metrics:
                self._record(metrics)
                logged, logged_step = time.perf_counter(), self.step
            if last:
                break
            if self.stop():
                self.save()
                raise Interrupted
            if time.perf_counter() - saved > trainer.checkpoint_seconds:
                self.save()
                saved = time.perf_counter()
        if self.step > first:
            self.save()

    def _evaluate(self) -> dict[str, float]:
        """Evaluate; where a metric is watched, keep the weights at which it was best."""
        metrics = evaluate_all(self.model, self.objective, self.plan)
        watched = self.plan.config.trainer.stop_metric
        if watched is not None and all(improved(watched, metrics[watched], before) for before in self.watched):
            content = self._content() | {"metric": watched, "value": metrics[watched]}
            save_best(self.folder.path / "checkpoints", content)
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

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches from the step reached to the last."""
        plan = self.plan
        order = training_order(
            plan.config.seed, plan.source.sizes["train"], plan.config.trainer.batch_size, self.step, plan.total_steps
        )
        return self.objective.batches(order, plan.config.seed, "augment")

    def train_step(self, images: Tensor, targets: Tensor) -> None:
        """One optimizer step; nothing of it waits for the device."""
        plan, config = self.plan, self.plan.config
        rate = learning_rate(self.step, config.optim.lr, config.optim.min_lr, plan.warmup_steps, plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        parts = config.trainer.accumulate
        loss = torch.zeros((), device=plan.device)
        for i, (x, y) in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True)):
            torch.manual_seed(stream_seed(config.seed, "dropout", self.step, i))
            with autocast(plan):
                part = self.objective.loss(self.compiled(x), y) / parts
            part.backward()
            loss += part.detach()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if config.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.optim.clip, norm, foreach=True)
        if config.optim.l1 is not None or config.optim.l2 is not None:
            add_penalties(self.optimizer, config.optim.l1, config.optim.l2)
        self.optimizer.step()
        if config.optim.max_norm is not None:
            max_norm_(self.model, config.optim.max_norm)
        self.window.append(torch.stack((loss, norm)))
        self.step += 1

    def _read_window(self) -> dict[str, float]:
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
        values: list[list[float]] = torch.stack(self.window).tolist() if self.window else []
        for i, (loss, norm) in enumerate(values):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                step = self.step - len(values) + i
                what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
                raise TrainingFailed(f"the training {what} at step {step}: lower optim.lr, lengthen optim.warmup or set optim.clip")
        return values

    def _probe(self) -> dict[str, float]:
        try:
            return probe_gradients(self.model, self.objective, self.plan, self.step)
        except ValueError as error:
            raise TrainingFailed(f"the probe at step {self.step}: {error}") from error

    def _record(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"{name} is {value} after step {self.step}: lower optim.lr, lengthen optim.warmup or set optim.clip"
                )
        self.folder.write_metrics(self.step, metrics)
        self.track(self.step, metrics)
