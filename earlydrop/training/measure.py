"""What a run measures besides its training loss: evaluations, and the gradients at a frozen model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlydrop.montecarlo import mc_dropout
from earlydrop.probing import probe
from earlydrop.training.data import Batch, Objective, split_batches
from earlydrop.training.plan import Plan
from earlydrop.training.streams import stream, stream_seed

_EVAL_BATCH = 500
_EVERYONE = 0  # the seed of streams that are the same for every run


def autocast(plan: Plan) -> torch.autocast:
    """The precision that a plan's forward passes run in.

    Args:
        plan: The run's plan.

    Returns:
        A context: bfloat16 autocast, or one that does nothing.
    """
    return torch.autocast(plan.device.type, torch.bfloat16, enabled=plan.config.trainer.precision == "bf16")


@torch.no_grad()
def _evaluate(model: nn.Module, batches: Iterable[Batch], plan: Plan, smoothing: float) -> tuple[float, float]:
    """Mean loss and accuracy over all batches, in evaluation mode; accuracy against the heavier label of soft targets."""
    totals = torch.zeros(3, dtype=torch.float64, device=plan.device)
    for images, targets in batches:
        with autocast(plan):
            logits = model(images).float()
        loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        totals += torch.stack((loss.double(), (logits.argmax(1) == labels).sum().double(), totals.new_tensor(len(labels))))
    loss_sum, correct, count = totals.tolist()
    return loss_sum / count, correct / count


def evaluate_all(model: nn.Module, objective: Objective, plan: Plan) -> dict[str, float]:
    """Loss and accuracy on the test set, and on the whole training set under the objective and clean.

    ``train_eval`` draws augmentation and mixing from one fixed stream, the same for every run.

    Args:
        model: The model; its mode is put back.
        objective: The training objective.
        plan: The run's plan.

    Returns:
        ``test/``, ``train_eval/`` and ``train_clean/`` ``loss`` and ``accuracy``.
    """
    source, smoothing = plan.source, plan.config.augment.smoothing
    train, test = (split_batches(source.sizes[split], _EVAL_BATCH) for split in ("train", "test"))
    training = model.training
    model.eval()
    results = {
        "test": _evaluate(model, source.batches(test, "test", None), plan, 0.0),
        "train_eval": _evaluate(model, objective.batches(train, _EVERYONE, "train_eval"), plan, smoothing),
        "train_clean": _evaluate(model, source.batches(train, "train", None), plan, 0.0),
    }
    model.train(training)
    names = ("loss", "accuracy")
    return {f"{name}/{what}": value for name, values in results.items() for what, value in zip(names, values, strict=True)}


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3): Σ |Bₘ|/n · |accuracy(Bₘ) − confidence(Bₘ)|.

    Args:
        probabilities: (N, K).
        labels: (N,).
        bins: Number of equal bins of the confidence, in (0, 1].

    Returns:
        The error, in [0, 1].
    """
    confidence, predicted = probabilities.double().max(1)
    gaps = (predicted == labels).double() - confidence
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64, device=gaps.device).index_add_(0, index, gaps)
    return float(sums.abs().sum() / len(labels))


def evaluate_mc(model: nn.Module, plan: Plan, passes: int) -> dict[str, float]:
    """Monte Carlo dropout against the plain network on the test set: loss of the predictive mean, accuracy, calibration.

    Args:
        model: The model at its present rates.
        plan: The run's plan.
        passes: Forward passes with dropout on.

    Returns:
        ``test_mc/loss``, ``test_mc/accuracy``, ``test_mc/ece``, ``test_mc/mutual_information`` (mean, nats) and ``test/ece``.
    """
    mean, plain, labels, information = [], [], [], []
    training = model.training
    for key, (images, targets) in enumerate(
        plan.source.batches(split_batches(plan.source.sizes["test"], _EVAL_BATCH), "test", None)
    ):
        with autocast(plan):
            found = mc_dropout(model, images, passes, seed=stream_seed(plan.config.seed, "monte-carlo", key))
            model.eval()
            with torch.no_grad():
                plain.append(model(images).float().softmax(1))
        model.train(training)
        mean.append(found.mean)
        information.append(found.mutual_information)
        labels.append(targets)
    probabilities, target = torch.cat(mean), torch.cat(labels)
    loss = F.nll_loss(probabilities.double().clamp_min(1e-300).log(), target)
    return {
        "test_mc/loss": float(loss),
        "test_mc/accuracy": float((probabilities.argmax(1) == target).double().mean()),
        "test_mc/ece": calibration_error(probabilities, target),
        "test_mc/mutual_information": float(torch.cat([each for each in information if each is not None]).double().mean()),
        "test/ece": calibration_error(torch.cat(plain), target),
    }


class _DatasetBatches:
    """The images behind the whole-dataset gradient, each once, under the objective from a fixed stream; can be iterated again."""

    def __init__(self, objective: Objective, plan: Plan) -> None:
        self.objective, self.plan = objective, plan

    def __iter__(self) -> Iterator[Batch]:
        config, source = self.plan.config, self.plan.source
        images = source.sizes["train"]
        limit = config.probe.dataset_limit or (images if images <= 100_000 else 50_000)
        keep = torch.arange(images)
        if limit < images:
            keep = torch.randperm(images, generator=stream(_EVERYONE, "probe-images"))[:limit].sort().values
        keyed = list(enumerate(keep.split(config.trainer.batch_size)))
        if config.probe.clean:
            return source.batches(keyed, "train", None)
        return self.objective.batches(keyed, _EVERYONE, "probe-dataset")


def probe_gradients(model: nn.Module, objective: Objective, plan: Plan, step: int) -> dict[str, float]:
    """Gradient norm, GDV, GDE, bias and noise scale at the present weights.

    Mini-batches of the training size are drawn afresh from the probe's own stream.

    Args:
        model: The model, uncompiled, at its present rates.
        objective: The training objective.
        plan: The run's plan.
        step: Optimizer steps done; names the streams.

    Returns:
        The ``probe/`` metrics; one that is undefined here is left out.

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
    names = ("gdv", "gde", "gradient_norm", "bias", "bias_floor", "bias_corrected", "noise_scale")
    return {f"probe/{name}": value for name in names if (value := getattr(report, name)) is not None}
