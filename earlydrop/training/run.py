"""The life of one run: skipped if it is finished, resumed if it is not, trained, evaluated or failed."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from earlydrop.metrics import METRICS
from earlydrop.scheduler import DropoutScheduler
from earlydrop.training.config import Config, ConfigError
from earlydrop.training.data.objective import Objective
from earlydrop.training.describe import print_plan
from earlydrop.training.evaluate import evaluate_all
from earlydrop.training.plan import Plan, make_plan
from earlydrop.training.record.checkpoint import load_best, load_checkpoint
from earlydrop.training.record.folder import RunFolder, changed_files, read_metrics, read_status
from earlydrop.training.record.provenance import write_provenance
from earlydrop.training.record.tracking import run_id, tracking
from earlydrop.training.trainer import Interrupted, Trainer, TrainingFailed, refuse_what_still_drops, scheduled_model, try_forward

log = logging.getLogger("earlydrop")


def run(config: Config, in_sweep: bool = False) -> dict[str, Any]:
    """Do what a configuration says, and return the run's folder, state and last metrics.

    ``in_sweep``: another job with the same configuration may be at work and is waited for.

    Raises:
        ConfigError: A value that cannot be used; nothing was trained.
        TrainingFailed: The run stopped by itself; its status says why.
        Interrupted: The run was asked to stop; the same configuration goes on.
    """
    plan = make_plan(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.mode == "plan":
        print_plan(plan)
        return {"folder": str(plan.folder), "state": "planned"}
    if config.mode == "eval":
        return _evaluate_last(plan)
    model, scheduler = scheduled_model(plan)  # before the folder: a model that cannot be used leaves nothing behind
    try_forward(model, plan)
    refuse_what_still_drops(model, plan)
    folder = RunFolder(plan.folder, wait=in_sweep)
    try:
        if read_status(plan.folder).get("state") == "finished" and config.resume != "never":
            print(f"finished before: {plan.folder}")
            for name in changed_files(plan.folder):
                print(f"warning: {plan.folder / name} is not what the run wrote; resume=never trains it again", file=sys.stderr)
            return {"folder": str(plan.folder), "state": "skipped"} | _last_metrics(plan.folder)
        with _log_file(plan.folder / "log.txt"), _stop_on_signals() as stop:
            result = _train(plan, model, scheduler, folder, stop)
            if stop():  # asked in the last moments: the run is whole, what comes after it is not begun
                raise Interrupted
            return result
    finally:
        folder.close()


def _train(
    plan: Plan, model: nn.Module, scheduler: DropoutScheduler | None, folder: RunFolder, stop: Callable[[], bool]
) -> dict[str, Any]:
    config = plan.config
    if config.resume == "never":
        folder.start_over()
    write_provenance(plan, folder)
    name = plan.folder.name.removesuffix(f"-{plan.fingerprint}")
    tags = list(dict.fromkeys([*config.tags, config.model.name, config.data.name, config.schedule.name]))
    trainer: Trainer | None = None
    identity = run_id(config.study, plan.fingerprint)
    extra = {"fingerprint": plan.fingerprint, "arm": plan.name, "total_steps": plan.total_steps}
    try:
        with (
            tracking(config, folder=plan.folder, name=name, identity=identity, job_type="train", tags=tags, extra=extra) as (
                tracker,
                _,
            ),
            tqdm(total=plan.total_steps, desc=name, disable=None, unit="step", dynamic_ncols=True) as bar,
        ):

            def progress(step: int, metrics: dict[str, float]) -> None:
                rate = max(metrics["dropout/unit_rate"], metrics["dropout/path_rate"])
                bar.set_postfix(loss=f"{metrics['train/loss']:.4f}", rate=f"{rate:.4g}", refresh=False)
                bar.update(step - bar.n)

            trainer = Trainer(plan, model, scheduler, folder, tracker.log, stop, progress)
            trainer.resume()
            tracker.replay(read_metrics(plan.folder / "metrics.jsonl"))
            bar.update(trainer.step)
            folder.write_status("running", trainer.step, plan.total_steps)
            log.info("training %s to step %d on %s", name, plan.total_steps, trainer.environment)
            trainer.train()
            tracker.summarise({"state": "finished"})
    except Interrupted:
        step = trainer.step if trainer is not None else 0
        folder.write_status("interrupted", step, plan.total_steps)
        print(f"\nstopped after step {step} of {plan.total_steps}; the same command goes on from there: {plan.folder}")
        raise
    except (TrainingFailed, ConfigError, OSError) as error:
        _fail(folder, trainer, plan, f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error))
        raise TrainingFailed(f"{plan.folder}: {error}") from error
    except Exception as error:
        log.exception("the run failed")
        _fail(folder, trainer, plan, f"{type(error).__name__}: {error}")
        raise
    folder.write_status("finished", trainer.step, plan.total_steps)
    metrics = _last_metrics(plan.folder)
    log.info("finished: %s", metrics)
    print(_summary(plan, trainer.step, metrics))
    return {"folder": str(plan.folder), "state": "finished"} | metrics


def _fail(folder: RunFolder, trainer: Trainer | None, plan: Plan, reason: str) -> None:
    log.info("failed: %s", reason)
    try:
        folder.write_status("failed", trainer.step if trainer is not None else 0, plan.total_steps, reason)
    except OSError as error:  # the disk that failed the run may not take its status either
        log.info("status.json could not be written: %s", error)


def _last_metrics(folder: Path) -> dict[str, float]:
    last: dict[str, float] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        last |= line
    return last


def _summary(plan: Plan, step: int, metrics: dict[str, float]) -> str:
    values = "  ".join(f"{name} {metrics[name]:.4f}" for name, metric in METRICS.items() if metric.printed and name in metrics)
    steps = f"{step} steps" if step == plan.total_steps else f"stopped early after {step} of {plan.total_steps} steps"
    lines = [f"{plan.folder.name}: {steps}  {values}", str(plan.folder)]
    best = load_best(plan.folder / "checkpoints", plan.fingerprint)
    if best is not None:
        lines.insert(
            1,
            f"evaluated with the last weights; {best['metric']} was best, {best['value']:.4f}, after step {best['step']}: "
            "those weights are in checkpoints/best.pt",
        )
    return "\n".join(lines)


def _evaluate_last(plan: Plan) -> dict[str, Any]:
    """Evaluate the last weights, and those at which a watched metric was best; the last ones' metrics are returned."""
    content = load_checkpoint(plan.folder / "checkpoints", plan.fingerprint)
    if content is None:
        raise ConfigError(f"mode is 'eval': {plan.folder} has no checkpoint; train it first with mode=train")
    model, scheduler = scheduled_model(plan)
    best = load_best(plan.folder / "checkpoints", plan.fingerprint)
    print(plan.folder)
    metrics: dict[str, float] = {}
    for which, weights in (("best", best), ("last", content)):
        if weights is None:
            continue
        model.load_state_dict(weights["model"])
        if scheduler is not None:
            scheduler.load_state_dict(weights["scheduler"])  # what is not inverted dropout depends on the rate at test too
        metrics = evaluate_all(model, Objective(plan.source, plan.config.augment), plan)
        print(f"{which} weights, step {weights['step']}" + (f" ({weights['metric']} was best)" if which == "best" else ""))
        for name, value in metrics.items():
            print(f"  {name:<22} {value:.6f}")
    return {"folder": str(plan.folder), "state": "evaluated", "step": content["step"]} | metrics


class _LogFile(logging.FileHandler):
    """A log that says nothing of its own failure: the disk that it could not be written to fails the run, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.addHandler(console)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.removeHandler(console)
        log.setLevel(level)
        log.propagate = propagate
        handler.close()


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the run to stop after its present step; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
