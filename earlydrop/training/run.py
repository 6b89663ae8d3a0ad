"""Run one configuration: skip it if finished, resume it if stopped, train, evaluate or plan it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earlydrop.metrics import METRICS, extra_metric
from earlydrop.training import refuse
from earlydrop.training.checks import check
from earlydrop.training.config import Config
from earlydrop.training.data.files import counts_in_words
from earlydrop.training.describe import print_plan
from earlydrop.training.device import arithmetic, choose_device, device_problem
from earlydrop.training.distributed import (
    Group,
    WorkerLostError,
    answered,
    check_parts,
    join,
    leave,
    world_size,
)
from earlydrop.training.endings import Interrupted, TrainingFailed
from earlydrop.training.evaluate_weights import evaluate_weights
from earlydrop.training.fields import ConfigError
from earlydrop.training.listening import stop_on_signals
from earlydrop.training.models import in_words
from earlydrop.training.peaks import Driver
from earlydrop.training.plan import Plan, make_plan
from earlydrop.training.prepare import checked_model, task_of
from earlydrop.training.progress import progress_bar
from earlydrop.training.record.checkpoint import load_best
from earlydrop.training.record.folder import (
    STATUS,
    TIMING,
    RunFolder,
    changed_files,
    read_metrics,
    read_status,
    read_timing,
)
from earlydrop.training.record.log import log_to
from earlydrop.training.record.provenance import write_provenance
from earlydrop.training.record.trackers import Opened
from earlydrop.training.record.tracking import Tracker, run_id, tracking
from earlydrop.training.trainer import Trainer

log = logging.getLogger("earlydrop")

Watch = Callable[[int, dict[str, float]], bool]
"""Called with (step, metrics) for a line of ``metrics.jsonl``; if it is True, save and stop."""


def run(
    config: Config,
    in_sweep: bool = False,
    unused: Iterable[str] = (),
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train, evaluate or plan a run, as its configuration says.

    Args:
        config: The configuration.
        in_sweep: Whether the run is a job of a sweep. Such a run waits for another job that works
            in the same folder.
        unused: Overrides that this run does not use; each is printed as a warning.
        watch: Called for every line of ``metrics.jsonl``, on the first worker; see `Watch`.

    Returns:
        The run's folder and state. The first worker also returns the last metrics, except with
        ``mode=plan``.

    Raises:
        ConfigError: A value cannot be used. Nothing was trained.
        TrainingFailed: The run failed. If training had begun, its status says why.
        Interrupted: The run was asked to stop. Running the same configuration again resumes it, or
            skips it if its last step was done.
    """
    check_parts(config.trainer.accumulate, config.trainer.batch_size, world_size())
    check(config)
    device = choose_device(config.device)
    if world_size() > 1 and device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device={config.device} is {device.type} here, on which {world_size()} workers cannot "
            "reduce their gradients: start one process, or set device=cpu"
        )
    if config.mode == "plan":
        return _plan_only(config, device, unused)
    try:
        with _workers(config, device) as group:
            plan = make_plan(config, group.decide)
            _begin(config, unused)
            with arithmetic(config.trainer, device), closing(plan.source):
                if config.mode == "eval":
                    return evaluate_weights(plan, group)
                return _train_or_skip(plan, group, in_sweep, watch)
    except WorkerLostError as error:
        raise TrainingFailed(str(error)) from error
    except RuntimeError as error:
        problem = device_problem(error, config)
        if problem is None:
            raise
        raise TrainingFailed(problem) from error


@contextmanager
def _workers(config: Config, device: torch.device) -> Iterator[Group]:
    """Join the workers of the run, and leave them at its end."""
    group = join(config.distributed.timeout, device)
    failed = True
    try:
        with answered(group):
            yield group
        failed = False
    finally:
        if group.size > 1:
            leave(failed)


def _plan_only(config: Config, device: torch.device, unused: Iterable[str]) -> dict[str, Any]:
    """Print the plan, on the first worker only."""
    plan = make_plan(config)
    if _begin(config, unused):
        with arithmetic(config.trainer, device):
            print_plan(plan)
    return {"folder": str(plan.folder), "state": "planned"}


