"""One run from its configuration to its result: skipped if it is finished, resumed if it is not."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from earlydrop.scheduler import DropoutScheduler
from earlydrop.sites import find_sites
from earlydrop.training.checkpoint import load_checkpoint
from earlydrop.training.config import Config, ConfigError
from earlydrop.training.data import Objective
from earlydrop.training.files import RunFolder, read_json, read_metrics
from earlydrop.training.measure import evaluate_all
from earlydrop.training.plan import Plan, make_plan
from earlydrop.training.tracking import run_id, tracking
from earlydrop.training.trainer import Interrupted, Trainer, TrainingFailed, scheduled_model, write_provenance

log = logging.getLogger("earlydrop")


def run(config: Config, in_sweep: bool = False) -> dict[str, Any]:
    """Do what a configuration says.

    Args:
        config: A whole configuration.
        in_sweep: Whether another job with the same configuration may be at work and is to be waited for.

    Returns:
        The run's folder, status and last metrics.

    Raises:
        ConfigError: A value that cannot be used; nothing was trained.
        TrainingFailed: The run stopped by itself; its status says why.
        Interrupted: The run was asked to stop; the same configuration goes on.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    plan = make_plan(config)
    if config.mode == "plan":
        print_plan(plan)
        return {"folder": str(plan.folder), "state": "planned"}
    if config.mode == "eval":
        return _evaluate_last(plan)
    model, scheduler = scheduled_model(plan)  # before the folder: a model that cannot be built leaves nothing behind
    folder = RunFolder(plan.folder, wait=in_sweep)
    try:
        if read_json(plan.folder / "status.json").get("state") == "finished" and config.resume != "never":
            print(f"finished before: {plan.folder}")
            return {"folder": str(plan.folder), "state": "skipped"} | _last_metrics(plan.folder)
        with _log_file(plan.folder / "log.txt"), _stop_on_signals() as stop:
            return _train(plan, model, scheduler, folder, stop)
    finally:
        folder.close()


def _train(
    plan: Plan, model: nn.Module, scheduler: DropoutScheduler | None, folder: RunFolder, stop: Callable[[], bool]
) -> dict[str, Any]:
    config = plan.config
    if config.resume == "never":
        for name in ("config.yaml", "provenance.json", "timing.jsonl"):
            (plan.folder / name).unlink(missing_ok=True)
    write_provenance(plan, folder)
    name = plan.folder.name.removesuffix(f"-{plan.fingerprint}")
    tags = list(dict.fromkeys([*config.tags, config.model.name, config.data.name, config.schedule.name]))
    trainer: Trainer | None = None
    identity = run_id(config.study, plan.fingerprint)
    extra = {"fingerprint": plan.fingerprint, "arm": plan.arm, "total_steps": plan.total_steps}
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
            for line in read_metrics(plan.folder / "metrics.jsonl"):
                tracker.remember({key: value for key, value in line.items() if key != "step"})
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
        log.error("status.json could not be written: %s", error)


def _last_metrics(folder: Path) -> dict[str, float]:
    last: dict[str, float] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        last |= line
    return last


def _summary(plan: Plan, step: int, metrics: dict[str, float]) -> str:
    shown = ("train_eval/loss", "train_clean/loss", "test/loss", "test/accuracy")
    values = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name in metrics)
    steps = f"{step} steps" if step == plan.total_steps else f"stopped early after {step} of {plan.total_steps} steps"
    return f"{plan.folder.name}: {steps}  {values}\n{plan.folder}"


def _evaluate_last(plan: Plan) -> dict[str, Any]:
    content = load_checkpoint(plan.folder / "checkpoints", plan.fingerprint)
    if content is None:
        raise ConfigError(f"mode is 'eval': {plan.folder} has no checkpoint; train it first with mode=train")
    model, scheduler = scheduled_model(plan)
    model.load_state_dict(content["model"])
    if scheduler is not None:
        scheduler.load_state_dict(content["scheduler"])  # what is not inverted dropout depends on the rate at test too
    metrics = evaluate_all(model, Objective(plan.source, plan.config.augment), plan)
    print(f"{plan.folder} at step {content['step']}")
    for name, value in metrics.items():
        print(f"  {name:<22} {value:.6f}")
    return {"folder": str(plan.folder), "state": "evaluated", "step": content["step"]} | metrics


def print_plan(plan: Plan) -> None:
    """Print sites, resolved steps, rates, fingerprint and estimated cost, training nothing.

    Args:
        plan: The plan.
    """
    from earlydrop.training.cost import estimate_seconds

    model, scheduler = scheduled_model(plan)
    parameters = sum(p.numel() for p in model.parameters())
    source, total = plan.source, plan.total_steps
    print(f"folder       {plan.folder}")
    print(f"fingerprint  {plan.fingerprint}")
    print(f"model        {plan.config.model.name}, {parameters:,} parameters, on {plan.device}")
    print(f"data         {plan.config.data.name}: {source.sizes['train']:,} training and {source.sizes['test']:,} test images")
    print(f"length       {total} steps ({plan.steps_per_epoch} an epoch), warm-up {plan.warmup_steps} steps")
    print(f"schedule     {plan.schedule!r}, kind {plan.config.schedule.kind}")
    shown = sorted({0, *(total * i // 10 for i in range(10)), total - 1})
    print("rates        " + ", ".join(f"{step}: {plan.schedule(step):.4g}" for step in shown))
    print(f"evaluated    after steps {', '.join(map(str, plan.eval_steps))}")
    print(f"probed       after steps {', '.join(map(str, plan.probe_steps)) or '(never)'}")
    driven = [site for site in find_sites(model) if site.driven]
    print(f"sites        {len(driven)} driven" + (f" of {len(find_sites(model))}" if scheduler else " (the schedule never drops)"))
    for site in driven:
        print(f"  {site.name:<40} {site.kind:<5} {site.base_rate:.4g} at the peak")
    parts = estimate_seconds(plan)
    text = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
    print(f"estimated    {sum(parts.values()):.0f} s here ({text})")


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
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


def config_from_dict(values: dict[str, Any]) -> Config:
    """A configuration from nested plain values, such as a run's ``config.yaml``.

    Args:
        values: Values by key; missing keys take their defaults.

    Returns:
        The configuration.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), values)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    if not isinstance(config, Config):
        raise ConfigError("the configuration is not a mapping of the schema's keys")
    return dataclasses.replace(config)
