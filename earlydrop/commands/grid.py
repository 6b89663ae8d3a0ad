"""``mode=plan`` of a sweep: what varies, the arms, and the total of runs, time and disk.

No job starts, and nothing is written.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlydrop.training.names import first_line, format_duration

if TYPE_CHECKING:
    from earlydrop.training.cost import Cost
    from earlydrop.training.plan import Plan

_MOST_ARMS = 20
_MOST_VALUES = 12
_OF_A_RUN = ("seed", "study", "label", "tags")  # runs that differ in these keys alone cost the same


def plan_grid(config: Any) -> int:
    """Plan every job of a sweep, and print the plans as one.

    Args:
        config: The sweep's configuration, with Hydra's own.

    Returns:
        The exit code: 1 if a job would be refused.
    """
    from earlydrop.training.fields import ConfigError
    from earlydrop.training.plan import make_plan

    try:
        jobs = _jobs(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    plans: list[Plan] = []
    costs: dict[str, Cost] = {}
    refused: dict[str, list[str]] = {}
    values = []
    for overrides in jobs:
        try:
            flat_values, settings = _composed(overrides, joblib=_is_joblib(config))
            plan = make_plan(settings)
            key = _key(plan, flat_values)
            if key not in costs:
                costs[key] = _estimated(plan)
        except (ConfigError, OSError) as error:
            refused.setdefault(str(error), []).append(" ".join(overrides))
            continue
        plans.append(plan)
        values.append(flat_values)
    if plans:
        _print(plans, values, costs, _at_once(config))
    for reason, lines in refused.items():
        count = f"{len(lines)} of {len(jobs)} jobs would be refused, such as {lines[0]}"
        print(f"error: {count}: {reason}", file=sys.stderr)
    return int(bool(refused))


def jobs_of(config: Any) -> list[list[str]]:
    """The overrides of each job, as Hydra's basic sweeper makes them.

    Raises:
        HydraException: An override cannot be read.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = [f"{key}={value}" for key, value in dict(config.hydra.sweeper.params or {}).items()]
    loader = GlobalHydra.instance().config_loader()  # for glob(...)
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    return [list(job) for job in jobs]


def _jobs(config: Any) -> list[list[str]]:
    """The overrides of each job.

    Raises:
        ConfigError: An override cannot be read, or the sweeper chooses the jobs one by one.
    """
    from hydra.errors import HydraException

    from earlydrop.training.fields import ConfigError

    target = str(config.hydra.sweeper.get("_target_", ""))
    if not target.endswith("BasicSweeper"):
        sweeper = target.rpartition(".")[2]
        instead = "plan one of them, without -m"
        chooses = f"{sweeper} chooses each job from the results of earlier ones"
        raise ConfigError(f"mode is 'plan': {chooses}; {instead}")
    try:
        return jobs_of(config)
    except HydraException as error:
        raise ConfigError(f"mode is 'plan': {first_line(error)}") from error


def _composed(overrides: list[str], joblib: bool) -> tuple[dict[str, Any], Any]:
    """A job's configuration, by dotted key and as the schema has it."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from earlydrop.analysis.arms import flat
    from earlydrop.training.fields import ConfigError
    from earlydrop.training.overrides import refuse_unknown_keys

    try:
        composed = hydra.compose("config", overrides)
        settings: Any = OmegaConf.to_object(composed)
        values: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error
    refuse_unknown_keys(flat(values))
    if settings.threads is None and joblib:
        settings.threads = 1
    return flat(values), settings


def _is_joblib(config: Any) -> bool:
    """Whether the launcher of a sweep is joblib's, whose jobs have one thread each."""
    return "joblib" in str(config.hydra.launcher.get("_target_", "")).lower()


def _at_once(config: Any) -> int:
    """How many jobs run side by side on this machine."""
    if not _is_joblib(config):
        return 1
    jobs = int(config.hydra.launcher.get("n_jobs", -1))
    return jobs if jobs > 0 else max((os.cpu_count() or 1) + 1 + jobs, 1)


def _like(values: Mapping[str, Any]) -> str:
    """The values that runs of equal speed share: all but the schedule and `_OF_A_RUN`."""
    kept = {}
    for key, value in values.items():
        if key not in _OF_A_RUN and not key.startswith("schedule."):
            kept[key] = value
    return json.dumps(kept, sort_keys=True, default=str)


def _key(plan: Plan, values: Mapping[str, Any]) -> str:
    """A text that is equal for runs of equal cost: whether they drop, their kind, and `_like`."""
    return f"{plan.schedule.peak > 0} {plan.config.schedule.kind} {_like(values)}"


