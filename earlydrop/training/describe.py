"""The printed plan of a run, and what the run will cost here."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from earlydrop.sites import find_sites
from earlydrop.training.evaluate import evaluate_all
from earlydrop.training.plan import Plan
from earlydrop.training.probes import dataset_images, probe_gradients
from earlydrop.training.record.folder import RunFolder
from earlydrop.training.trainer import Trainer, scheduled_model, try_forward


def print_plan(plan: Plan) -> None:
    """Print sites, resolved steps, rates, fingerprint and estimated cost, training nothing."""
    model, scheduler = scheduled_model(plan)
    try_forward(model, plan)
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


def estimate_seconds(plan: Plan, steps: int = 4) -> dict[str, float]:
    """Seconds of training, evaluation and probes: a few steps, one evaluation and one small probe, timed and scaled to the whole run."""
    with tempfile.TemporaryDirectory() as temporary:
        model, scheduler = scheduled_model(plan)
        trainer = Trainer(plan, model, scheduler, RunFolder(Path(temporary)), track=lambda step, metrics: None)
        trainer.model.train()
        times = []
        for x, y in trainer.batches():
            began = time.perf_counter()
            trainer.train_step(x, y)
            trainer.window[-1].tolist()
            times.append(time.perf_counter() - began)
            if len(times) > steps:
                break
        step = sorted(times[1:] or times)[len(times[1:]) // 2]
        seconds = {"training": step * plan.total_steps}
        began = time.perf_counter()
        evaluate_all(trainer.model, trainer.objective, plan)
        seconds["evaluation"] = (time.perf_counter() - began) * len(plan.eval_steps)
        if plan.probe_steps:
            config = plan.config
            small = dataclasses.replace(config.probe, batches=2, dataset_limit=2 * config.trainer.batch_size)
            began = time.perf_counter()
            probe_gradients(
                trainer.model, trainer.objective, dataclasses.replace(plan, config=dataclasses.replace(config, probe=small)), 0
            )
            batch = (time.perf_counter() - began) / 4
            seconds["probes"] = (
                batch * (config.probe.batches + dataset_images(plan) / config.trainer.batch_size) * len(plan.probe_steps)
            )
        trainer.folder.close()
    return seconds
