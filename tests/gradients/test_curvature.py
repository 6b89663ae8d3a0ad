"""Curvature against quadratics whose eigenvalues are known, and against a dense Hessian."""

import math

import pytest
import torch
from torch import nn

from earlydrop.gradients.curvature import (
    adam_direction,
    adam_preconditioner,
    critical_sharpness,
    preconditioned_sharpness,
)

EIGENVALUES = torch.tensor([4.0, 1.0, 0.25, -0.5], dtype=torch.float64)


def quadratic(seed=0, eigenvalues=EIGENVALUES):
    """A quadratic loss with known eigenvalues, its weights in two parameters, and the Hessian."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    hessian = basis @ torch.diag(eigenvalues) @ basis.T
    weights = [
        nn.Parameter(torch.randn(1, 3, generator=generator, dtype=torch.float64)),
        nn.Parameter(torch.randn(1, generator=generator, dtype=torch.float64)),
    ]

    def loss():
        flat = torch.cat([w.reshape(-1) for w in weights])
        return 0.5 * flat @ hessian @ flat

    return loss, weights, hessian, basis


def test_the_critical_sharpness_of_a_quadratic_is_its_curvature_along_the_update():
    loss, weights, hessian, _ = quadratic(eigenvalues=EIGENVALUES.abs())
    gradient = torch.autograd.grad(loss(), weights)
    direction = [2.0 * g + 0.01 for g in gradient]
    flat, slope = (torch.cat([v.reshape(-1) for v in group]) for group in (direction, gradient))
    expected = float(flat @ hessian @ flat / (flat @ slope))
    before = [w.detach().clone() for w in weights]
    for start in (1e-4, 1.0, 1e4):
        assert critical_sharpness(loss, weights, direction, start) == pytest.approx(
            expected, rel=1e-3
        )
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))


def test_along_an_eigenvector_it_is_the_eigenvalue():
    loss, weights, _, basis = quadratic(eigenvalues=EIGENVALUES.abs())
    for i, value in enumerate(EIGENVALUES.abs()):
        with torch.no_grad():
            weights[0].copy_(basis[:3, i].reshape(1, 3))
            weights[1].copy_(basis[3:, i])
        gradient = torch.autograd.grad(loss(), weights)
        assert critical_sharpness(loss, weights, gradient, 0.1) == pytest.approx(
            float(value), rel=1e-3
        )


def test_a_direction_that_always_lowers_or_raises_the_loss():
    weight = nn.Parameter(torch.tensor([1.0]))
    assert critical_sharpness(lambda: weight.sum(), [weight], [torch.ones(1)], 0.1) == 0.0
    assert critical_sharpness(lambda: weight.sum(), [weight], [-torch.ones(1)], 0.1) == math.inf
    assert weight.item() == 1.0


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_the_largest_eigenvalue_with_and_without_a_preconditioner(shift):
    """Also where the eigenvalue of largest size is negative."""
    loss, weights, hessian, _ = quadratic(eigenvalues=EIGENVALUES + shift)
    value = preconditioned_sharpness(loss(), weights, iterations=2000, tolerance=1e-12)
    assert value == pytest.approx(4.0 + shift, rel=1e-6)
    diagonal = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
    parts = [diagonal[:3].reshape(1, 3), diagonal[3:]]
    root = torch.diag(diagonal.rsqrt())
    expected = float(torch.linalg.eigvalsh(root @ hessian @ root)[-1])
    value = preconditioned_sharpness(loss(), weights, parts, iterations=5000, tolerance=1e-13)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smallest", [-1.0, -0.99, -1.01, -0.9])
def test_eigenvalues_of_about_equal_size_and_opposite_sign_are_told_apart(smallest):
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    eigenvalues = torch.tensor([1.0, smallest, 0.2], dtype=torch.float64)
    loss = (eigenvalues * weights.square()).sum() / 2
    assert preconditioned_sharpness(loss, [weights]) == pytest.approx(1.0, rel=0.01)


def test_a_parameter_that_the_loss_does_not_use_changes_nothing():
    loss, weights, _, _ = quadratic()
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    found = preconditioned_sharpness(
        loss(),
        [unused, *weights],
        iterations=3000,
        tolerance=1e-12,
    )
    assert found == pytest.approx(float(EIGENVALUES.max()), rel=1e-5)


def test_a_network_against_its_dense_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randint(2, (16,))
    names, values = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([v.detach().reshape(-1) for v in values])

    def at(vector):
        parts = vector.split([v.numel() for v in values])
        state = {name: p.reshape(v.shape) for name, p, v in zip(names, parts, values, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    dense = torch.autograd.functional.hessian(at, flat)
    expected = float(torch.linalg.eigvalsh(dense)[-1])
    loss = nn.functional.cross_entropy(model(x), y)
    found = preconditioned_sharpness(
        loss, list(model.parameters()), iterations=3000, tolerance=1e-12
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_direction_is_the_step_that_it_takes_and_its_preconditioner_divides_the_momentum(
    kind,
):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = kind([weight], lr=0.01, weight_decay=0.0, eps=1e-3)
    for _ in range(3):
        weight.grad = torch.randn(5, dtype=torch.float64)
        before = weight.detach().clone()
        optimizer.step()
    (direction,) = adam_direction(optimizer, [weight])
    assert not torch.equal(direction, adam_direction(optimizer, [weight], [weight.grad])[0])
    torch.testing.assert_close(before - 0.01 * direction, weight.detach())
    (diagonal,) = adam_preconditioner(optimizer, [weight])
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"] / diagonal, direction)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_direction_with_gradients_is_the_next_step_and_changes_no_state(kind):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = kind([weight], lr=0.01, weight_decay=0.0, eps=1e-3, betas=(0.8, 0.95))
    for _ in range(3):
        weight.grad = torch.randn(5, dtype=torch.float64)
        optimizer.step()
    gradient = torch.randn(5, dtype=torch.float64)
    (direction,) = adam_direction(optimizer, [weight], [gradient])
    before = weight.detach().clone()
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(before - 0.01 * direction, weight.detach())


def test_what_cannot_be_measured_is_refused():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="start is 0: expected a finite learning rate above 0"):
        critical_sharpness(lambda: weight.sum(), [weight], [torch.ones(2)], 0)
    with pytest.raises(ValueError, match=r"shapes \[\(3,\)\] and the parameters \[\(2,\)\]"):
        critical_sharpness(lambda: weight.sum(), [weight], [torch.ones(3)], 0.1)
    with pytest.raises(ValueError, match="the loss at the present weights is nan"):
        critical_sharpness(lambda: weight.sum() * math.nan, [weight], [torch.ones(2)], 0.1)
    with pytest.raises(ValueError, match="does not depend on the parameters: its curvature is 0"):
        preconditioned_sharpness(weight.sum(), [weight])
    with pytest.raises(ValueError, match="preconditioner has entries that are not positive"):
        preconditioned_sharpness(weight.square().sum(), [weight], [torch.zeros(2)])
    with pytest.raises(ValueError, match="the optimizer is SGD: expected Adam or AdamW"):
        adam_direction(torch.optim.SGD([weight], lr=0.1), [weight])
    with pytest.raises(ValueError, match="has taken no step with a parameter"):
        adam_direction(torch.optim.Adam([weight]), [weight])
    weight.square().sum().backward()
    for option in ("amsgrad", "maximize"):
        optimizer = torch.optim.Adam([weight], **{option: True})
        optimizer.step()
        with pytest.raises(ValueError, match=f"{option}=True: expected Adam or AdamW without it"):
            adam_direction(optimizer, [weight])


def test_the_sharpness_of_a_flat_loss_is_zero():
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert critical_sharpness(lambda: weight.sum() * 0, [weight], [torch.ones(2)], 0.1) == 0.0
    assert preconditioned_sharpness((weight * 0).square().sum(), [weight]) == 0.0


def test_small_eigenvalues_scale_the_sharpness():
    loss, weights, _, _ = quadratic(eigenvalues=1e-4 * EIGENVALUES)
    value = preconditioned_sharpness(loss(), weights, iterations=2000, tolerance=1e-12)
    assert value == pytest.approx(4e-4, rel=1e-6)


@pytest.mark.parametrize(
    "shapes", [[(2,)], [(2,), (1,), (1,)], [(1,), (1,)], [(2,), (2,)]], ids=str
)
def test_a_preconditioner_of_other_shapes_is_refused(shapes):
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
    loss = sum((weight**4).sum() for weight in weights)
    with pytest.raises(ValueError, match="the preconditioner has the shapes"):
        preconditioned_sharpness(loss, weights, [torch.ones(shape) for shape in shapes])


def test_a_preconditioner_of_nan_is_refused():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="entries that are not positive"):
        preconditioned_sharpness((weight**4).sum(), [weight], [torch.tensor([1.0, math.nan])])
