"""``mode=plan`` of a sweep: what varies, the arms, and one total of runs, time and disk. No job starts, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlydrop.commands import duration

if TYPE_CHECKING:
    from earlydrop.training.cost import Cost
    from earlydrop.training.plan import Plan

_MOST_ARMS = 20
_OF_A_RUN = ("seed", "study", "label", "tags")  # keys by which runs of one cost differ


def plan_grid(config: Any) -> int:
    """Plan every job of a sweep, and print the plans as one. Returns the exit code: 1 if a job would be refused."""
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
            flat_values, settings = _composed(overrides, joblib=_at_once(config) > 1)
            plan = make_plan(settings)
            _measured(plan, flat_values, costs)
        except (ConfigError, OSError) as error:
            refused.setdefault(str(error), []).append(" ".join(overrides))
            continue
        plans.append(plan)
        values.append(flat_values)
    if plans:
        _print(plans, values, costs, _at_once(config))
    for reason, which in refused.items():
        print(f"error: {len(which)} of {len(jobs)} jobs would be refused, such as {which[0]}: {reason}", file=sys.stderr)
    return int(bool(refused))


def _jobs(config: Any) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from earlydrop.training.fields import ConfigError

    target = str(config.hydra.sweeper.get("_target_", ""))
    if not target.endswith("BasicSweeper"):
        raise ConfigError(f"mode is 'plan': {target.rpartition('.')[2]} chooses its jobs as it goes; plan one of them, without -m")
    params = [f"{key}={value}" for key, value in dict(config.hydra.sweeper.params or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
    except HydraException as error:
        raise ConfigError(f"mode is 'plan': {str(error).splitlines()[0]}") from error
    return [list(job) for job in jobs]


def _composed(overrides: list[str], joblib: bool) -> tuple[dict[str, Any], Any]:
    """A job's configuration, by dotted key and as the schema has it."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from earlydrop.analysis.arms import flat
    from earlydrop.training.fields import ConfigError
    from earlydrop.training.overrides import unknown_keys

    try:
        composed = hydra.compose("config", overrides)
        settings: Any = OmegaConf.to_object(composed)
        values: Any = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    wrong = unknown_keys(flat(values))
    if wrong is not None:
        raise ConfigError(wrong)
    if settings.threads is None and joblib:
        settings.threads = 1
    return flat(values), settings


def _at_once(config: Any) -> int:
    """How many jobs run side by side."""
    if "joblib" not in str(config.hydra.launcher.get("_target_", "")).lower():
        return 1
    jobs = int(config.hydra.launcher.get("n_jobs", -1))
    return jobs if jobs > 0 else max((os.cpu_count() or 1) + 1 + jobs, 1)


def _like(values: Mapping[str, Any]) -> str:
    """What runs of equal speed have in common: everything but the schedule and what tells repetitions apart."""
    kept = {key: value for key, value in values.items() if key not in _OF_A_RUN and not key.startswith("schedule.")}
    return json.dumps(kept, sort_keys=True, default=str)


def _key(plan: Plan, values: Mapping[str, Any]) -> str:
    """What runs of one cost have in common: whether anything drops, of which kind, and all but their schedule and seed."""
    return f"{plan.schedule.peak > 0} {plan.config.schedule.kind} {_like(values)}"


def _measured(plan: Plan, values: Mapping[str, Any], costs: dict[str, Cost]) -> None:
    """Time one run of each cost. A model that cannot do what its run says is refused."""
    import torch

    from earlydrop.training.cost import estimate
    from earlydrop.training.prepare import scheduled_model, try_forward

    if _key(plan, values) in costs:
        return
    if plan.config.threads is not None:
        torch.set_num_threads(plan.config.threads)
    model, _ = scheduled_model(plan)
    try_forward(model, plan)
    costs[_key(plan, values)] = estimate(plan)


def _print(plans: list[Plan], values: list[dict[str, Any]], costs: Mapping[str, Cost], at_once: int) -> None:
    from earlydrop.training.cost import estimate, workers_of
    from earlydrop.training.describe import existing, in_bytes
    from earlydrop.training.record.folder import read_status

    distinct = {plan.folder: (plan, each) for plan, each in zip(plans, values, strict=True)}
    first = plans[0]
    lengths = sorted({plan.total_steps for plan in plans})
    print(f"runs         {len(distinct)} in {_said(sorted({str(plan.folder.parent) for plan in plans}))}")
    print(f"of           {_said(_once(plan.config.model.name for plan in plans))}, on {first.device}")
    print(f"on           {_said(_once(_data(plan) for plan in plans))}")
    print(f"length       {_said([str(length) for length in lengths])} steps")
    for i, (key, found) in enumerate(_varying(values).items()):
        print(f"{'' if i else 'varies':<13}{key}: {_said(found)}")
    arms: dict[str, int] = {}
    for plan, _ in distinct.values():
        arms[plan.name] = arms.get(plan.name, 0) + 1
    for i, (name, count) in enumerate(list(arms.items())[:_MOST_ARMS]):
        print(f"{'' if i else 'arms':<13}{name}: {count} run{'s' if count > 1 else ''}")
    if len(arms) > _MOST_ARMS:
        print(f"{'':<13}and {len(arms) - _MOST_ARMS} more")
    done = [plan for plan, _ in distinct.values() if read_status(plan.folder).get("state") == "finished"]
    done = [plan for plan in done if plan.config.resume != "never"]
    seconds, hours, disk = 0.0, 0.0, 0
    for plan, each in distinct.values():
        if plan in done:
            continue
        cost = estimate(plan, costs[_key(plan, each)])
        took = cost.training + cost.evaluation + cost.probes
        seconds += took
        hours += took * workers_of(plan) / 3600
        disk += cost.checkpoint * (3 if plan.config.trainer.stop_metric is not None else 2)
    free = shutil.disk_usage(existing(Path(first.config.out).expanduser())).free
    left = len(distinct) - len(done)
    side = min(at_once, left)
    how = f" with {side} side by side, {duration(seconds)} one after another" if side > 1 else ""
    before = f" ({len(done)} more are finished)" if done else ""
    print(
        f"total        {left} runs{before}, {duration(seconds / max(side, 1))}{how}, {hours:.3g} "
        f"{'GPU hours' if first.device.type == 'cuda' else 'hours'}; {in_bytes(disk)} of disk, {in_bytes(free)} free"
    )


def _data(plan: Plan) -> str:
    sizes, absent = plan.source.sizes, ", not on this machine" if plan.source.absent else ""
    return f"{plan.config.data.name} ({sizes['train']:,} and {sizes['test']:,}{absent})"


def _varying(values: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The keys by which the jobs differ, with their values in the order in which they come."""
    names = dict.fromkeys(key for each in values for key in each)
    found = {key: _once(str(each.get(key)) for each in values) for key in names}
    return {key: each for key, each in found.items() if len(each) > 1}


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _said(words: list[str]) -> str:
    return ", ".join(words[:12]) + (f", ... ({len(words)} in all)" if len(words) > 12 else "")
