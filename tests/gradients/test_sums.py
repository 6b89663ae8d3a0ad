import math

import pytest
import torch

from earlydrop import GradientSums, MeanGradient


def brute_force(gradients, dataset, batch_sizes):
    g = torch.stack([x.double() for x in gradients])
    n = len(g)
    u = g / g.norm(dim=1, keepdim=True)
    cosines = u @ u.T
    pairs = torch.triu_indices(n, n, 1)
    d = dataset.double() / dataset.double().norm()
    mean = g.mean(0)
    gram = g @ g.T
    true_square = (gram.sum() - gram.trace()) / (n * (n - 1))
    noise = sum((g[i] @ g[i]) - true_square for i in range(n)) / sum(1 / b for b in batch_sizes)
    return {
        "gradient_norm": g.norm(dim=1).mean(),
        "gdv": (0.5 * (1 - cosines[pairs[0], pairs[1]])).mean(),
        "gde": (0.5 * (1 - u @ d)).mean(),
        "bias": 0.5 * (1 - mean @ d / mean.norm()),
        "bias_floor": 0.5 * (1 - true_square.sqrt() / mean.norm()),
        "bias_corrected": 0.5 * (1 - mean @ d / true_square.sqrt()),
        "noise_scale": noise / true_square,
        "dataset_gradient_norm": dataset.double().norm(),
    }


def sums_of(gradients, dataset=None, batch_sizes=None):
    sums = GradientSums(None if dataset is None else dataset.clone())
    for i, gradient in enumerate(gradients):
        sums.add(
            [gradient[:7].view(7, 1), gradient[7:]], images=batch_sizes[i] if batch_sizes else 1
        )
    return sums


@pytest.mark.oldest
@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("sizes", [[32] * 16, [32] * 15 + [5]])
@pytest.mark.parametrize("length", [50, 300_001])
def test_against_float64_brute_force(spread, sizes, length):
    direction = torch.randn(length)
    gradients = [direction + spread * torch.randn(length) for _ in sizes]
    dataset = direction + 0.05 * torch.randn(length)
    report = sums_of(gradients, dataset, sizes).report()
    for name, expected in brute_force(gradients, dataset, sizes).items():
        if math.isnan(expected):
            assert getattr(report, name) is None
        else:
            assert getattr(report, name) == pytest.approx(
                expected.item(), rel=2e-6, abs=1e-8 if name.startswith("bias_") else 0
            ), name
    without = sums_of(gradients).report()
    assert without.gdv == pytest.approx(report.gdv, rel=2e-6)
    assert without.gde is None
    assert without.bias is None


def test_identical_orthogonal_and_opposite_gradients_give_0_half_and_1():
    a, b = torch.eye(9)[:2] * torch.tensor([[3.0], [0.2]])
    for gradients, dataset, gdv, gde in (
        ([a, a, a], a, 0, 0),
        ([a, b], torch.eye(9)[5], 0.5, 0.5),
        ([a, -a], a, 1, 0.5),
        ([-a, -7 * a], a, 0, 1),
    ):
        report = sums_of(gradients, dataset.clone()).report()
        assert report.gdv == pytest.approx(gdv, abs=1e-12)
        assert report.gde == pytest.approx(gde, abs=1e-12)


def test_unresolved_mean_has_no_noise_scale():
    report = sums_of([torch.eye(9)[0], torch.eye(9)[1], -torch.eye(9)[0]], torch.eye(9)[0]).report()
    assert report.noise_scale is None
    assert report.bias_floor is None
    assert report.bias_corrected is None


def test_the_noise_scale_finds_a_known_one():
    true, sigma, batch = torch.full((400,), 0.5), 2.0, 8
    gradients = [true + sigma / batch**0.5 * torch.randn(400) for _ in range(500)]
    report = sums_of(gradients, true, [batch] * 500).report()
    assert report.noise_scale == pytest.approx(
        400 * sigma**2 / true.square().sum().item(), rel=0.05
    )
    assert report.bias > 0
    assert report.bias == pytest.approx(report.bias_floor, abs=2e-3)
    assert report.bias_corrected == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("with_dataset", [True, False])
def test_partial_sums_of_workers_combine_to_the_same_numbers(with_dataset):
    direction = torch.randn(60)
    gradients = [direction + torch.randn(60) for _ in range(12)]
    dataset = direction if with_dataset else None
    whole = sums_of(gradients, dataset).report()
    for workers in (3, 12):  # 4 gradients each, and 1 each
        parts = [sums_of(gradients[i::workers], dataset) for i in range(workers)]
        empty = GradientSums(None if dataset is None else dataset.clone())
        for part in parts:
            empty.merge(part)
        combined = empty.report()
        for name, value in vars(whole).items():
            assert vars(combined)[name] == (
                value if value is None else pytest.approx(value, rel=1e-6)
            ), name


