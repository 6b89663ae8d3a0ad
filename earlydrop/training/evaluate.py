"""Evaluation on the splits and on further test sets, and Monte Carlo dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlydrop.classic.monte_carlo import mc_dropout
from earlydrop.exact import brought_home, exact, home
from earlydrop.training.average import WeightAverage
from earlydrop.training.data.extra import scored
from earlydrop.training.data.objective import Objective
from earlydrop.training.data.order import split_batches
from earlydrop.training.data.source import Batch, ExtraSet
from earlydrop.training.distributed import ALONE, Group
from earlydrop.training.plan import Plan
from earlydrop.training.streams import stream, stream_seed

MOST_IMAGES = 50_000
"""Training images to read if there are more than 100,000 and no number is configured."""
EVERYONE = 0
"""The seed of streams that are the same for every run."""


def autocast(plan: Plan) -> torch.autocast:
    """The precision of a plan's forward passes: bfloat16 autocast, or no change."""
    return torch.autocast(
        plan.device.type, torch.bfloat16, enabled=plan.config.trainer.precision == "bf16"
    )


def fixed_subset(purpose: str, images: int, keep: int) -> Tensor:
    """Sorted indices of ``keep`` images, or of all if there are fewer; the same for every run."""
    if keep >= images:
        return torch.arange(images)
    return torch.randperm(images, generator=stream(EVERYONE, purpose))[:keep].sort().values


def usual_limit(images: int) -> int:
    """The default number of training images to read: all up to 100,000, else 50,000."""
    return images if images <= 2 * MOST_IMAGES else MOST_IMAGES


def evaluated_images(plan: Plan, split: str, last: bool) -> int:
    """The number of images of a split that an evaluation reads."""
    options, images = (
        plan.config.evaluation,
        plan.source.sizes["test" if split == "test" else "train"],
    )
    most = images if split == "test" else options.train_images or usual_limit(images)
    return min(images, most if last else min(most, options.interim_images or most))


