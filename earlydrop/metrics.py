"""The metrics of a run: name in ``metrics.jsonl``, label, digits and uses of each.

Records, tables, figures, claims, the dashboard and early stopping read this list. A gradient
measure (`earlydrop.gradients.MEASURES`) with an entry ``probe/<name>`` here is recorded at every
probe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Its key in ``metrics.jsonl``.
        label: Its label on an axis.
        heading: Its heading in a table; None if no table has it.
        digits: Decimals in a table.
        better: ``"lower"``, ``"higher"``, or None for neither.
        column: The value of a run in a table: ``"final"`` for the last value, ``"early"`` for the
            mean over the first fifth of the run.
        figure: File name of its curve in a report; None for none. If several metrics share a file
            name, the first one that was measured is drawn. The two drop rates are an exception:
            the larger rate of each step is drawn.
        claimed: Whether the studies of claims draw its curve.
        watched: Whether early stopping can watch it. Every evaluation of its split measures it.
        summarised: Whether the dashboard shows its best value.
        printed: Whether the line that ends a run shows it.
        unit: Its unit, or the scale that it is read on; None for none.
        meaning: A sentence that defines it, for a reader of a table; None for none.
    """

    name: str
    label: str
    heading: str | None = None
    digits: int = 4
    better: str | None = None
    column: str | None = None
    figure: str | None = None
    claimed: bool = False
    watched: bool = False
    summarised: bool = False
    printed: bool = False
    unit: str | None = None
    meaning: str | None = None

    @property
    def short(self) -> str:
        """Its name after a number, such as ``loss`` in "1.9% loss"."""
        last = self.name.rpartition("/")[2]
        return last.upper() if last in ("gdv", "gde", "ece") else last.replace("_", " ")

    @property
    def axis(self) -> str:
        """Its label with its unit, such as "model distance ‖W − W₀‖₂"."""
        if self.unit is None:
            return self.label
        symbol = self.unit.startswith("‖")
        return f"{self.label} {self.unit}" if symbol else f"{self.label}, {self.unit}"


_NATS, _CORRECT = "nats", "fraction correct"
_DIRECTIONS = "0 equal, ½ orthogonal"
_ON, _OFF = "with dropout on, at the same weights", "with dropout off, at the same weights"

