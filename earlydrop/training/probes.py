"""Measuring the gradients of mini-batches and of the whole dataset at frozen weights."""

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
from earlydrop.training.plugins import Code
from earlydrop.training.streams import seed_device, stream, stream_seed


def dataset_images(plan: Plan) -> int:
    """The number of training images behind the whole-dataset gradient: all, up to a limit."""
    images = plan.source.sizes["train"]
    return min(plan.config.probe.dataset_limit or usual_limit(images), images)


class _DatasetBatches:
    """The images of the whole-dataset gradient, each once, from a fixed stream.

    It can be iterated several times. A batch has at most the size of a part, so that no more images
    go through the model at once than in training.
    """

    def __init__(self, objective: Objective, plan: Plan, group: Group) -> None:
        self.objective, self.plan, self.group = objective, plan, group

    def __iter__(self) -> Iterator[Batch]:
        config, source = self.plan.config, self.plan.source
        size, parts = config.trainer.batch_size, config.trainer.accumulate
        indices = fixed_subset("probe-images", source.sizes["train"], dataset_images(self.plan))
        keyed = []
        for i, batch in self.group.share(list(enumerate(indices.split(size)))):
            for j, part in enumerate(batch.split(size // parts)):
                keyed.append((i * parts + j, part))
        if config.probe.clean:
            return source.batches(keyed, "train", None)
        return self.objective.batches(keyed, EVERYONE, "probe-dataset")


class _MiniBatches:
    """A probe's mini-batches, drawn afresh from its own stream, in the parts of a training step.

    Each part has augmentation, mixing and masks of its own. The mini-batches are shared among the
    workers.
    """

    def __init__(self, objective: Objective, plan: Plan, step: int, group: Group) -> None:
        self.objective, self.plan, self.step = objective, plan, step
        config, images = plan.config, plan.source.sizes["train"]
        order = stream(config.seed, "probe", step)
        drawn = []
        for _ in range(config.probe.batches):
            drawn.append(torch.randperm(images, generator=order)[: config.trainer.batch_size])
        self.mine = group.share(list(enumerate(drawn)))
        self.parts_per_batch = config.trainer.accumulate

    def parts(self) -> Iterator[Batch]:
        """The parts of this worker's mini-batches, one after the other."""
        config, parts = self.plan.config, self.parts_per_batch
        keyed: list[tuple[int, Tensor]] = []
        places: list[tuple[int, ...]] = []
        for i, batch in self.mine:
            key = self.step * 100_000 + i  # there are fewer than 100,000 mini-batches
            for j, indices in enumerate(batch.chunk(parts)):
                keyed.append((key * parts + j, indices))
                places.append((i, j) if parts > 1 else (i,))
        if config.probe.clean:
            batches = self.plan.source.batches(keyed, "train", None)
        else:
            batches = self.objective.batches(keyed, config.seed, "probe")
        for place, part in zip(places, batches, strict=True):
            seed = stream_seed(config.seed, "probe-dropout", self.step, *place)
            seed_device(self.plan.device, seed)
            yield part

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        """The mini-batches, each as its parts."""
        parts = self.parts()
        for _ in self.mine:
            yield itertools.islice(parts, self.parts_per_batch)


def first_part(objective: Objective, plan: Plan, step: int) -> Batch:
    """The first part of a probe's first mini-batch, the same on every worker."""
    return next(_MiniBatches(objective, plan, step, ALONE).parts())


def probe_gradients(
    model: nn.Module, objective: Objective, plan: Plan, step: int, group: Group = ALONE
) -> dict[str, float]:
    """Measure the gradients of a model, uncompiled and at its present rates.

    The gradient of a mini-batch is the mean over as many parts as a training step has.

    Args:
        model: The model.
        objective: The training objective.
        plan: The run.
        step: Optimizer steps done; it names the stream that mini-batches are drawn from.
        group: The workers.

    Returns:
        The ``probe/`` metrics and, with ``probe.compare``, those of ``probe_on/`` and
        ``probe_off/``. Undefined metrics are left out.

    Raises:
        ValueError: A gradient is zero or not finite.
    """
    config = plan.config
    batches = _MiniBatches(objective, plan, step, group)
    dataset = _DatasetBatches(objective, plan, group)
    own = own_measures(config)
    own_of_moments = {name: of_moments(code) for name, code in own.items() if not needs_model(code)}
    own_of_model = {name: code for name, code in own.items() if needs_model(code)}

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        with autocast(plan):
            logits = model(batch[0])
        return objective.loss(logits, batch[1], config.probe.clean)

    def measure() -> dict[str, float | None]:
        """The package's measures that are recorded, then the user's own."""
        report = probe(
            model,
            loss_fn,
            iter(batches),
            dataset=dataset,
            parts=iter,
            group=group.reductions,
            measures=own_of_moments,
        )
        values = {name: getattr(report, name) for name in MEASURES}
        values |= dict(report.further or {})
        for name, code in own_of_model.items():
            values[name] = of_model(code, model, loss_fn, batches.parts())
        return values

    present = measure()
    metrics = {f"probe/{name}": value for name, value in present.items()}
    if config.probe.compare:
        is_on = any(site.rate > 0 for site in find_sites(model) if site.driven)
        with driven_off(model) if is_on else driven_at_base(model):
            opposite = measure()
        on, off = (present, opposite) if is_on else (opposite, present)
        metrics |= {f"probe_on/{name}": value for name, value in on.items()}
        metrics |= {f"probe_off/{name}": value for name, value in off.items()}
    return _recorded(metrics, own)


def _recorded(metrics: dict[str, float | None], own: dict[str, Code]) -> dict[str, float]:
    """The metrics that have a value, and that are either in `METRICS` or the user's own."""
    recorded = {}
    for name, value in metrics.items():
        known = name in METRICS or name.partition("/")[2] in own
        if known and value is not None:
            recorded[name] = value
    return recorded