def test_gradients_that_cancel_have_no_mean_direction():
    direction = torch.tensor([3.0, 4.0])
    sums = GradientSums(torch.tensor([1.0, 0.0]))
    sums.add([direction])
    sums.add([-direction])
    report = sums.report()
    assert report.bias is None
    assert report.noise_scale is None
    assert report.gdv == pytest.approx(1.0)
    assert report.gde == pytest.approx(0.5)


def test_bfloat16_gradients_are_summed_in_float32():
    direction = torch.randn(5_000)
    gradients = [(direction + torch.randn(5_000)).bfloat16() for _ in range(64)]
    sums = sums_of(gradients, direction.clone())
    assert {held.dtype for held in vars(sums).values() if isinstance(held, torch.Tensor)} == {
        torch.float32
    }
    expected = brute_force([g.float() for g in gradients], direction, [1] * 64)
    assert sums.report().gdv == pytest.approx(expected["gdv"].item(), rel=2e-6)
    mean = MeanGradient()
    for g in gradients:
        mean.add([g], images=2)
    assert torch.allclose(
        mean.value(), torch.stack(gradients).float().mean(0), rtol=1e-5, atol=1e-6
    )


def test_memory_does_not_grow_with_the_number_of_gradients():
    sums = GradientSums(torch.randn(1_000))
    for _ in range(50):
        sums.add([torch.randn(1_000)])
    held = [t for t in vars(sums).values() if isinstance(t, torch.Tensor)]
    assert sum(t.numel() for t in held) == 3_000


def infinite_mean():
    mean = MeanGradient()
    mean.add([torch.tensor([float("inf")])], 1)
    return mean


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: sums_of([torch.ones(9)]).report(), "at least 2 mini-batch gradients, got 1"),
        (lambda: sums_of([torch.zeros(9)]), "gradient 0 is zero"),
        (lambda: sums_of([torch.ones(9), torch.full((9,), float("nan"))]), "gradient 1 holds NaN"),
        (lambda: GradientSums(torch.zeros(9)), "norm 0"),
        (
            lambda: sums_of([torch.ones(9), torch.ones(10)]),
            "10 entries, those before had 9.*changed shape",
        ),
        (lambda: infinite_mean().value(), "NaN or infinity"),
        (lambda: MeanGradient().value(), "no batches"),
        (lambda: MeanGradient().add([torch.ones(2)], images=0), "has 0 images: expected at least"),
        (lambda: GradientSums().add([torch.ones(2)], images=0), "has 0 images: expected at least"),
        (
            lambda: GradientSums().add([None, None], like=[torch.ones(2)] * 2),
            "every gradient is None",
        ),
        (
            lambda: GradientSums().add([torch.ones(3)], like=[torch.ones(2)]),
            r"shape \(3,\), its parameter \(2,\)",
        ),
        (
            lambda: sums_of([torch.ones(9)] * 2).merge(sums_of([torch.ones(8)] * 2)),
            "8 entries in one and 9",
        ),
        (  # sums that hold only the gradient of the dataset
            lambda: GradientSums(torch.ones(8)).merge(sums_of([torch.ones(9)], torch.ones(9))),
            "9 entries in one and 8",
        ),
        (
            lambda: GradientSums(torch.ones(1)).merge(sums_of([torch.ones(9)], torch.ones(9))),
            "9 entries in one and 1",
        ),
    ],
)
def test_bad_input(act, says):
    with pytest.raises(ValueError, match=says):
        act()


def test_measures_of_the_callers_own_stand_beside_ours():
    torch.manual_seed(0)
    sums = GradientSums()
    gradients = [torch.randn(5) for _ in range(3)]
    for gradient in gradients:
        sums.add([gradient])
    report = sums.report(
        {"mean": lambda moments: moments.norms / moments.n, "absent": lambda moments: None}
    )
    assert report.further == {
        "mean": pytest.approx(float(torch.stack(gradients).norm(dim=1).mean())),
        "absent": None,
    }
    assert sums.report().further is None


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_a_whole_dataset_gradient_without_a_direction_is_refused(value):
    with pytest.raises(ValueError, match=rf"has norm {value}: its direction is undefined"):
        GradientSums(torch.tensor([value, 0.0]))


def test_a_mean_gradient_of_zero_has_no_bias():
    """The two gradients cancel: the sum has no direction, and no estimate of ‖E g‖² is above 0."""
    sums = GradientSums(torch.tensor([1.0, 0.0]))
    for gradient in ([2.0, 1.0], [-2.0, -1.0]):
        sums.add([torch.tensor(gradient)])
    report = sums.report()
    assert (report.bias, report.bias_corrected, report.bias_floor) == (None, None, None)
    assert report.noise_scale is None
    assert report.gradient_norm == pytest.approx(math.sqrt(5))
    assert report.gde == pytest.approx(0.5)