def _estimated(plan: Plan) -> Cost:
    """Time a few steps of a run; raise if its model cannot run a forward."""
    import torch

    from earlydrop.training.cost import estimate, workers_of
    from earlydrop.training.prepare import checked_model

    if plan.config.threads is not None:
        torch.set_num_threads(plan.config.threads)
    checked_model(plan, workers_of(plan))
    return estimate(plan)


def _print(
    plans: list[Plan],
    values: list[dict[str, Any]],
    costs: Mapping[str, Cost],
    at_once: int,
) -> None:
    """Print the plans of all jobs as one.

    Args:
        plans: One plan per job.
        values: The values of each job by dotted key.
        costs: The cost of a run, by `_key`.
        at_once: How many jobs run side by side.
    """
    distinct = {plan.folder: (plan, job) for plan, job in zip(plans, values, strict=True)}
    lengths = sorted({plan.total_steps for plan in plans})
    folders = sorted({str(plan.folder.parent) for plan in plans})
    models = _once(plan.config.model.name for plan in plans)
    _print_line("runs", f"{len(distinct)} in {_listed(folders)}")
    _print_line("of", f"{_listed(models)}, on {plans[0].device}")
    _print_line("on", _listed(_once(_data(plan) for plan in plans)))
    _print_line("length", f"{_listed([str(length) for length in lengths])} steps")
    for i, (key, different) in enumerate(_varying(values).items()):
        _print_line("" if i else "varies", f"{key}: {_listed(different)}")
    arms = Counter(plan.name for plan, _ in distinct.values())
    for i, (name, count) in enumerate(list(arms.items())[:_MOST_ARMS]):
        _print_line("" if i else "arms", f"{name}: {_runs(count)}")
    if len(arms) > _MOST_ARMS:
        _print_line("", f"and {len(arms) - _MOST_ARMS} more")
    _print_total(list(distinct.values()), costs, at_once)


def _print_total(
    jobs: list[tuple[Plan, dict[str, Any]]],
    costs: Mapping[str, Cost],
    at_once: int,
) -> None:
    """Print the time, GPU hours and disk of the runs that are not finished."""
    from earlydrop.training.cost import estimate, unit_of, workers_of
    from earlydrop.training.describe import existing, in_bytes

    left = [(plan, job) for plan, job in jobs if not _finished(plan)]
    seconds, hours, disk = 0.0, 0.0, 0
    for plan, job in left:
        cost = estimate(plan, costs[_key(plan, job)])
        seconds += cost.total
        hours += cost.total * workers_of(plan) / 3600
        keeps_best = plan.config.trainer.stop_metric is not None
        disk += cost.checkpoint * (2 + keeps_best)
    first = jobs[0][0]
    free = shutil.disk_usage(existing(Path(first.config.out).expanduser())).free
    finished = len(jobs) - len(left)
    runs = _runs(len(left))
    if finished:
        runs += f" ({finished} more are finished)"
    side_by_side = max(min(at_once, len(left)), 1)
    time = format_duration(seconds / side_by_side)
    if side_by_side > 1:
        time += f" with {side_by_side} side by side, {format_duration(seconds)} one after another"
    space = f"{in_bytes(disk)} of disk, {in_bytes(free)} free"
    _print_line("total", f"{runs}, {time}, {hours:.3g} {unit_of(first)}; {space}")


def _print_line(label: str, text: str) -> None:
    print(f"{label:<13}{text}")


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _finished(plan: Plan) -> bool:
    """Whether a run is finished, and would not be trained again."""
    from earlydrop.training.record.folder import read_status

    finished = read_status(plan.folder).get("state") == "finished"
    return finished and plan.config.resume != "never"


def _data(plan: Plan) -> str:
    """A dataset with its sizes."""
    sizes, absent = plan.source.sizes, ", not on this machine" if plan.source.absent else ""
    return f"{plan.config.data.name} ({sizes['train']:,} and {sizes['test']:,}{absent})"


def _varying(jobs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The keys by which the jobs differ, each with its values in the order of the jobs."""
    varying = {}
    for key in _once(key for job in jobs for key in job):
        values = _once(str(job.get(key)) for job in jobs)
        if len(values) > 1:
            varying[key] = values
    return varying


def _once(words: Iterable[str]) -> list[str]:
    """Words without repetitions."""
    return list(dict.fromkeys(words))


def _listed(words: list[str]) -> str:
    """The first words of a list, and how many there are."""
    more = f", ... ({len(words)} in all)" if len(words) > _MOST_VALUES else ""
    return ", ".join(words[:_MOST_VALUES]) + more