def _begin(config: Config, unused: Iterable[str]) -> bool:
    """Set the number of threads, and warn of unused overrides.

    Returns:
        Whether this is the first worker, which prints for all.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        for override in unused:
            print(f"warning: {override} is not used by this run", file=sys.stderr)
    return first


def _train_or_skip(plan: Plan, group: Group, in_sweep: bool, watch: Watch | None) -> dict[str, Any]:
    """Skip a finished run, and train any other. The first worker holds the folder."""
    config = plan.config
    refuse.check_same_fingerprint(plan, group)
    group.decide(lambda: refuse.check_same_code(plan))
    model, scheduler = checked_model(plan, group.size)  # a refused model leaves no folder behind
    folder: RunFolder | None = None

    def open_folder() -> bool:
        """Open the folder on the first worker, and return whether to skip the run."""
        nonlocal folder
        folder = RunFolder(plan.folder, wait=in_sweep)
        return read_status(plan.folder).get("state") == "finished" and config.resume != "never"

    try:
        if group.decide(open_folder):
            if group.main:
                return _skipped(plan)
            return {"folder": str(plan.folder), "state": "skipped"}
        if group.main and config.model.pretrained is not None:
            for line in in_words(config.model, task_of(plan))["begins with"]:
                print(f"begins with {line}")
        with (
            log_to(plan.folder / "log.txt" if group.main else None),
            stop_on_signals() as stop,
        ):
            result = _train(
                plan, model, scheduler, folder=folder, stop=stop, group=group, watch=watch
            )
            # A stop after the last step: this run is complete, but a sweep must not go on.
            if stop():
                raise Interrupted
            return result
    finally:
        if folder is not None:
            folder.close()


def _skipped(plan: Plan) -> dict[str, Any]:
    print(f"finished before: {plan.folder}")
    for name in changed_files(plan.folder):
        print(
            f"warning: {plan.folder / name} changed since the run wrote it: its digest differs "
            f"from that in {STATUS}. resume=never trains the run again",
            file=sys.stderr,
        )
    metrics = _last_metrics(plan.folder)
    new = [name for name in plan.config.data.extra if f"{name}/accuracy" not in metrics]
    if new:
        print(
            f"warning: data.extra.{new[0]} was not measured, since the run had finished before: "
            "run the same command with mode=eval to measure it",
            file=sys.stderr,
        )
    return {"folder": str(plan.folder), "state": "skipped"} | metrics


def _train(
    plan: Plan,
    model: nn.Module,
    scheduler: Driver | None,
    *,
    folder: RunFolder | None,
    stop: Callable[[], bool],
    group: Group,
    watch: Watch | None,
) -> dict[str, Any]:
    """Train to the end, and write the run's status as it goes."""
    name = plan.folder.name.removesuffix(f"-{plan.fingerprint}")
    status = _Status(plan, folder)
    with status.recorded():
        group.decide(lambda: _prepare_folder(plan, folder, group.size))
        with (
            _tracked(plan, name, folder) as tracker,
            progress_bar(plan.total_steps, name, visible=group.main) as bar,
        ):
            listeners = _Listeners(tracker, bar, watch)
            trainer = Trainer(
                plan,
                model,
                scheduler,
                folder=folder,
                track=listeners.track,
                stop=lambda: listeners.asked_to_stop or stop(),
                progress=listeners.progress,
                group=group,
            )
            status.trainer = trainer
            trainer.resume()
            bar.update(trainer.step)
            if folder is not None:
                tracker.replay(
                    read_metrics(plan.folder / "metrics.jsonl"),
                    read_timing(plan.folder / TIMING),
                )
                status.write("running")
            if plan.source.left_out:
                log.warning("left out of the data: %s", counts_in_words(plan.source.left_out))
            log.info("training %s to step %d on %s", name, plan.total_steps, trainer.environment)
            with answered(group):  # here too, so that the status records a lost worker
                trainer.train()
            tracker.summarise({"state": "finished"})
    if folder is None:
        return {"folder": str(plan.folder), "state": "finished"}
    status.write("finished")
    metrics = _last_metrics(plan.folder)
    log.info("finished: %s", metrics)
    print(_summary(plan, trainer.step, metrics))
    return {"folder": str(plan.folder), "state": "finished"} | metrics


def _prepare_folder(plan: Plan, folder: RunFolder | None, workers: int) -> None:
    if folder is None:
        return
    if plan.config.resume == "never":
        folder.start_over()
    write_provenance(plan, folder, workers)


class _Listeners:
    """Hands metrics on to the dashboard, the progress bar and the caller's function."""

    def __init__(self, tracker: Tracker, bar: Any, watch: Watch | None) -> None:
        self.tracker, self.bar, self.watch = tracker, bar, watch
        self.asked_to_stop = False

    def track(self, step: int, metrics: dict[str, float]) -> None:
        """Take a line of ``metrics.jsonl``."""
        self.tracker.log(step, metrics)
        if self.watch is not None and self.watch(step, dict(metrics)):
            self.asked_to_stop = True

    def progress(self, metrics: dict[str, float], timing: dict[str, float]) -> None:
        """Take the metrics and the line of timing of a logged step."""
        self.tracker.add_timing(timing)
        loss = metrics["train/loss"]
        rate = max(metrics["dropout/unit_rate"], metrics["dropout/path_rate"])
        self.bar.set_postfix(loss=f"{loss:.4f}", rate=f"{rate:.4g}", refresh=False)
        self.bar.update(int(timing["step"]) - self.bar.n)


