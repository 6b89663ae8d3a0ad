"""Every metric of a run, once: its name in ``metrics.jsonl``, its words, its digits, which way is better, and where it is shown.

Records, tables, figures, claims, the dashboard and early stopping read it here. A gradient measure (`earlydrop.gradients.MEASURES`) that
has a line ``probe/<name>`` here is recorded at every probe.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: Its key in ``metrics.jsonl``.
        label: Its words, for an axis.
        heading: Its words above a column; None if no table shows it.
        digits: Decimals in a table.
        better: ``"lower"``, ``"higher"``, or None for neither.
        column: What a table shows of a run: ``"final"`` for the last value, ``"early"`` for the mean over the first fifth.
        figure: File name of its curve in a report; None for none. Of metrics with one file name, the first that was measured is drawn
            (of the two drop rates, the larger).
        claimed: Whether the studies of claims draw its curve.
        watched: Whether every evaluation measures it, so that early stopping can watch it.
        summarised: Whether the dashboard shows its best value.
        printed: Whether the line that ends a run shows it.
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

    @property
    def short(self) -> str:
        """Its name behind a number, such as ``loss`` in "1.9% loss"."""
        last = self.name.rpartition("/")[2]
        return last.upper() if last in ("gdv", "gde", "ece") else last.replace("_", " ")


METRICS = {
    metric.name: metric
    for metric in (  # in the order of tables
        Metric("dropout/unit_rate", "drop rate", figure="drop_rate", claimed=True),
        Metric("dropout/path_rate", "stochastic depth rate", figure="drop_rate"),
        Metric("train/loss", "training loss (running, with dropout)", better="lower", figure="training_loss", claimed=True),
        Metric("train/lr", "learning rate"),
        Metric(
            "train_eval/loss",
            "training loss (evaluation mode)",
            "train_eval loss",
            4,
            "lower",
            "final",
            "train_eval_loss",
            True,
            watched=True,
            summarised=True,
            printed=True,
        ),
        Metric("train_eval/accuracy", "training accuracy (evaluation mode)", better="higher", watched=True),
        Metric("train_clean/loss", "training loss (clean images)", better="lower", watched=True, printed=True),
        Metric("train_clean/accuracy", "training accuracy (clean images)", better="higher", watched=True),
        Metric("test/loss", "test loss", better="lower", watched=True, summarised=True, printed=True),
        Metric(
            "test/accuracy",
            "test accuracy",
            "test accuracy",
            4,
            "higher",
            "final",
            "test_accuracy",
            True,
            watched=True,
            summarised=True,
            printed=True,
        ),
        Metric("ema/test/loss", "test loss of the averaged weights", better="lower"),
        Metric("ema/test/accuracy", "test accuracy of the averaged weights", better="higher", printed=True),
        Metric("ema/train_eval/loss", "training loss of the averaged weights (evaluation mode)", better="lower"),
        Metric("ema/train_eval/accuracy", "training accuracy of the averaged weights (evaluation mode)", better="higher"),
        Metric("ema/train_clean/loss", "training loss of the averaged weights (clean images)", better="lower"),
        Metric("ema/train_clean/accuracy", "training accuracy of the averaged weights (clean images)", better="higher"),
        Metric("probe/gradient_norm", "gradient norm", "early gradient norm", 3, None, "early", "gradient_norm", True),
        Metric("train/gradient_norm", "gradient norm", figure="gradient_norm"),
        Metric("probe/gdv", "gradient direction variance", "early GDV", 4, None, "early", "gdv", True),
        Metric("probe/gde", "gradient direction error", "early GDE", 4, None, "early", "gde", True),
        Metric("probe/bias", "bias of the mean gradient"),
        Metric("probe/bias_floor", "bias of the mean gradient that sampling gives"),
        Metric("probe/bias_corrected", "bias of the mean gradient, corrected for sampling"),
        Metric("probe/noise_scale", "gradient noise scale (images)"),
        Metric("probe/critical_sharpness", "critical sharpness (1 / learning rate)", figure="critical_sharpness"),
        Metric("probe/preconditioned_sharpness", "preconditioned sharpness (1 / learning rate)", figure="sharpness"),
        Metric("probe_on/critical_sharpness", "critical sharpness with dropout on, at the same weights"),
        Metric("probe_on/preconditioned_sharpness", "preconditioned sharpness with dropout on, at the same weights"),
        Metric("probe_off/critical_sharpness", "critical sharpness with dropout off, at the same weights"),
        Metric("probe_off/preconditioned_sharpness", "preconditioned sharpness with dropout off, at the same weights"),
        Metric("probe_on/gradient_norm", "gradient norm with dropout on, at the same weights"),
        Metric("probe_on/gdv", "gradient direction variance with dropout on, at the same weights"),
        Metric("probe_on/gde", "gradient direction error with dropout on, at the same weights"),
        Metric("probe_off/gradient_norm", "gradient norm with dropout off, at the same weights"),
        Metric("probe_off/gdv", "gradient direction variance with dropout off, at the same weights"),
        Metric("probe_off/gde", "gradient direction error with dropout off, at the same weights"),
        Metric("model/distance", "model distance", "early distance", 3, None, "early", "model_distance", True),
        Metric("test_mc/loss", "test loss of Monte Carlo dropout", "Monte Carlo NLL", 4, "lower", "final"),
        Metric("test_mc/accuracy", "test accuracy of Monte Carlo dropout", "Monte Carlo accuracy", 4, "higher", "final"),
        Metric("test_mc/ece", "calibration error of Monte Carlo dropout", "Monte Carlo ECE", 4, "lower", "final"),
        Metric("test_mc/mutual_information", "mutual information of Monte Carlo dropout (nats)"),
        Metric("test/ece", "calibration error", "test ECE", 4, "lower", "final"),
    )
}
"""Every metric by its name."""

WATCHED = tuple(name for name, metric in METRICS.items() if metric.watched)
"""What every evaluation measures."""


def is_own(name: str) -> bool:
    """Whether a metric of a run is a measure of somebody's own, taken at the probes."""
    return name not in METRICS and name.startswith("probe/") and name.removeprefix("probe/").isidentifier()


def improved(name: str, value: float, best: float) -> bool:
    """Whether a metric's value is better than the best so far."""
    return value > best if METRICS[name].better == "higher" else value < best
