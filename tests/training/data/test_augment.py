import math

import pytest
import torch
from timm.data import Mixup

from earlydrop.training.data import augment
from earlydrop.training.streams import stream


def test_every_sample_has_its_own_shift_and_flip():
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 2] = 1
    padded = torch.nn.functional.pad(image, [2] * 4)
    out = augment.shift_and_flip(
        padded, torch.zeros(4_000, dtype=torch.long), 2, True, stream(0, "test")
    )
    assert out.shape == (4_000, 1, 7, 7)
    places = out.flatten(1).argmax(1)
    rows, columns = places // 7, places % 7
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}
    assert set(columns.tolist()) == {
        0,
        1,
        2,
        3,
        4,
        5,
        6,
    }  # 2 or, flipped, 4; each shifted by -2 to 2
    assert len(set(places.tolist())) == 5 * 7  # both directions are drawn on their own
    assert out.sum() == 4_000
    counts = torch.bincount(rows)[1:6]
    assert (counts - 800).abs().max() < 5 * (800 * 0.8) ** 0.5
    clean = augment.shift_and_flip(padded, torch.tensor([0]), 2, True, None)
    assert torch.equal(clean, image)


def test_a_shift_without_flips_moves_whole_images():
    images = torch.randn(40, 2, 5, 6)
    padded = torch.nn.functional.pad(images, [1] * 4)
    moved = augment.shift_and_flip(padded, torch.arange(40), 1, False, stream(0, "test"))
    for image, result in zip(padded, moved, strict=True):
        places = [image[:, y : y + 5, x : x + 6] for y in range(3) for x in range(3)]
        assert any(torch.equal(result, place) for place in places)
    kept = augment.shift_and_flip(images, torch.arange(40), 0, False, stream(0, "test"))
    assert torch.equal(kept, images)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_has_timms_arithmetic(mixup, cutmix):
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    for i in range(20):
        mixed, targets = augment.mix(images, labels, 10, mixup, cutmix, 0.5, stream(i, "mix"))
        share = targets[0, 0].item()
        if mixup:
            reference = Mixup(mixup_alpha=mixup, label_smoothing=0, num_classes=10)
            reference._params_per_batch = lambda share=share: (share, False)
            want, want_targets = reference(images.clone(), labels)
            assert torch.allclose(mixed, want, atol=1e-6)
            assert torch.allclose(targets, want_targets, atol=1e-6)
        else:
            changed = (mixed != images).any(1).float().mean((1, 2))
            assert torch.allclose(changed, torch.full((6,), 1 - share), atol=1e-6)
            assert torch.equal(mixed[mixed != images], images.flip(0)[mixed != images])


def test_cutmix_pastes_the_box_of_its_draws():
    """The box, in plain Python, from the draws in their order: switch, row, column, unused."""
    images, labels = torch.randn(4, 2, 12, 20), torch.arange(4)
    for i in range(30):
        mixed, targets = augment.mix(images, labels, 4, 0.0, 1.0, 0.5, stream(i, "mix"))
        again = stream(i, "mix")
        _, row, column, _ = torch.rand(4, generator=again, dtype=torch.float64).tolist()
        gammas = torch._standard_gamma(torch.ones(2, dtype=torch.float64), generator=again)
        ratio = (1 - (gammas[0] / gammas.sum()).item()) ** 0.5
        centre, high, wide = (int(row * 12), int(column * 20)), int(12 * ratio), int(20 * ratio)
        expected, pasted = images.clone(), 0
        for y in range(12):
            for x in range(20):
                in_rows = centre[0] - high // 2 <= y < centre[0] + high // 2
                if in_rows and centre[1] - wide // 2 <= x < centre[1] + wide // 2:
                    expected[..., y, x] = images.flip(0)[..., y, x]
                    pasted += 1
        assert torch.equal(mixed, expected)
        assert targets[0, 0].item() == pytest.approx(1 - pasted / 240)


def test_the_shares_of_mixup_have_the_moments_of_a_beta_distribution():
    pixels, labels = torch.zeros(2, 1, 1, 1), torch.arange(2)
    mixes = (augment.mix(pixels, labels, 2, 0.8, 0.0, 0.5, stream(i, "beta")) for i in range(4_000))
    shares = torch.stack([targets[0, 0] for _, targets in mixes])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.06)


def test_both_mixes_are_drawn_with_the_switch_probability():
    images, labels = torch.randn(2, 1, 32, 32), torch.tensor([0, 1])
    cut = 0
    for i in range(300):
        mixed, _ = augment.mix(images, labels, 2, 0.8, 1.0, 0.5, stream(i, "mix"))
        is_cut = bool((mixed == images).any() or (mixed == images.flip(0)).any())
        switch = torch.rand(4, generator=stream(i, "mix"), dtype=torch.float64)[0]
        assert is_cut == bool(switch < 0.5)
        cut += is_cut
    assert 110 < cut < 190


def test_erasing_has_timms_distribution():
    """Compare timm's RandomErasing with ours over many draws.

    The share of images, of pixels, and the place agree. The box is noise, and the rest is kept.
    """
    from timm.data.random_erasing import RandomErasing

    count, side = 4_000, 28
    ours = augment.erase(torch.zeros(count, 1, side, side), 0.25, stream(0, "erase")) != 0
    torch.manual_seed(0)
    theirs = RandomErasing(0.25, mode="pixel", device="cpu")(torch.zeros(count, 1, side, side)) != 0
    for one, other in ((ours, theirs),):
        erased = [each.flatten(1).any(1).double().mean().item() for each in (one, other)]
        assert erased[0] == pytest.approx(0.25, abs=0.035)
        assert erased[0] == pytest.approx(erased[1], abs=0.04)
        share = [each.double().mean().item() for each in (one, other)]
        assert share[0] == pytest.approx(share[1], rel=0.1)
        where = [each.double().mean((0, 1)) for each in (one, other)]
        assert (where[0] - where[1]).abs().max() < 0.04
    boxes = ours[ours.flatten(1).any(1)]
    for box in boxes[:50, 0]:
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        assert (
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].double().mean()
            > 0.98
        )  # one box, but for exact zeros


@pytest.mark.parametrize(("height", "width"), [(20, 9), (9, 20)])
def test_an_erased_box_is_that_of_its_draws(height, width):
    """Zhong et al. 2020 in plain Python, from the same draws: the first of ten boxes that fits."""
    count = 60
    images = torch.zeros(count, 1, height, width)
    erased = augment.erase(images, 0.7, stream(3, "erase")) != 0
    again = stream(3, "erase")
    areas, aspects, tops, lefts = torch.rand(4, count, 10, generator=again).double().tolist()
    chosen = torch.rand(count, 1, generator=again)[:, 0].tolist()
    tried = 0
    for i in range(count):
        expected = torch.zeros(height, width, dtype=torch.bool)
        for n in range(10):
            area = (0.02 + areas[i][n] * (1 / 3 - 0.02)) * height * width
            aspect = math.exp(math.log(0.3) + aspects[i][n] * math.log(3.3 / 0.3))
            high, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if high < height and wide < width:
                top = int(tops[i][n] * (height - high + 1))
                left = int(lefts[i][n] * (width - wide + 1))
                expected[top : top + high, left : left + wide] = chosen[i] < 0.7
                tried += n > 0
                break
        assert torch.equal(erased[i, 0], expected)
    assert tried > 3  # boxes that did not fit were passed over


def test_nothing_is_erased_at_probability_0():
    images = torch.randn(5, 1, 28, 28)
    assert torch.equal(augment.erase(images, 0.0, stream(0, "erase")), images)
