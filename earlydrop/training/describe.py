"""The printed plan of a run, with its estimated cost."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch
from torch import nn

from earlydrop.schedules import Schedule
from earlydrop.sites import Site, find_sites
from earlydrop.training.cost import Cost, estimate, unit_of, workers_of
from earlydrop.training.data.files import counts_in_words
from earlydrop.training.models import in_words
from earlydrop.training.plan import Plan
from earlydrop.training.prepare import checked_model, task_of


def print_plan(plan: Plan) -> None:
    """Print sites, resolved steps, rates, fingerprint and estimated cost, without training.

    Raises:
        ConfigError: A run of this plan would be refused (`earlydrop.training.prepare`).
    """
    config, workers = plan.config, workers_of(plan)
    model, scheduler = checked_model(plan, workers)
    print(f"folder       {plan.folder}")
    print(f"fingerprint  {plan.fingerprint}")
    _print_model(plan, model)
    _print_data(plan)
    _print_steps(plan, workers)
    if scheduler:
        kind = config.schedule.kind
        sites = [site for site in find_sites(model) if kind in ("all", site.kind)]
        print(f"sites        {_sites(sites)}")
    else:
        print("sites        none driven: the schedule never drops")
    _print_cost(plan, estimate(plan), workers)


def _print_model(plan: Plan, model: nn.Module) -> None:
    config = plan.config
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"model        {config.model.name}, {parameters:,} parameters, on {plan.device}, "
        f"{_threads()}"
    )
    for key, code in plan.code.items():
        files = ", ".join(path.name for path in code.paths)
        print(
            f"own code     {key.removesuffix('.' + code.label)}={code.name}: {files}, SHA-256 "
            f"{code.digest[:12]}"
        )
    for heading, lines in in_words(config.model, task_of(plan)).items():
        for i, line in enumerate(lines):
            print(f"{'' if i else heading:<13}{line}")


def _print_data(plan: Plan) -> None:
    source, name = plan.source, plan.config.data.name
    what = "images" if source.context is None else f"contexts of {source.context} bytes"
    classes = f", {source.classes:,} classes" if source.context is None else ""
    print(
        f"data         {name}: {source.sizes['train']:,} training and "
        f"{source.sizes['test']:,} test {what}{classes}"
    )
    if source.left_out:
        print(f"left out     {counts_in_words(source.left_out)}")
    for i, (further, extra) in enumerate(source.extra.items()):
        counted = counts_in_words(extra.left_out) if any(extra.left_out.values()) else ""
        print(
            f"{'' if i else 'further':<13}{further}: "
            f"{len(extra.indices):,} images of {extra.classes:,} classes, {extra.matched}"
            + (f" (left out: {counted})" if counted else "")
        )
    if source.absent:
        print(
            "             (not on this machine: these are its published sizes, so the fingerprint "
            "is not the run's; see data.download)"
        )


def _print_steps(plan: Plan, workers: int) -> None:
    """Print the length, the batch, the schedule, and the steps that are measured."""
    config, total = plan.config, plan.total_steps
    print(
        f"length       {total} steps ({plan.steps_per_epoch} an epoch), warm-up "
        f"{plan.warmup_steps} steps"
    )
    parts = config.trainer.accumulate
    shared = f", {parts // workers} for each of {workers} workers" if workers > 1 else ""
    of_size = "part" if parts == 1 else f"parts of {config.trainer.batch_size // parts}"
    print(f"batch        {config.trainer.batch_size} in {parts} {of_size}{shared}")
    print(f"schedule     {plan.schedule!r}, kind {config.schedule.kind}")
    tenths = sorted({*(total * i // 10 for i in range(10)), total - 1})
    print("rates        " + _rates(plan.schedule, tenths))
    if plan.path_schedule is not None:
        print("path rates   " + _rates(plan.path_schedule, tenths))
    splits = ", ".join(config.evaluation.splits)
    print(f"evaluated    after steps {_steps(plan.eval_steps)}, on {splits}")
    probed = f"after steps {_steps(plan.probe_steps)}" if plan.probe_steps else "never"
    print(f"probed       {probed}")


def _print_cost(plan: Plan, cost: Cost, workers: int) -> None:
    config = plan.config
    sizes = {
        "weights and gradients": cost.weights,
        "optimizer": cost.optimizer,
        "activations": cost.activations,
    }
    listed = ", ".join(f"{in_bytes(size)} {name}" for name, size in sizes.items())
    print(
        f"memory       {in_bytes(sum(sizes.values()))} for each worker ({listed} of a part in "
        "float32)"
    )
    if cost.input is not None:
        needed = cost.images_per_second / cost.input
        print(
            f"input        {cost.input:.0f} images/s from one core here; {needed:.1f} cores feed a "
            "worker, which has data.workers="
            f"{config.data.workers}" + (": too few" if needed > max(config.data.workers, 1) else "")
        )
    _print_shared_memory(plan)
    free = shutil.disk_usage(existing(Path(config.out).expanduser())).free
    kept = 2 if config.trainer.stop_metric is None else 3  # best.pt, too
    print(
        f"checkpoints  {in_bytes(cost.checkpoint)} each, {kept} kept and one being written, every "
        f"{config.trainer.checkpoint_seconds:g} s; "
        f"{in_bytes(free)} free" + (": too little" if free < (kept + 1) * cost.checkpoint else "")
    )
    parts = {"training": cost.training, "evaluation": cost.evaluation, "probes": cost.probes}
    text = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items() if seconds)
    where = "here" if cost.measured else "as given"
    unit = unit_of(plan)
    pace = f"at {cost.images_per_second:.0f} images/s a worker {where}"
    bound = f"compute bound, {pace}"
    if cost.input_bound:
        compute = estimate(plan, cost._replace(input=None))
        alone = compute.total * workers / 3600
        bound = (
            f"bound by its input of {_fed(cost)}; compute bound it would be {alone:.3g} {unit}, "
            f"{pace}"
        )
    elif cost.input is not None:
        bound += f", with an input of {_fed(cost)}"
    hours = f"{cost.total * workers / 3600:.3g} {unit}"
    print(f"estimated    {cost.total:.0f} s ({text}), {hours}, {bound}")


_SHARED = Path("/dev/shm")  # where Linux keeps the batches that processes hand to each other


def _print_shared_memory(plan: Plan) -> None:
    """Print the shared memory of the batches that loader processes read ahead."""
    config = plan.config
    part = config.trainer.batch_size // config.trainer.accumulate
    needed = plan.source.shared_memory(part, config.evaluation.batch_size)
    if needed == 0:
        return
    workers = f"data.workers={config.data.workers}"
    line = f"shared       {in_bytes(needed)} for each worker, of batches that {workers} read ahead"
    if _SHARED.is_dir():
        free = shutil.disk_usage(_SHARED).free
        line += f"; {in_bytes(free)} free in {_SHARED}"
        # torchrun sets the variable.
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or config.plan.workers or 1)
        if free < needed * here:
            line += (
                ": too little; set fewer data.workers or a smaller evaluation.batch_size, "
                f"or enlarge {_SHARED} (docker run --shm-size)"
            )
    print(line)


def _fed(cost: Cost) -> str:
    """The speed at which a worker's data is read, in words."""
    cores = max(cost.loaders, 1)
    rate = cores * (cost.input or 0.0)
    return f"{rate:.0f} images/s from {cores} core{'s' if cores > 1 else ''} like those here"


