"""Curvature of the loss, in units of 1 / learning rate.

`critical_sharpness` needs 15 to 54 forward passes, `preconditioned_sharpness` some Hessian-vector
products. Both leave the weights and gradients as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from earlydrop.exact import exact_norm

_DOUBLINGS = 40
_HALVINGS = 16
"""Smaller steps than 2**-16 of the start change 32-bit weights by little more than rounding."""
_MIXTURE = 0.97
"""Below this ratio of the Rayleigh quotient to its bound, a vector counts as no eigenvector."""
_BISECTIONS = 12
"""After 12 bisections, the ends of the bracket differ by 0.02%."""


@torch.no_grad()
def critical_sharpness(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    start: float,
) -> float:
    """Measure 2 over the smallest learning rate at which an update raises the loss.

    The update of a step is ``- learning rate * direction``. Where the loss is quadratic along it,
    the result is the curvature ``d'Hd / d'g`` of the direction d with gradient g. For gradient
    descent along an eigenvector it is the eigenvalue. Training is unstable where the learning rate
    is above 2 over the result.

    Args:
        loss: A function that returns the loss at the present weights, a scalar. It must return the
            same value at every call: if the model drops, set the seed inside it.
        parameters: The weights that the update changes.
        direction: The update per unit of the learning rate: for each parameter, a tensor of its
            shape.
        start: The learning rate to start the search from.

    Returns:
        The critical sharpness, per unit of the learning rate. It is 0 where no learning rate up to
        ``start`` times 2**40 raises the loss, and infinite where even ``start`` over 2**16 does.

    Raises:
        ValueError: The starting learning rate is not positive and finite, the direction does not
            fit the parameters, or the loss is not finite at the present weights.

    Source: Kalra et al. 2026, arXiv:2601.16979.
    """
    if not start > 0 or not math.isfinite(start):
        raise ValueError(f"start is {start}: expected a finite learning rate above 0")
    _check_shapes("direction", direction, parameters)
    weights = [p.detach().clone() for p in parameters]
    base = float(loss())
    if not math.isfinite(base):
        raise ValueError(f"the loss at the present weights is {base}: expected a finite number")

    def raises(rate: float) -> bool:
        for parameter, weight, step in zip(parameters, weights, direction, strict=True):
            parameter.copy_(weight - rate * step)
        return not float(loss()) <= base

    try:
        low, high = _bracket(raises, start)
        if not 0 < high < math.inf:
            return math.inf if high == 0 else 0.0
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if raises(middle) else (middle, high)
    finally:
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)
    return 2.0 / math.sqrt(low * high)


def _bracket(raises: Callable[[float], bool], start: float) -> tuple[float, float]:
    """Learning rates, one the double of the other, between which the loss begins to rise."""
    rate = start
    if raises(rate):
        for _ in range(_HALVINGS):
            rate /= 2
            if not raises(rate):
                return rate, 2 * rate
        return 0.0, 0.0
    for _ in range(_DOUBLINGS):
        rate *= 2
        if raises(rate):
            return rate / 2, rate
    return math.inf, math.inf


def _check_shapes(name: str, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Refuse tensors that do not have the shapes of the parameters."""
    shapes = [tuple(p.shape) for p in parameters], [tuple(t.shape) for t in tensors]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the {name} has the shapes {shapes[1]} and the parameters {shapes[0]}: "
            "expected the same"
        )