class _Status:
    """Writes the state of a run to ``status.json``, on the first worker only."""

    def __init__(self, plan: Plan, folder: RunFolder | None) -> None:
        self.plan, self.folder = plan, folder
        self.trainer: Trainer | None = None
        self.running = False

    @property
    def step(self) -> int:
        """The step reached."""
        if self.running and self.trainer is not None:
            return self.trainer.step
        return int(read_status(self.plan.folder).get("step", 0))

    def write(self, state: str, reason: str | None = None) -> None:
        """Write a state at the step reached.

        If the run ends before the state ``running``, the status of an earlier start is kept.
        """
        self.running = self.running or state == "running"
        if self.folder is None or (not self.running and read_status(self.plan.folder)):
            return
        self.folder.write_status(state, self.step, self.plan.total_steps, reason)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Context in which an exception that ends the run is also written to its status.

        Raises:
            ConfigError: The run cannot be resumed with this configuration.
            TrainingFailed: The run failed by an error that the user can correct.
        """
        plan = self.plan
        try:
            yield
        except Interrupted:
            self._interrupted()
            raise
        except ConfigError as error:
            self._failed(str(error))
            if self.running:
                raise TrainingFailed(f"{plan.folder}: {error}") from error
            raise
        except (TrainingFailed, WorkerLostError, OSError) as error:
            is_os_error = isinstance(error, OSError)
            self._failed(f"{type(error).__name__}: {error}" if is_os_error else str(error))
            raise TrainingFailed(f"{plan.folder}: {error}") from error
        except Exception as error:
            problem = device_problem(error, plan.config)
            if problem is not None:
                self._failed(problem)
                raise TrainingFailed(f"{plan.folder}: {problem}") from error
            log.exception("the run failed")
            self._failed(f"{type(error).__name__}: {error}")
            raise

    def _interrupted(self) -> None:
        if self.folder is None:
            return
        self.write("interrupted")
        print(
            f"\nstopped after step {self.step} of {self.plan.total_steps}; run the same command "
            f"to resume: {self.plan.folder}"
        )

    def _failed(self, reason: str) -> None:
        log.info("failed: %s", reason)
        try:
            self.write("failed", reason)
        except OSError as error:  # such as a full disk, if that ended the run
            log.info("status.json could not be written: %s", error)


@contextmanager
def _tracked(plan: Plan, name: str, folder: RunFolder | None) -> Iterator[Tracker]:
    """Open the run on the dashboard. Workers after the first get a tracker that does nothing."""
    if folder is None:
        yield Tracker(None)
        return
    config = plan.config
    names = (config.model.name, config.data.name, config.schedule.name)
    opened = Opened(
        config=config,
        folder=plan.folder,
        name=name,
        identity=run_id(config.study, plan.fingerprint),
        job_type="train",
        tags=list(dict.fromkeys([*config.tags, *names])),
        extra={"fingerprint": plan.fingerprint, "arm": plan.name, "total_steps": plan.total_steps},
    )
    with tracking(opened) as (tracker, _):
        yield tracker


def _last_metrics(folder: Path) -> dict[str, float]:
    """The last value of every metric of a run."""
    last: dict[str, float] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        last |= line
    return last


def _summary(plan: Plan, step: int, metrics: dict[str, float]) -> str:
    """The lines that a finished run prints."""
    values = []
    for name, metric in METRICS.items():
        if metric.printed and name in metrics:
            values.append(f"{name} {metrics[name]:.4f}")
    for name, value in metrics.items():
        extra = extra_metric(name)
        if extra is not None and extra.printed:
            values.append(f"{name} {value:.4f}")
    steps = f"{step} steps"
    if step != plan.total_steps:
        steps = f"stopped early after {step} of {plan.total_steps} steps"
    lines = [f"{plan.folder.name}: {steps}  {'  '.join(values)}"]
    best = load_best(plan.folder / "checkpoints", plan.fingerprint)
    if best is not None:
        lines.append(
            f"the metrics are those of the last weights; {best['metric']} was best after step "
            f"{best['step']} ({best['value']:.4f}); the weights of that step are in "
            "checkpoints/best.pt"
        )
    return "\n".join([*lines, str(plan.folder)])
