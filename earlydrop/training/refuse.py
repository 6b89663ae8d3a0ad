"""Checks that refuse a plan before its run's folder is touched."""

from __future__ import annotations

import math

from earlydrop.training.distributed import Group
from earlydrop.training.fields import ConfigError
from earlydrop.training.own_measures import needs_model
from earlydrop.training.plan import Plan
from earlydrop.training.probes import dataset_images
from earlydrop.training.record.folder import STATUS, read_json, read_status


def check_probe_batches(plan: Plan, workers: int) -> None:
    """Refuse a probe that has fewer batches than the run has workers."""
    dataset_batches = math.ceil(dataset_images(plan) / plan.config.trainer.batch_size)
    if plan.probe_steps and min(plan.config.probe.batches, dataset_batches) < workers:
        raise ConfigError(
            f"probe.batches is {plan.config.probe.batches}, and {dataset_batches} batches give the "
            f"whole-dataset gradient: {workers} workers need at least {workers} of each; raise "
            "probe.batches, or probe.dataset_limit (up to the number of training images), lower "
            "trainer.batch_size, or set probe=none"
        )


def check_measures(plan: Plan, workers: int) -> None:
    """If a run has several workers, refuse measures that take the model, the loss or batches."""
    if workers == 1:
        return
    for key, code in plan.code.items():
        if key.startswith("probe.measures") and needs_model(code):
            raise ConfigError(
                f"probe.measures has {code.name!r}: it takes the model, the loss or the batches, "
                f"and {workers} workers share the batches; train in one process, or give a measure "
                "with one parameter, the moments of the gradients"
            )


def check_same_code(plan: Plan) -> None:
    """Refuse to start a run if the user's code changed while a run of it is unfinished.

    A run is unfinished if its state is ``interrupted`` or ``running``. The message says how to
    resume it.
    """
    if not plan.code or plan.config.resume == "never" or (plan.folder / STATUS).is_file():
        return
    for status_file in sorted(plan.folder.parent.glob(f"*/{STATUS}")):
        folder = status_file.parent
        provenance = read_json(folder / "provenance.json")
        status = read_status(folder)
        same = provenance.get("configuration") == plan.configuration
        if not same or status.get("state") not in ("interrupted", "running"):
            continue
        recorded = provenance.get("code", {})
        changed = []
        for key, code in plan.code.items():
            if recorded.get(key, {}).get("digest") != code.digest:
                changed.append(code.name)
        if not changed:  # the same code under another label
            continue
        raise ConfigError(
            f"{', '.join(changed)} changed since {folder} began, and that run is not finished: put "
            "the code back to go on there, or train the changed code from the start with "
            "resume=never"
        )


def check_same_fingerprint(plan: Plan, group: Group) -> None:
    """Refuse workers whose fingerprints differ, for example because their nodes hold other data.

    Every worker raises the error.
    """
    first = group.decide(lambda: plan.fingerprint)
    (differs,) = group.largest([float(first != plan.fingerprint)])
    if differs:
        which = f"worker {group.rank} has the fingerprint {plan.fingerprint}, and worker 0 {first}"
        if first == plan.fingerprint:
            which = f"worker {group.rank} has the fingerprint {first}, and another worker does not"
        raise ConfigError(
            f"{which}: not all of the {group.size} workers have the same configuration, data, own "
            "code, initial weights and version of earlydrop; give every node the same"
        )
