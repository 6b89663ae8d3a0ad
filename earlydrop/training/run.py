"""The life of one run: skipped if it is finished, resumed if it is not, trained, evaluated or failed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earlydrop.metrics import METRICS
from earlydrop.training.checks import check
from earlydrop.training.config import Config
from earlydrop.training.data.files import counts_in_words
from earlydrop.training.data.objective import Objective
from earlydrop.training.describe import print_plan
from earlydrop.training.device import arithmetic, choose_device, device_problem
from earlydrop.training.distributed import Group, WorkerLostError, answered, check_parts, join, leave, world_size
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.evaluate import evaluate_all
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import in_words
from earlydrop.training.own_measures import needs_model
from earlydrop.training.peaks import Driver
from earlydrop.training.plan import Plan, make_plan
from earlydrop.training.prepare import (
    refuse_batch_norm,
    refuse_broken_compiler,
    refuse_what_still_drops,
    scheduled_model,
    task_of,
    try_forward,
)
from earlydrop.training.probes import dataset_images
from earlydrop.training.progress import progress_bar
from earlydrop.training.record.checkpoint import load_best, load_checkpoint
from earlydrop.training.record.folder import STATUS, RunFolder, changed_files, read_json, read_metrics, read_status
from earlydrop.training.record.foreign import foreign_weights
from earlydrop.training.record.provenance import write_provenance
from earlydrop.training.record.tracking import Tracker, run_id, tracking
from earlydrop.training.trainer import Trainer

log = logging.getLogger("earlydrop")


def _signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of some signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


_WARNINGS = _signals("SIGUSR1", "SIGUSR2")
_STOPS = (signal.SIGINT, signal.SIGTERM, *_WARNINGS, *_signals("SIGBREAK"))  # SIGBREAK: Ctrl-Break on Windows


Watch = Callable[[int, dict[str, float]], bool]
"""What is called with (step, metrics) for each line of ``metrics.jsonl``; True asks to stop after saving."""


def run(config: Config, in_sweep: bool = False, unused: Iterable[str] = (), watch: Watch | None = None) -> dict[str, Any]:
    """Do what a configuration says, and return the run's folder, state and last metrics.

    ``in_sweep``: another job with the same configuration may be at work and is waited for. ``unused``: overrides that do nothing, of which
    a run that can be done warns. ``watch``: is told of every metric.

    Raises:
        ConfigError: A value that cannot be used; nothing was trained.
        TrainingFailed: The run stopped by itself; its status says why.
        Interrupted: The run was asked to stop; the same configuration goes on.
    """
    check_parts(config.trainer.accumulate, config.trainer.batch_size, world_size())
    check(config)
    device = choose_device(config.device)
    if world_size() > 1 and device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device={config.device} is {device.type} here, on which {world_size()} workers cannot reduce their gradients: "
            "start one process, or set device=cpu"
        )
    if config.mode == "plan":
        plan = make_plan(config)
        if _begin(config, unused):
            with arithmetic(config.trainer, device):
                print_plan(plan)
        return {"folder": str(plan.folder), "state": "planned"}
    group, lost = join(config.distributed.timeout, device), True
    try:
        with answered(group):
            plan = make_plan(config, group.decide)
            _begin(config, unused)
            with arithmetic(config.trainer, device), closing(plan.source):
                done = _evaluate_last(plan, group) if config.mode == "eval" else _life(plan, group, in_sweep, watch)
        lost = False
        return done
    except WorkerLostError as error:
        raise TrainingFailed(str(error)) from error
    except RuntimeError as error:
        problem = device_problem(error, config)
        if problem is None:
            raise
        raise TrainingFailed(problem) from error
    finally:
        if group.size > 1:
            leave(lost)


def _begin(config: Config, unused: Iterable[str]) -> bool:
    """Set the number of threads, and warn of what does nothing. Whether this is the first worker, which speaks for all."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    first = int(os.environ.get("RANK", "0")) == 0
    for override in unused if first else ():
        print(f"warning: {override} is not used by this run", file=sys.stderr)
    return first


def _life(plan: Plan, group: Group, in_sweep: bool, watch: Watch | None) -> dict[str, Any]:
    """Skip a run that is finished, else train it. The first worker holds the folder."""
    config = plan.config
    check_shares(plan, group.size)
    check_measures(plan, group.size)
    check_same(plan, group)
    refuse_broken_compiler(plan)
    group.decide(lambda: check_same_code(plan))
    model, scheduler = scheduled_model(plan)  # before the folder: a model that cannot be used leaves nothing behind
    refuse_batch_norm(model, plan, group.size)
    try_forward(model, plan)
    refuse_what_still_drops(model, plan)
    folder: RunFolder | None = None

    def finished_before() -> bool:
        nonlocal folder
        folder = RunFolder(plan.folder, wait=in_sweep)
        return read_status(plan.folder).get("state") == "finished" and config.resume != "never"

    try:
        if group.decide(finished_before):
            return _skipped(plan) if group.main else {"folder": str(plan.folder), "state": "skipped"}
        if group.main and config.model.pretrained is not None:
            for line in in_words(config.model, task_of(plan))["begins with"]:
                print(f"begins with {line}")
        with _log_file(plan.folder / "log.txt" if group.main else None), _stop_on_signals() as stop:
            result = _train(plan, model, scheduler, folder, stop, group, watch)
            if stop():  # asked in the last moments: the run is whole, what comes after it is not begun
                raise Interrupted
            return result
    finally:
        if folder is not None:
            folder.close()


