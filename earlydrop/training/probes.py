"""When gradients are measured, and on what: mini-batches of the training size against the whole-dataset gradient, at frozen weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from earlydrop.gradients.measures import MEASURES
from earlydrop.gradients.probe import probe
from earlydrop.metrics import METRICS
from earlydrop.sites import find_sites
from earlydrop.sites.drive import driven_at_base, driven_off
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.source import Batch
from earlydrop.training.distributed import ALONE, Group
from earlydrop.training.evaluate import EVERYONE, autocast, fixed_subset, usual_limit
from earlydrop.training.own_measures import needs_model, of_model, of_moments, own_measures
from earlydrop.training.plan import Plan
from earlydrop.training.streams import stream, stream_seed


def dataset_images(plan: Plan) -> int:
    """How many training images the whole-dataset gradient is taken from: all of them, up to a limit."""
    images = plan.source.sizes["train"]
    return min(plan.config.probe.dataset_limit or usual_limit(images), images)


class _DatasetBatches:
    """The images behind the whole-dataset gradient, each once, under the objective from a fixed stream; can be iterated again.

    They come in batches of the size of a part: no more goes through the model at once than in training.
    """

    def __init__(self, objective: Objective, plan: Plan, group: Group) -> None:
        self.objective, self.plan, self.group = objective, plan, group

    def __iter__(self) -> Iterator[Batch]:
        config, source = self.plan.config, self.plan.source
        size, parts = config.trainer.batch_size, config.trainer.accumulate
        keep = fixed_subset("probe-images", source.sizes["train"], dataset_images(self.plan))
        mine = self.group.share(list(enumerate(keep.split(size))))
        keyed = [(i * parts + j, part) for i, batch in mine for j, part in enumerate(batch.split(size // parts))]
        if config.probe.clean:
            return source.batches(keyed, "train", None)
        return self.objective.batches(keyed, EVERYONE, "probe-dataset")


def probe_gradients(model: nn.Module, objective: Objective, plan: Plan, step: int, group: Group = ALONE) -> dict[str, float]:
    """The ``probe/`` metrics of a model, uncompiled and at its present rates; one that is undefined here is left out.

    Mini-batches of the training size are drawn afresh from the probe's own stream, which ``step`` names. The gradient of one is the mean
    over as many parts as a training step has, each with augmentation, mixing and masks of its own. The mini-batches are shared among the
    workers.

    Raises:
        ValueError: A gradient is zero or not finite.
    """
    config, source = plan.config, plan.source
    order = stream(config.seed, "probe", step)
    size, images, parts = config.trainer.batch_size, source.sizes["train"], config.trainer.accumulate
    keyed = [(step * 100_000 + i, torch.randperm(images, generator=order)[:size]) for i in range(config.probe.batches)]
    clean, mine = config.probe.clean, group.share(list(enumerate(keyed)))
    own = own_measures(config)
    of_gradients = {name: of_moments(code) for name, code in own.items() if not needs_model(code)}

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        with autocast(plan):
            logits = model(batch[0])
        return objective.loss(logits, batch[1], clean)

    def seeded() -> Iterator[Batch]:
        """The parts of this worker's mini-batches, one after the other."""
        chosen = [(key * parts + j, part) for _, (key, batch) in mine for j, part in enumerate(batch.chunk(parts))]
        places = [(i, j) if parts > 1 else (i,) for i, _ in mine for j in range(parts)]
        given = source.batches(chosen, "train", None) if clean else objective.batches(chosen, config.seed, "probe")
        for place, part in zip(places, given, strict=True):
            torch.manual_seed(stream_seed(config.seed, "probe-dropout", step, *place))
            yield part

    def in_batches() -> Iterator[Iterator[Batch]]:
        given = seeded()
        for _ in mine:
            yield itertools.islice(given, parts)

    def measured() -> dict[str, float | None]:
        """Ours that are recorded, then somebody's own."""
        dataset = _DatasetBatches(objective, plan, group)
        report = probe(model, loss_fn, in_batches(), dataset=dataset, parts=iter, group=group.reductions, measures=of_gradients)
        found = {name: getattr(report, name) for name in MEASURES} | dict(report.further or {})
        return found | {name: of_model(code, model, loss_fn, seeded()) for name, code in own.items() if needs_model(code)}

    report = measured()
    taken = {f"probe/{name}": value for name, value in report.items()}
    if config.probe.compare:
        on = any(site.rate > 0 for site in find_sites(model) if site.driven)
        with driven_off(model) if on else driven_at_base(model):
            other = measured()
        for state, found in (("on", report if on else other), ("off", other if on else report)):
            taken |= {f"probe_{state}/{name}": value for name, value in found.items()}
    recorded = {name for name in taken if name in METRICS or name.partition("/")[2] in own}
    return {name: value for name, value in taken.items() if name in recorded and value is not None}