_RATES = (
    Metric(
        "dropout/unit_rate",
        "drop rate",
        figure="drop_rate",
        claimed=True,
        unit="probability",
        meaning="The probability that a unit is dropped, at the site with the largest rate.",
    ),
    Metric(
        "dropout/path_rate",
        "stochastic depth rate",
        figure="drop_rate",
        unit="probability",
        meaning="The probability that a residual branch is dropped, at the site with the largest "
        "rate.",
    ),
)
_LOSSES = (
    Metric(
        "train/loss",
        "training loss (running, with dropout)",
        better="lower",
        figure="training_loss",
        claimed=True,
        unit=_NATS,
        meaning="Mean loss of the batches since the last record, under that arm's own dropout.",
    ),
    Metric("train/lr", "learning rate"),
    Metric(
        "train_eval/loss",
        "training loss (evaluation mode)",
        heading="train_eval loss",
        better="lower",
        column="final",
        figure="train_eval_loss",
        claimed=True,
        watched=True,
        summarised=True,
        printed=True,
        unit=_NATS,
        meaning="Loss on the training set in evaluation mode, without dropout, under the training "
        "objective: the training loss that arms are compared by.",
    ),
    Metric(
        "train_eval/accuracy",
        "training accuracy (evaluation mode)",
        better="higher",
        watched=True,
        unit=_CORRECT,
    ),
    Metric(
        "train_clean/loss",
        "training loss (clean images)",
        better="lower",
        watched=True,
        printed=True,
        unit=_NATS,
    ),
    Metric(
        "train_clean/accuracy",
        "training accuracy (clean images)",
        better="higher",
        watched=True,
        unit=_CORRECT,
    ),
    Metric(
        "test/loss",
        "test loss",
        better="lower",
        watched=True,
        summarised=True,
        printed=True,
        unit=_NATS,
    ),
    Metric(
        "test/accuracy",
        "test accuracy",
        heading="test accuracy",
        better="higher",
        column="final",
        figure="test_accuracy",
        claimed=True,
        watched=True,
        summarised=True,
        printed=True,
        unit=_CORRECT,
        meaning="Fraction of the test set that is classified correctly, without dropout.",
    ),
)
_AVERAGED = (
    Metric("ema/test/loss", "test loss of the averaged weights", better="lower"),
    Metric(
        "ema/test/accuracy",
        "test accuracy of the averaged weights",
        better="higher",
        printed=True,
    ),
    Metric(
        "ema/train_eval/loss",
        "training loss of the averaged weights (evaluation mode)",
        better="lower",
    ),
    Metric(
        "ema/train_eval/accuracy",
        "training accuracy of the averaged weights (evaluation mode)",
        better="higher",
    ),
    Metric(
        "ema/train_clean/loss",
        "training loss of the averaged weights (clean images)",
        better="lower",
    ),
    Metric(
        "ema/train_clean/accuracy",
        "training accuracy of the averaged weights (clean images)",
        better="higher",
    ),
)
_GRADIENTS = (
    Metric(
        "probe/gradient_norm",
        "gradient norm",
        heading="early gradient norm",
        digits=3,
        column="early",
        figure="gradient_norm",
        claimed=True,
        unit="‖g‖₂",
        meaning="Mean L2 norm of the gradients of mini-batches at frozen weights.",
    ),
    Metric("train/gradient_norm", "gradient norm", figure="gradient_norm", unit="‖g‖₂"),
    Metric(
        "probe/gdv",
        "gradient direction variance",
        heading="early GDV",
        column="early",
        figure="gdv",
        claimed=True,
        unit=_DIRECTIONS,
        meaning="Gradient direction variance: how much the gradients of several mini-batches "
        "disagree in direction. Mean of ½(1 − cosine) over their pairs.",
    ),
    Metric(
        "probe/gde",
        "gradient direction error",
        heading="early GDE",
        column="early",
        figure="gde",
        claimed=True,
        unit=_DIRECTIONS,
        meaning="Gradient direction error: how far the gradient of a mini-batch points away from "
        "the gradient of the whole dataset. Mean of ½(1 − cosine).",
    ),
    Metric("probe/bias", "bias of the mean gradient"),
    Metric("probe/bias_floor", "bias of the mean gradient from sampling alone"),
    Metric("probe/bias_corrected", "bias of the mean gradient, corrected for sampling"),
    Metric("probe/noise_scale", "gradient noise scale (images)"),
    Metric(
        "probe/critical_sharpness",
        "critical sharpness",
        figure="critical_sharpness",
        claimed=True,
        unit="1 / learning rate",
        meaning="2 over the smallest learning rate at which a step along Adam's next update raises "
        "the loss.",
    ),
    Metric(
        "probe/preconditioned_sharpness",
        "preconditioned sharpness",
        figure="preconditioned_sharpness",
        claimed=True,
        unit="1 / learning rate",
        meaning="The largest eigenvalue of the Hessian, preconditioned by Adam.",
    ),
    Metric("probe_on/critical_sharpness", f"critical sharpness {_ON}"),
    Metric("probe_on/preconditioned_sharpness", f"preconditioned sharpness {_ON}"),
    Metric("probe_off/critical_sharpness", f"critical sharpness {_OFF}"),
    Metric("probe_off/preconditioned_sharpness", f"preconditioned sharpness {_OFF}"),
    Metric("probe_on/gradient_norm", f"gradient norm {_ON}"),
    Metric("probe_on/gdv", f"gradient direction variance {_ON}"),
    Metric("probe_on/gde", f"gradient direction error {_ON}"),
    Metric("probe_off/gradient_norm", f"gradient norm {_OFF}"),
    Metric("probe_off/gdv", f"gradient direction variance {_OFF}"),
    Metric("probe_off/gde", f"gradient direction error {_OFF}"),
    Metric(
        "model/distance",
        "model distance",
        heading="early distance",
        digits=3,
        column="early",
        figure="model_distance",
        claimed=True,
        unit="‖W − W₀‖₂",
        meaning="Model distance: L2 distance of the weights from those at the start.",
    ),
)
_CALIBRATION = (
    Metric(
        "test_mc/loss",
        "test loss of Monte Carlo dropout",
        heading="Monte Carlo NLL",
        better="lower",
        column="final",
        meaning="Test loss of the mean prediction over several passes with dropout on.",
    ),
    Metric(
        "test_mc/accuracy",
        "test accuracy of Monte Carlo dropout",
        heading="Monte Carlo accuracy",
        better="higher",
        column="final",
        meaning="Test accuracy of the mean prediction over several passes with dropout on.",
    ),
    Metric(
        "test_mc/ece",
        "calibration error of Monte Carlo dropout",
        heading="Monte Carlo ECE",
        better="lower",
        column="final",
        meaning="Expected calibration error of the mean prediction over several passes.",
    ),
    Metric(
        "test_mc/mutual_information",
        "mutual information of Monte Carlo dropout (nats)",
    ),
    Metric(
        "test/ece",
        "calibration error",
        heading="test ECE",
        better="lower",
        column="final",
        meaning="Expected calibration error: mean gap between confidence and accuracy.",
    ),
)

