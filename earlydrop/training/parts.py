"""The parts of the training batches that one worker trains on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import training_order
from earlydrop.training.data.source import Batch
from earlydrop.training.distributed import Group
from earlydrop.training.plan import Plan


def training_parts(
    plan: Plan,
    objective: Objective,
    group: Group,
    start: int,
) -> Iterator[list[Batch]]:
    """This worker's parts of each training batch, up to the last step.

    Everything random in a part is drawn for (seed, step, part), so the numbers do not depend on how
    the parts are shared.
    """
    count = plan.config.trainer.accumulate
    mine = group.block(count)
    order = training_order(
        seed=plan.config.seed,
        images=plan.source.sizes["train"],
        batch_size=plan.config.trainer.batch_size,
        start=start,
        stop=plan.total_steps,
    )

    def keyed() -> Iterator[tuple[int, Tensor]]:
        for step, indices in order:
            chunks = indices.chunk(count)
            for i in mine:
                yield step * count + i, chunks[i]

    parts = objective.batches(keyed(), plan.config.seed, "augment")
    while step_parts := list(itertools.islice(parts, len(mine))):
        yield step_parts
