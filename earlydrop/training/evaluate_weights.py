"""``mode=eval``: the evaluation of weights from checkpoints."""

from __future__ import annotations

from typing import Any

from torch import nn

from earlydrop.classic import StandardDropout
from earlydrop.training.data.objective import Objective
from earlydrop.training.distributed import Group
from earlydrop.training.evaluate import evaluate_all, evaluate_extra
from earlydrop.training.fields import ConfigError
from earlydrop.training.peaks import Driver
from earlydrop.training.plan import Plan, evaluates_checkpoint_only
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_best, load_checkpoint
from earlydrop.training.record.foreign import foreign_weights


def evaluate_weights(plan: Plan, group: Group) -> dict[str, Any]:
    """Evaluate the weights that ``checkpoint`` names, else the run's best, averaged and last ones.

    Prints the metrics of each.

    Returns:
        The run's folder, the state ``evaluated``, and the metrics of the last weights.

    Raises:
        ConfigError: There are no weights, or they do not fit the model or its schedule.
    """
    model, scheduler = scheduled_model(plan)
    config = plan.config
    if evaluates_checkpoint_only(config) and config.schedule.name != "none":
        _refuse_standard_dropout(model, config.model.name)
    objective = Objective(plan.source, config.augment)
    metrics: dict[str, float] = {}
    for title, weights in _weights(plan, model):
        model.load_state_dict(weights["model"])
        if scheduler is not None:
            _load_rates(scheduler, weights, title, constant=config.schedule.name == "constant")
        metrics = evaluate_all(model, objective, plan, group=group)
        metrics |= evaluate_extra(model, plan, group)
        if group.main:
            print(title)
            for name, value in metrics.items():
                print(f"  {name:<22} {value:.6f}")
    return {"folder": str(plan.folder), "state": "evaluated"} | metrics


def _refuse_standard_dropout(model: nn.Module, name: str) -> None:
    """Refuse a model whose evaluation needs a rate, which a file of weights does not give."""
    if any(isinstance(module, StandardDropout) for module in model.modules()):
        raise ConfigError(
            f"model.name is {name!r}: it has layers of standard dropout, which scale by their rate "
            "at test too, and checkpoint= is evaluated without a schedule; evaluate the run's own "
            "checkpoints, with mode=eval and the run's settings, or give schedule=none if it was "
            "trained at rate 0"
        )


def _load_rates(scheduler: Driver, weights: dict[str, Any], title: str, constant: bool) -> None:
    """Set the rates that the weights were saved at: standard dropout uses them at test too."""
    if not weights.get("scheduler"):
        if constant:  # the rate is the same at every step
            return
        raise ConfigError(
            f"{title.splitlines()[0]}: the file does not hold the step at which the weights were "
            "saved, and standard dropout scales by the rate of that step; give a checkpoint of the "
            "run"
        )
    try:
        scheduler.load_state_dict(weights["scheduler"])
    except ValueError as error:
        raise ConfigError(
            f"{title.splitlines()[0]}: {error}; give the schedule of the run that saved them"
        ) from error


def _weights(plan: Plan, model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Pairs of a title and a checkpoint's content to evaluate. A run's last weights come last."""
    if plan.config.checkpoint is not None:
        return foreign_weights(plan.config.checkpoint, plan.config.model.name, model)
    folder = plan.folder / "checkpoints"
    last = load_checkpoint(folder, plan.fingerprint)
    best = load_best(folder, plan.fingerprint)
    if last is None:
        raise ConfigError(
            f"mode is 'eval': {plan.folder} has no checkpoint; train it first with mode=train, or "
            "name one with checkpoint="
        )
    weights = []
    if best is not None:
        title = f"best weights, step {best['step']} ({best['metric']} was best)"
        weights.append((f"{plan.folder}\n{title}", best))
    if "model_ema" in last:
        averaged = last | {"model": last["model_ema"]}
        weights.append((f"{plan.folder}\naveraged weights, step {last['step']}", averaged))
    weights.append((f"{plan.folder}\nlast weights, step {last['step']}", last))
    return weights