def preconditioned_sharpness(
    loss: Tensor,
    parameters: Sequence[Tensor],
    preconditioner: Sequence[Tensor] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> float:
    """The largest eigenvalue of the preconditioned Hessian P^(-1/2) H P^(-1/2), by power iteration.

    It bounds the stable learning rate. Gradient descent preconditioned by P is stable below
    2 / result, Adam with a momentum of 0.9 below 38 / result.

    Args:
        loss: The loss, a scalar with a graph that can be differentiated twice.
        parameters: The weights.
        preconditioner: The diagonal of P: for each parameter, a positive tensor. None for the plain
            Hessian.
        iterations: The largest number of Hessian-vector products in one power iteration. A second
            power iteration follows if the first finds a negative eigenvalue, or a mixture of two of
            about equal size and opposite sign. If all are used, the result may be too small.
        tolerance: The relative change of the eigenvalue at which the iteration stops.

    Returns:
        The eigenvalue, per unit of the learning rate.

    Raises:
        ValueError: The preconditioner is not positive or does not fit the parameters, or the
            gradient does not depend on the parameters.

    Source: Cohen et al. 2022, arXiv:2207.14484, and Kalra and Barkeshli 2024, arXiv:2406.09405.
    """
    scales = None
    if preconditioner is not None:
        _check_shapes("preconditioner", preconditioner, parameters)
        if not all(bool((diagonal > 0).all()) for diagonal in preconditioner):
            raise ValueError(
                "the preconditioner has entries that are not positive: "
                "expected sqrt(v) + eps of Adam"
            )
        scales = [diagonal.rsqrt() for diagonal in preconditioner]
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    weights, slopes, scale = [], [], []
    for index, gradient in enumerate(gradients):
        if gradient is not None and gradient.requires_grad:
            weights.append(parameters[index])
            slopes.append(gradient)
            if scales is not None:
                scale.append(scales[index])
    if not weights:
        raise ValueError(
            "the gradient of the loss does not depend on the parameters: "
            "its curvature is 0 everywhere"
        )

    def hessian_product(vector: list[Tensor]) -> list[Tensor]:
        result = torch.autograd.grad(
            slopes, weights, vector, retain_graph=True, materialize_grads=True
        )
        return list(result)

    def product(vector: list[Tensor]) -> list[Tensor]:
        """Multiply a vector by P^(-1/2) H P^(-1/2)."""
        if scales is None:
            return hessian_product(vector)
        scaled = [s * v for s, v in zip(scale, vector, strict=True)]
        return [s * r for s, r in zip(scale, hessian_product(scaled), strict=True)]

    largest, norm = _power_iteration(product, weights, 0.0, iterations, tolerance)
    if largest >= _MIXTURE * norm:
        return largest
    # If the eigenvalue is negative, it is the smallest: shift it to 0 to find the largest. If not,
    # the largest and the smallest have about the same absolute value, and the vector mixes both.
    shift = largest if largest < 0 else -norm
    shifted, _ = _power_iteration(product, weights, shift, iterations, tolerance)
    return shift + shifted


def _power_iteration(
    product: Callable[[list[Tensor]], list[Tensor]],
    like: Sequence[Tensor],
    shift: float,
    iterations: int,
    tolerance: float,
) -> tuple[float, float]:
    """The eigenvalue of H - shift with the largest absolute value, and its bound.

    The first is the Rayleigh quotient v'(H - shift)v of the last vector v of norm 1, the second the
    norm of (H - shift)v. The two are equal in size at an eigenvector. v starts at random, always at
    the same point.
    """
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in like]
    start = _norm(vector)
    vector = [v / start for v in vector]
    value = norm = 0.0
    for _ in range(iterations):
        image = [h - shift * v for h, v in zip(product(vector), vector, strict=True)]
        before, value = value, sum(float((h * v).sum()) for h, v in zip(image, vector, strict=True))
        norm = _norm(image)
        if norm == 0:
            return 0.0, 0.0
        vector = [h / norm for h in image]
        if abs(value - before) <= tolerance * abs(value):
            break
    return value, norm


def _norm(vector: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(exact_norm(v)) ** 2 for v in vector))


def adam_direction(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The next update of Adam or AdamW per unit of the learning rate. It changes no state.

    Args:
        optimizer: ``torch.optim.Adam`` or ``AdamW`` that has taken a step, without ``amsgrad``
            and ``maximize``.
        parameters: The weights, in the order of the result.
        gradients: The gradients of the next update: for each parameter, a tensor of its shape. None
            for the update that the optimizer took last.

    Returns:
        ``m / (sqrt(v) + eps)`` for each parameter, with bias-corrected m and v. The weight decay of
        AdamW is not in it. Adam adds its weight decay to the gradients, so its m and v include it;
        add it to ``gradients`` as well.

    Raises:
        ValueError: The optimizer is another, has one of these options or has taken no step.
    """
    moments = _adam_state(optimizer, parameters)
    if gradients is not None:
        moments = [state.after(g) for state, g in zip(moments, gradients, strict=True)]
    return [state.momentum / state.diagonal() for state in moments]


def adam_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> list[Tensor]:
    """The diagonal of Adam's preconditioner, ``(1 - beta1**t) (sqrt(v) + eps)``.

    Args:
        optimizer: As for `adam_direction`.
        parameters: The weights, in the order of the result.

    Returns:
        A tensor for each parameter, of its shape.

    Raises:
        ValueError: As for `adam_direction`.

    Source: Cohen et al. 2022, equation 2.
    """
    return [state.diagonal() for state in _adam_state(optimizer, parameters)]


@dataclass(frozen=True)
class _Moments:
    """Adam's state of one parameter, after ``steps`` steps."""

    momentum: Tensor
    second: Tensor
    steps: float
    beta1: float
    beta2: float
    eps: float

    def after(self, gradient: Tensor) -> _Moments:
        """The state after one more step, with this gradient."""
        return replace(
            self,
            momentum=self.beta1 * self.momentum + (1 - self.beta1) * gradient,
            second=self.beta2 * self.second + (1 - self.beta2) * gradient.square(),
            steps=self.steps + 1,
        )

    def diagonal(self) -> Tensor:
        """The preconditioner: the momentum divided by it is the update, per learning rate."""
        corrected = self.second / (1 - self.beta2**self.steps)
        diagonal: Tensor = (1 - self.beta1**self.steps) * (corrected.sqrt() + self.eps)
        return diagonal


def _adam_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> list[_Moments]:
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        raise ValueError(f"the optimizer is {type(optimizer).__name__}: expected Adam or AdamW")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    moments = []
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        if "exp_avg" not in state:
            raise ValueError(
                "the optimizer has taken no step with a parameter: call optimizer.step() first, "
                "and give only parameters that it trains"
            )
        group = groups[id(parameter)]
        for option in ("amsgrad", "maximize"):
            if group[option]:
                raise ValueError(
                    f"the optimizer has {option}=True: expected Adam or AdamW without it"
                )
        beta1, beta2 = group["betas"]
        moments.append(
            _Moments(
                momentum=state["exp_avg"],
                second=state["exp_avg_sq"],
                steps=float(state["step"]),
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
            )
        )
    return moments
