"""When gradients are measured, and on what: mini-batches of the training size against the whole-dataset gradient, at frozen weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlydrop.gradients.measures import MEASURES
from earlydrop.gradients.probe import probe
from earlydrop.metrics import METRICS
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.source import Batch
from earlydrop.training.evaluate import EVERYONE, autocast
from earlydrop.training.plan import Plan
from earlydrop.training.streams import stream, stream_seed


def dataset_images(plan: Plan) -> int:
    """How many training images the whole-dataset gradient is taken from: all of them, up to a limit."""
    images = plan.source.sizes["train"]
    return min(plan.config.probe.dataset_limit or (images if images <= 100_000 else 50_000), images)


class _DatasetBatches:
    """The images behind the whole-dataset gradient, each once, under the objective from a fixed stream; can be iterated again."""

    def __init__(self, objective: Objective, plan: Plan) -> None:
        self.objective, self.plan = objective, plan

    def __iter__(self) -> Iterator[Batch]:
        config, source = self.plan.config, self.plan.source
        images = source.sizes["train"]
        limit = dataset_images(self.plan)
        keep = torch.arange(images)
        if limit < images:
            keep = torch.randperm(images, generator=stream(EVERYONE, "probe-images"))[:limit].sort().values
        keyed = list(enumerate(keep.split(config.trainer.batch_size)))
        if config.probe.clean:
            return source.batches(keyed, "train", None)
        return self.objective.batches(keyed, EVERYONE, "probe-dataset")


def probe_gradients(model: nn.Module, objective: Objective, plan: Plan, step: int) -> dict[str, float]:
    """The ``probe/`` metrics of a model, uncompiled and at its present rates; one that is undefined here is left out.

    Mini-batches of the training size are drawn afresh from the probe's own stream, which ``step`` names.

    Raises:
        ValueError: A gradient is zero or not finite.
    """
    config, source = plan.config, plan.source
    order = stream(config.seed, "probe", step)
    size, images = config.trainer.batch_size, source.sizes["train"]
    keyed = [(step * 100_000 + i, torch.randperm(images, generator=order)[:size]) for i in range(config.probe.batches)]
    clean = config.probe.clean

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        with autocast(plan):
            logits = model(batch[0])
        return F.cross_entropy(logits.float(), batch[1]) if clean else objective.loss(logits, batch[1])

    def seeded() -> Iterator[Batch]:
        batches = source.batches(keyed, "train", None) if clean else objective.batches(keyed, config.seed, "probe")
        for i, batch in enumerate(batches):
            torch.manual_seed(stream_seed(config.seed, "probe-dropout", step, i))
            yield batch

    report = probe(model, loss_fn, seeded(), dataset=_DatasetBatches(objective, plan))
    taken = {f"probe/{name}": getattr(report, name) for name in MEASURES}
    return {name: value for name, value in taken.items() if name in METRICS and value is not None}
