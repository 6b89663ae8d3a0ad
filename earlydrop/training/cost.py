"""What a run will cost here, from a few timed steps."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from earlydrop.training.files import RunFolder
from earlydrop.training.measure import evaluate_all, probe_gradients
from earlydrop.training.plan import Plan
from earlydrop.training.trainer import Trainer, scheduled_model


def estimate_seconds(plan: Plan, steps: int = 4) -> dict[str, float]:
    """Time a few steps, one evaluation and one small probe, and scale them to the whole run.

    Args:
        plan: The plan.
        steps: How many training steps to time.

    Returns:
        Estimated seconds of training, evaluation and probes.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model, scheduler = scheduled_model(plan)
        trainer = Trainer(plan, model, scheduler, RunFolder(Path(temporary)), track=lambda step, metrics: None)
        trainer.model.train()
        times = []
        for x, y in trainer._batches():
            began = time.perf_counter()
            trainer._train_step(x, y)
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
            images = plan.source.sizes["train"]
            limit = config.probe.dataset_limit or (images if images <= 100_000 else 50_000)
            small = dataclasses.replace(config.probe, batches=2, dataset_limit=2 * config.trainer.batch_size)
            began = time.perf_counter()
            probe_gradients(
                trainer.model, trainer.objective, dataclasses.replace(plan, config=dataclasses.replace(config, probe=small)), 0
            )
            batch = (time.perf_counter() - began) / 4
            seconds["probes"] = batch * (config.probe.batches + limit / config.trainer.batch_size) * len(plan.probe_steps)
        trainer.folder.close()
    return seconds