@torch.no_grad()
def _evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    plan: Plan,
    smoothing: float,
    group: Group,
) -> tuple[float, float]:
    """Mean loss and accuracy over all workers' batches, in evaluation mode.

    For soft targets, the label with the largest weight is the true one.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=home(plan.device))
    for images, targets in batches:
        with autocast(plan):
            logits = model(images).float()
        if logits.dim() == 3:  # a text: every place counts
            logits, targets = logits.flatten(0, 1), targets.flatten()
        loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        correct = (logits.argmax(1) == labels).sum()
        totals += torch.stack((exact(loss), exact(correct), totals.new_full((), len(labels))))
    loss_sum, correct, count = group.sum(totals).tolist()
    return loss_sum / count, correct / count


def evaluate_all(
    model: nn.Module,
    objective: Objective,
    plan: Plan,
    last: bool = True,
    group: Group = ALONE,
    average: WeightAverage | None = None,
) -> dict[str, float]:
    """Loss and accuracy on the test set and on the training set.

    ``train_eval`` is the training set under the objective, with augmentation and mixing from one
    stream that is the same for every run; ``train_clean`` is the training set as it is. A subset of
    the images is the same for every run too. Before the ``last`` evaluation of a run it may be
    smaller. The batches are shared among the workers: no image is read twice, and the sums are
    exact. The model's mode is put back. The weights of ``average`` are evaluated too, as
    ``ema/...``.
    """
    return _with_average(
        lambda: _evaluate_splits(model, objective, plan, last=last, group=group), average
    )


def _with_average(
    measure: Callable[[], dict[str, float]],
    average: WeightAverage | None,
) -> dict[str, float]:
    """Measure with the weights and, if there is one, with their average, as ``ema/...``."""
    metrics = measure()
    if average is not None:
        with average.in_place():
            averaged = measure()
        metrics |= {f"ema/{name}": value for name, value in averaged.items()}
    return metrics


def _evaluate_splits(
    model: nn.Module,
    objective: Objective,
    plan: Plan,
    last: bool,
    group: Group,
) -> dict[str, float]:
    source, smoothing = plan.source, plan.config.augment.smoothing
    results: dict[str, float] = {}
    training = model.training
    model.eval()
    for split in plan.config.evaluation.splits:
        images = source.sizes["test" if split == "test" else "train"]
        keep = fixed_subset("evaluation-images", images, evaluated_images(plan, split, last))
        keyed = group.share(list(enumerate(keep.split(plan.config.evaluation.batch_size))))
        if split == "train_eval":
            measured = _evaluate(
                model,
                objective.batches(keyed, EVERYONE, "train_eval"),
                plan,
                smoothing=smoothing,
                group=group,
            )
        else:
            measured = _evaluate(
                model,
                source.batches(keyed, "test" if split == "test" else "train", None),
                plan,
                smoothing=0.0,
                group=group,
            )
        results |= {f"{split}/loss": measured[0], f"{split}/accuracy": measured[1]}
    model.train(training)
    return results


@torch.no_grad()
def evaluate_extra(
    model: nn.Module, plan: Plan, group: Group = ALONE, average: WeightAverage | None = None
) -> dict[str, float]:
    """Accuracy, and loss, on the further test sets (``data.extra``).

    If a set has images of only some classes, as ImageNet-A and ImageNet-R do, prediction and
    cross-entropy use only the logits of these classes. With label lists, such as ReaL, a prediction
    is right if it is in the list of its image, and there is no loss. The batches are shared
    among the workers, and the sums are exact. The model's mode is put back. An ``average`` of the
    weights is evaluated too.
    """
    if not plan.config.data.extra:
        return {}
    return _with_average(lambda: _evaluate_sets(model, plan, group), average)


def _evaluate_sets(model: nn.Module, plan: Plan, group: Group) -> dict[str, float]:
    results: dict[str, float] = {}
    training = model.training
    model.eval()
    for name, extra in plan.source.extra.items():
        batches = group.share(
            list(enumerate(extra.indices.split(plan.config.evaluation.batch_size)))
        )
        if extra.answers is not None:
            results[f"{name}/accuracy"] = _evaluate_lists(
                model, batches, extra, answers=extra.answers, plan=plan, group=group
            )
            continue
        loss, accuracy = _evaluate(
            lambda images, extra=extra: scored(model(images), extra),  # type: ignore[misc]
            plan.source.batches(batches, extra.split, None),
            plan,
            smoothing=0.0,
            group=group,
        )
        results |= {f"{name}/loss": loss, f"{name}/accuracy": accuracy}
    model.train(training)
    return results


def _evaluate_lists(
    model: nn.Module,
    keyed: list[tuple[int, Tensor]],
    extra: ExtraSet,
    *,
    answers: Tensor,
    plan: Plan,
    group: Group,
) -> float:
    """The share of images whose prediction is among their answers, (M, L), over all workers."""
    totals = torch.zeros(2, dtype=torch.float64, device=home(plan.device))
    batches = plan.source.batches(keyed, extra.split, None)
    for (_, indices), (images, _) in zip(keyed, batches, strict=True):
        with autocast(plan):
            predicted = model(images).argmax(1)
        right = (answers[indices].to(predicted.device) == predicted[:, None]).any(1).sum()
        totals += torch.stack((exact(right), totals.new_full((), len(indices))))
    correct, count = group.sum(totals).tolist()
    return float(correct / count)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: Σ |Bₘ|/n · |accuracy(Bₘ) − confidence(Bₘ)|.

    Guo et al. 2017, arXiv:1706.04599, equation 3.

    The probabilities are (N, K), the labels (N,). The bins of the confidence have equal width.
    """
    confidence, predicted = exact(probabilities).max(1)
    gaps = (predicted == labels.to(predicted.device)).double() - confidence
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64, device=gaps.device).index_add_(0, index, gaps)
    return float(sums.abs().sum() / len(labels))


def evaluate_mc(model: nn.Module, plan: Plan, passes: int) -> dict[str, float]:
    """Compare Monte Carlo dropout with the plain network on the test set.

    Gives the loss of the predictive mean, accuracy, calibration and mutual information.
    """
    mean, plain, labels, information = [], [], [], []
    training = model.training
    for key, (images, targets) in enumerate(
        plan.source.batches(
            split_batches(plan.source.sizes["test"], plan.config.evaluation.batch_size),
            "test",
            None,
        )
    ):
        with autocast(plan):
            drawn = mc_dropout(
                model, images, passes, seed=stream_seed(plan.config.seed, "monte-carlo", key)
            )
            model.eval()
            with torch.no_grad():
                plain.append(model(images).float().softmax(1))
        model.train(training)
        mean.append(drawn.mean)
        information.append(drawn.mutual_information)
        labels.append(targets)
    probabilities, target = torch.cat(mean), brought_home(torch.cat(labels))
    loss = F.nll_loss(exact(probabilities).clamp_min(1e-300).log(), target)
    return {
        "test_mc/loss": float(loss),
        "test_mc/accuracy": float(
            (brought_home(probabilities.argmax(1)) == target).double().mean()
        ),
        "test_mc/ece": calibration_error(probabilities, target),
        "test_mc/mutual_information": float(
            exact(torch.cat([value for value in information if value is not None])).mean()
        ),
        "test/ece": calibration_error(torch.cat(plain), target),
    }