def check_shares(plan: Plan, workers: int) -> None:
    """Refuse a probe of which a worker would have no share.

    Raises:
        ConfigError: Saying how many batches there are.
    """
    batches = -(-dataset_images(plan) // plan.config.trainer.batch_size)
    if plan.probe_steps and min(plan.config.probe.batches, batches) < workers:
        raise ConfigError(
            f"probe.batches is {plan.config.probe.batches}, and {batches} batches give the whole-dataset gradient: {workers} workers need "
            f"{workers} of each; raise probe.batches or probe.dataset_limit, or set probe=none"
        )


def check_measures(plan: Plan, workers: int) -> None:
    """Refuse a measure that looks at the model where several workers share its gradients.

    Raises:
        ConfigError: There is one.
    """
    key = next((key for key, code in plan.code.items() if key.startswith("probe.measures") and needs_model(code)), None)
    if workers > 1 and key is not None:
        raise ConfigError(
            f"probe.measures has {plan.code[key].name!r}: it looks at the model and at batches, which {workers} workers share; "
            "train in one process, or give a measure of the moments"
        )


def check_same_code(plan: Plan) -> None:
    """Refuse to begin anew, without being told, a run that was stopped before somebody's code was changed.

    Raises:
        ConfigError: There is such a run; it says how to go on.
    """
    if not plan.code or plan.config.resume == "never" or (plan.folder / STATUS).is_file():
        return
    for other in sorted(plan.folder.parent.glob(f"*/{STATUS}")):
        provenance = read_json(other.parent / "provenance.json")
        stopped = read_status(other.parent)
        if provenance.get("configuration") != plan.configuration or stopped.get("state") not in ("interrupted", "running"):
            continue
        there = provenance.get("code", {})
        changed = [code.name for key, code in plan.code.items() if there.get(key, {}).get("digest") != code.digest]
        raise ConfigError(
            f"{', '.join(changed)} changed since {other.parent} was stopped at step {stopped.get('step', 0)}: put the code back to go on "
            "there, or train the changed code from the start with resume=never"
        )


def check_same(plan: Plan, group: Group) -> None:
    """Refuse workers that do not all see the same run, such as nodes whose copies of the data differ.

    Raises:
        ConfigError: On every worker.
    """
    theirs = group.decide(lambda: plan.fingerprint)
    (differs,) = group.largest([float(theirs != plan.fingerprint)])
    if differs:
        raise ConfigError(
            f"worker {group.rank} of {group.size} has the fingerprint {plan.fingerprint} and the first one {theirs}: not all of them "
            "have the same configuration and data; give every node the same"
        )


def _skipped(plan: Plan) -> dict[str, Any]:
    print(f"finished before: {plan.folder}")
    for name in changed_files(plan.folder):
        print(
            f"warning: {plan.folder / name} is not what the run wrote, by the digest in its {STATUS}; resume=never trains it again",
            file=sys.stderr,
        )
    return {"folder": str(plan.folder), "state": "skipped"} | _last_metrics(plan.folder)


def _train(
    plan: Plan,
    model: nn.Module,
    scheduler: Driver | None,
    folder: RunFolder | None,
    stop: Callable[[], bool],
    group: Group,
    watch: Watch | None,
) -> dict[str, Any]:
    config = plan.config
    asked: list[int] = []  # the steps at which the watcher asked to stop
    name = plan.folder.name.removesuffix(f"-{plan.fingerprint}")
    trainer: Trainer | None = None

    def begin() -> None:
        if folder is not None:
            if config.resume == "never":
                folder.start_over()
            write_provenance(plan, folder, group.size)

    try:
        group.decide(begin)
        with (
            _tracked(plan, name, folder) as tracker,
            progress_bar(plan.total_steps, name, shown=group.main) as bar,
        ):

            def track(step: int, metrics: dict[str, float]) -> None:
                tracker.log(step, metrics)
                if watch is not None and watch(step, dict(metrics)):
                    asked.append(step)

            def progress(step: int, metrics: dict[str, float]) -> None:
                rate = max(metrics["dropout/unit_rate"], metrics["dropout/path_rate"])
                bar.set_postfix(loss=f"{metrics['train/loss']:.4f}", rate=f"{rate:.4g}", refresh=False)
                bar.update(step - bar.n)

            trainer = Trainer(plan, model, scheduler, folder, track, lambda: bool(asked) or stop(), progress, group)
            trainer.resume()
            bar.update(trainer.step)
            if folder is not None:
                tracker.replay(read_metrics(plan.folder / "metrics.jsonl"))
                folder.write_status("running", trainer.step, plan.total_steps)
            if plan.source.left_out:
                log.warning("left out of the data: %s", counts_in_words(plan.source.left_out))
            log.info("training %s to step %d on %s", name, plan.total_steps, trainer.environment)
            with answered(group):
                trainer.train()
            tracker.summarise({"state": "finished"})
    except Interrupted:
        _interrupted(plan, folder, trainer)
        raise
    except (TrainingFailed, ConfigError, WorkerLostError, OSError) as error:
        _fail(folder, trainer, plan, f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error))
        raise TrainingFailed(f"{plan.folder}: {error}") from error
    except Exception as error:
        problem = device_problem(error, config)
        if problem is not None:
            _fail(folder, trainer, plan, problem)
            raise TrainingFailed(f"{plan.folder}: {problem}") from error
        log.exception("the run failed")
        _fail(folder, trainer, plan, f"{type(error).__name__}: {error}")
        raise
    if folder is None:
        return {"folder": str(plan.folder), "state": "finished"}
    folder.write_status("finished", trainer.step, plan.total_steps)
    metrics = _last_metrics(plan.folder)
    log.info("finished: %s", metrics)
    print(_summary(plan, trainer.step, metrics))
    return {"folder": str(plan.folder), "state": "finished"} | metrics