_ALL = (*_RATES, *_LOSSES, *_AVERAGED, *_GRADIENTS, *_CALIBRATION)
METRICS = {metric.name: metric for metric in _ALL}
"""Every metric by its name, in the order of tables."""

WATCHED = tuple(name for name, metric in METRICS.items() if metric.watched)
"""The metrics that early stopping can watch."""


RESERVED = frozenset(
    {name.partition("/")[0] for name in METRICS}
    | {"best", "early", "extra", "final", "timing", "trainer"}
)
"""Names that no further test set may have: they begin other columns and metrics."""

_EXTRA = re.compile(r"(?:ema/)?([A-Za-z][A-Za-z0-9_-]*)/(accuracy|loss)")


def extra_metric(name: str) -> Metric | None:
    """The metric of a further test set (``data.extra``) by its name, such as ``v2/accuracy``.

    None if the name does not have this form, or begins with a reserved name. Only the accuracy of
    the trained weights has a column in tables, as for the test set.
    """
    match = _EXTRA.fullmatch(name)
    if match is None or match[1] in RESERVED:
        return None
    accuracy, averaged = match[2] == "accuracy", name.startswith("ema/")
    words = f"{match[1]} {match[2]}"
    return Metric(
        name,
        f"{words} of the averaged weights" if averaged else words,
        heading=words if accuracy and not averaged else None,
        better="higher" if accuracy else "lower",
        column="final" if accuracy and not averaged else None,
        printed=accuracy or not averaged,
        unit=_CORRECT if accuracy else _NATS,
    )


def known_metric(name: str) -> Metric | None:
    """The metric of this name; None if earlydrop has none, as for a measure of the user's own."""
    return METRICS.get(name) or extra_metric(name)


def is_own(name: str) -> bool:
    """Whether a metric of a run is a measure of the user's own, taken at the probes."""
    split, _, measure = name.partition("/")
    at_probes = split in ("probe", "probe_on", "probe_off")
    return name not in METRICS and at_probes and measure.isidentifier()


def improved(name: str, value: float, best: float) -> bool:
    """Whether a metric's value is better than the best so far."""
    return value > best if METRICS[name].better == "higher" else value < best