_KINDS = {"unit": "dropout", "path": "stochastic depth"}


def _sites(sites: list[Site]) -> str:
    """A line for each group of sites whose names differ only in their numbers.

    A name that is only a number has a line of its own. A line says whether the sites are driven
    and, if not, why.
    """
    groups: dict[tuple[str, str, bool], list[float]] = {}
    for site in sites:
        name = site.name if site.name.isdecimal() else re.sub(r"\b\d+\b", "*", site.name)
        groups.setdefault((name, _KINDS[site.kind], site.driven), []).append(site.base_rate)
    lines = [f"{sum(site.driven for site in sites)} of {len(sites)} driven"]
    for (name, kind, driven), rates in sorted(groups.items(), key=lambda group: not group[0][2]):
        count = f"{len(rates)} x " if len(rates) > 1 else ""
        if driven:
            low, high = min(rates), max(rates)
            peaks = (
                f"up to {high:.4g}"
                if low == high
                else f"up to a rate between {low:.4g} and {high:.4g}"
            )
            lines.append(f"  {name:<34} {count}{kind}, {peaks}")
        else:
            why = "built with rate 0" if max(rates) == 0 else "not chosen"
            lines.append(f"  {name:<34} {count}{kind}, not driven: {why}")
    return "\n".join(lines)


def _rates(schedule: Schedule, steps: list[int]) -> str:
    return ", ".join(f"{step}: {schedule(step):.4g}" for step in steps)


def _steps(steps: tuple[int, ...]) -> str:
    if len(steps) <= 20:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))}, ..., {steps[-1]} ({len(steps)} times)"


def in_bytes(count: float) -> str:
    """A size in words."""
    units = ["PB", "TB", "GB", "MB", "kB", "bytes"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{count:.3g} {units[-1]}"


def existing(path: Path) -> Path:
    """The nearest of the path and its parents that can be read; else the working folder."""
    return next((place for place in (path, *path.parents) if os.access(place, os.R_OK)), Path())


def _threads() -> str:
    """The number of threads, and how they wait for each other, by the environment."""
    count = torch.get_num_threads()
    if count == 1:
        return "1 thread"
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    chosen = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"{count} threads" + (f" ({', '.join(chosen)})" if chosen else "")