@contextmanager
def _tracked(plan: Plan, name: str, folder: RunFolder | None) -> Iterator[Tracker]:
    """The run on the dashboard; on other workers than the first, nothing."""
    if folder is None:
        yield Tracker(None)
        return
    config = plan.config
    tags = list(dict.fromkeys([*config.tags, config.model.name, config.data.name, config.schedule.name]))
    identity = run_id(config.study, plan.fingerprint)
    extra = {"fingerprint": plan.fingerprint, "arm": plan.name, "total_steps": plan.total_steps}
    with tracking(config, folder=plan.folder, name=name, identity=identity, job_type="train", tags=tags, extra=extra) as (
        tracker,
        _,
    ):
        yield tracker


def _interrupted(plan: Plan, folder: RunFolder | None, trainer: Trainer | None) -> None:
    if folder is None:
        return
    step = trainer.step if trainer is not None else 0
    folder.write_status("interrupted", step, plan.total_steps)
    print(f"\nstopped after step {step} of {plan.total_steps}; the same command goes on from there: {plan.folder}")


def _fail(folder: RunFolder | None, trainer: Trainer | None, plan: Plan, reason: str) -> None:
    log.info("failed: %s", reason)
    if folder is None:
        return
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


def _evaluate_last(plan: Plan, group: Group) -> dict[str, Any]:
    """Evaluate weights: those that ``checkpoint`` names, else the run's last ones and those at which a watched metric was best.

    The metrics of the last ones are returned.
    """
    model, scheduler = scheduled_model(plan)
    objective = Objective(plan.source, plan.config.augment)
    metrics: dict[str, float] = {}
    for words, weights in _weights(plan, model):
        model.load_state_dict(weights["model"])
        if scheduler is not None and weights.get("scheduler"):
            try:
                scheduler.load_state_dict(weights["scheduler"])  # what is not inverted dropout depends on the rate at test too
            except ValueError as error:
                raise ConfigError(f"{words.splitlines()[0]}: {error}; give the schedule of the run that they are from") from error
        metrics = evaluate_all(model, objective, plan, group=group)
        if group.main:
            print(words)
            for name, value in metrics.items():
                print(f"  {name:<22} {value:.6f}")
    return {"folder": str(plan.folder), "state": "evaluated"} | metrics


def _weights(plan: Plan, model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """The weights that ``mode=eval`` evaluates, in words and as a checkpoint has them; the last ones last."""
    if plan.config.checkpoint is not None:
        return foreign_weights(plan.config.checkpoint, plan.config.model.name, model)
    folder = plan.folder / "checkpoints"
    content, best = load_checkpoint(folder, plan.fingerprint), load_best(folder, plan.fingerprint)
    if content is None:
        raise ConfigError(
            f"mode is 'eval': {plan.folder} has no checkpoint; train it first with mode=train, or name one with checkpoint="
        )
    found = [(f"{plan.folder}\nlast weights, step {content['step']}", content)]
    if "model_ema" in content:
        averaged = content | {"model": content["model_ema"]}
        found.insert(0, (f"{plan.folder}\naveraged weights, step {content['step']}", averaged))
    if best is not None:
        found.insert(0, (f"{plan.folder}\nbest weights, step {best['step']} ({best['metric']} was best)", best))
    return found


class _LogFile(logging.FileHandler):
    """A log that says nothing of its own failure: the disk that it could not be written to fails the run, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def _log_file(path: Path | None) -> Iterator[None]:
    """What is logged goes to a file, if one is given, and what warns to the console too."""
    handler = _LogFile(path, encoding="utf-8") if path is not None else logging.NullHandler()
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
    """Ctrl-C, SIGTERM and SLURM's warnings ask the run to stop after its present step; a second Ctrl-C stops at once.

    Who listened for a warning before, such as submitit to queue the job again, hears it once the run has saved.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(asked)
        return

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    previous = {number: signal.signal(number, ask) for number in _STOPS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for warning in _WARNINGS:
            if warning in asked and callable(previous[warning]):
                os.kill(os.getpid(), warning)
