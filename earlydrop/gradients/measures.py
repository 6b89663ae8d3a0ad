"""The gradient measures: a pure function for each, and a field of its name in `GradientReport`.

Given gradients g₁ … g_N at one set of weights with directions uᵢ = gᵢ/‖gᵢ‖, and the whole-dataset
gradient ĝ with direction d:

- gradient norm: the mean of ‖gᵢ‖₂;
- gradient direction variance (GDV, Liu et al. 2023, section 3, equation 1):
  2/(N(N−1)) · Σ_{i<j} ½(1 − cos(gᵢ, gⱼ));
- gradient direction error (GDE, equation 2): 1/N · Σ ½(1 − cos(gᵢ, ĝ));
- bias: ½(1 − cos(ḡ, ĝ)) of the mean gradient ḡ, and its value from sampling alone (ours);
- gradient noise scale (McCandlish et al. 2018, arXiv:1812.06162, the simple one): tr Σ / ‖G‖²,
  with Σ per example.

To add a measure, write a function of `Moments` here, add its field to `GradientReport`, and add its
line to `earlydrop.metrics`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from earlydrop.display import number, rows_as_html, rows_as_text


@dataclass(frozen=True)
class Moments:
    """Sums over N gradients (`earlydrop.gradients.sums`), with wᵢ = gᵢ − ĝ and vᵢ = gᵢ/‖gᵢ‖ − d.

    Without a whole-dataset gradient the first gradient takes the place of ĝ in wᵢ and vᵢ, and
    `bias` and `dataset_gradient_norm` are None.

    Attributes:
        n: N, at least 2.
        norms: Σ ‖gᵢ‖.
        inverse_images: Σ 1/bᵢ, with bᵢ the images of the i-th mini-batch.
        spread: Σ ‖vᵢ‖².
        spread_of_sum: ‖Σ vᵢ‖².
        deviation: Σ ‖wᵢ‖².
        deviation_of_sum: ‖Σ wᵢ‖².
        mean_square: ‖ḡ‖², of the mean gradient.
        along: ḡ · d.
        bias: ½(1 − cos(ḡ, ĝ)); None also if ḡ is 0.
        dataset_gradient_norm: ‖ĝ‖.
    """

    n: int
    norms: float
    inverse_images: float
    spread: float
    spread_of_sum: float
    deviation: float
    deviation_of_sum: float
    mean_square: float
    along: float
    bias: float | None
    dataset_gradient_norm: float | None

    @property
    def variance(self) -> float:
        """Trace of the covariance of the mini-batch gradients, unbiased."""
        spread = self.n * self.deviation - self.deviation_of_sum
        return max(0.0, spread / (self.n * (self.n - 1)))

    @property
    def true_square(self) -> float | None:
        """Unbiased estimate of ‖E g‖²; None where the estimate is not above 0."""
        square = self.mean_square - self.variance / self.n
        return square if square > 0 else None


def gradient_norm(m: Moments) -> float:
    """Mean norm of the mini-batch gradients (Liu et al. 2023, section 3)."""
    return m.norms / m.n


def gdv(m: Moments) -> float:
    """Gradient direction variance, in [0, 1] (Liu et al. 2023, equation 1).

    It is 0 for equal directions and ½ for orthogonal ones.
    """
    return max(0.0, (m.n * m.spread - m.spread_of_sum) / (2 * m.n * (m.n - 1)))


def gde(m: Moments) -> float | None:
    """Gradient direction error against the whole-dataset gradient, in [0, 1].

    Liu et al. 2023, equation 2.
    """
    return m.spread / (4 * m.n) if m.dataset_gradient_norm is not None else None


def bias(m: Moments) -> float | None:
    """½(1 − cos) of the mean mini-batch gradient and the whole-dataset gradient (ours).

    Sampling makes it positive for unbiased gradients too; see `bias_floor`.
    """
    return m.bias


def bias_floor(m: Moments) -> float | None:
    """The `bias` that unbiased gradients with the same variance would show (ours).

    None where the noise exceeds the mean gradient.
    """
    if m.dataset_gradient_norm is None or m.true_square is None:
        return None
    excess = m.variance / m.n / m.mean_square
    return 0.5 * excess / (1.0 + math.sqrt(1.0 - excess))


def bias_corrected(m: Moments) -> float | None:
    """`bias` without the sampling noise in ‖ḡ‖ (ours).

    For unbiased gradients it is near 0, and it may be slightly negative.
    """
    if m.dataset_gradient_norm is None or m.true_square is None:
        return None
    return 0.5 * (1.0 - m.along / math.sqrt(m.true_square))


def noise_scale(m: Moments) -> float | None:
    """Gradient noise scale in images (McCandlish et al. 2018).

    With dropout it includes the noise of the masks. None where the noise exceeds the mean gradient.
    """
    if m.true_square is None:
        return None
    return m.variance * m.n / m.inverse_images / m.true_square


def dataset_gradient_norm(m: Moments) -> float | None:
    """Norm of the whole-dataset gradient."""
    return m.dataset_gradient_norm


@dataclass(frozen=True)
class GradientReport:
    """Gradient measures at one set of weights. It prints as a table.

    A measure that could not be taken is None.

    Attributes:
        gdv: Gradient direction variance, in [0, 1] (Liu et al. 2023, equation 1).
        gde: Gradient direction error against the whole-dataset gradient, in [0, 1] (equation 2).
        gradient_norm: Mean norm of the mini-batch gradients.
        bias: ½(1 − cos) of the mean mini-batch gradient and the whole-dataset gradient (ours).
        bias_floor: The `bias` that unbiased gradients with the same variance would show (ours).
        bias_corrected: `bias` without the sampling noise (ours).
        noise_scale: Gradient noise scale, in images (McCandlish et al. 2018).
        dataset_gradient_norm: Norm of the whole-dataset gradient.
        gradients: Number of mini-batch gradients.
        images: Number of images behind them.
        dataset_images: Number of images behind the whole-dataset gradient.
        further: Additional measures of the caller, by name; None if there were none.
    """

    gdv: float
    gde: float | None
    gradient_norm: float
    bias: float | None
    bias_floor: float | None
    bias_corrected: float | None
    noise_scale: float | None
    dataset_gradient_norm: float | None
    gradients: int
    images: int
    dataset_images: int | None
    further: Mapping[str, float | None] | None = None

    def _rows(self) -> list[tuple[str, str]]:
        """Each measure that was taken: its name, and its value as text."""
        fields = dataclasses.fields(self)
        values = {f.name: getattr(self, f.name) for f in fields if f.name != "further"}
        values |= dict(self.further or {})
        taken = {name: value for name, value in values.items() if value is not None}
        return [(name.replace("_", " "), number(value)) for name, value in taken.items()]

    def __str__(self) -> str:
        return rows_as_text(self._rows())

    def _repr_html_(self) -> str:
        return rows_as_html(self._rows(), ("measure", "value"))


MEASURES: dict[str, Callable[[Moments], float | None]] = {
    field.name: globals()[field.name]
    for field in dataclasses.fields(GradientReport)
    if field.name in globals()
}
"""Every measure by its name: the functions of this file that are a field of `GradientReport`.

The name is a field of `GradientReport`, and ``probe/<name>`` in the metrics of a run where
`earlydrop.metrics` has it.
"""
