import gzip

import numpy as np
import pytest
import torch
from timm.data import Mixup

from earlydrop.training import augment
from earlydrop.training.config import AugmentConfig, ConfigError, DataConfig
from earlydrop.training.data import ArraySource, FolderSource, Objective, make_source, split_batches, training_order
from earlydrop.training.datasets import load_arrays, read_idx
from earlydrop.training.streams import stream

CPU = torch.device("cpu")


def test_each_epoch_is_its_own_permutation_and_any_step_can_be_first():
    whole = list(training_order(3, images=103, batch_size=10, start=0, stop=25))
    for epoch in range(2):
        seen = torch.cat([indices for step, indices in whole if step // 10 == epoch])
        assert len(seen.unique()) == 100
    assert not torch.equal(whole[0][1], whole[10][1])
    for (step, indices), (step_too, again) in zip(whole[13:], training_order(3, 103, 10, 13, 25), strict=True):
        assert step == step_too
        assert torch.equal(indices, again)


def test_every_sample_has_its_own_shift_and_flip():
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 2] = 1
    padded = torch.nn.functional.pad(image, [2] * 4)
    out = augment.shift_and_flip(padded, torch.zeros(4_000, dtype=torch.long), 2, True, stream(0, "test"))
    assert out.shape == (4_000, 1, 7, 7)
    places = out.flatten(1).argmax(1)
    rows, columns = places // 7, places % 7
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}
    assert set(columns.tolist()) == {0, 1, 2, 3, 4, 5, 6}  # 2 or, flipped, 4; each shifted by -2 to 2
    assert out.sum() == 4_000
    counts = torch.bincount(rows)[1:6]
    assert (counts - 800).abs().max() < 5 * (800 * 0.8) ** 0.5
    clean = augment.shift_and_flip(padded, torch.tensor([0]), 2, True, None)
    assert torch.equal(clean, image)


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
    shares = torch.tensor([augment._beta(0.8, stream(i, "beta")) for i in range(4_000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.06)


def test_both_mixes_are_drawn_with_the_switch_probability():
    images, labels = torch.randn(2, 1, 32, 32), torch.tensor([0, 1])
    cut = 0
    for i in range(300):
        mixed, _ = augment.mix(images, labels, 2, 0.8, 1.0, 0.5, stream(i, "mix"))
        cut += bool((mixed == images).any() or (mixed == images.flip(0)).any())
    assert 110 < cut < 190


def test_the_embedded_images():
    arrays = load_arrays(DataConfig())
    assert arrays.train_images.shape == (10_000, 1, 28, 28)
    assert np.bincount(arrays.train_labels).tolist() == [1_000] * 10
    assert np.bincount(arrays.test_labels).tolist() == [250] * 10
    small = load_arrays(DataConfig(train_images=25))
    assert sorted(np.bincount(small.train_labels).tolist()) == [2] * 5 + [3] * 5
    assert small.digest != arrays.digest


def write_idx(folder, split, count, suffix):
    for kind, array in (("images-idx3", np.arange(count * 784).reshape(count, 28, 28)), ("labels-idx1", np.arange(count) % 10)):
        header = b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape)
        content = header + array.astype(np.uint8).tobytes()
        (folder / f"{split}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_a_folder(tmp_path, suffix):
    for split in ("train", "t10k"):
        write_idx(tmp_path, split, 40, suffix)
    source = make_source(DataConfig(name="fashion_mnist", root=str(tmp_path)), AugmentConfig(), CPU)
    assert source.sizes == {"train": 40, "test": 40}
    broken = tmp_path / f"train-images-idx3-ubyte{suffix}"
    broken.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + bytes(40)) if suffix else b"\x00\x00\x08\x03" + bytes(40))
    with pytest.raises(ConfigError, match="not a complete IDX file"):
        read_idx(broken)


def make_folder(root):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / split / name / f"{i}.png")


def test_an_image_folder_is_the_same_whatever_the_workers(tmp_path):
    make_folder(tmp_path)
    seen = []
    for workers in (0, 2):
        config = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32, workers=workers)
        source = make_source(config, AugmentConfig(mixup=0.8), CPU)
        assert isinstance(source, FolderSource)
        assert (source.classes, source.sizes) == (2, {"train": 10, "test": 4})
        objective = Objective(source, AugmentConfig(mixup=0.8))
        batches = list(objective.batches(training_order(0, 10, 4, 0, 5), 0, "augment"))
        seen.append(torch.cat([images for images, _ in batches]))
        clean = list(source.batches(split_batches(4, 3), "test", None))
        assert [len(y) for _, y in clean] == [3, 1]
    assert torch.equal(*seen)
    assert not torch.equal(seen[0][:4], seen[0][8:12])


def test_images_are_normalised():
    source = ArraySource(DataConfig(), AugmentConfig(shift=0, flip=False), CPU)
    ((images, _),) = source.batches([(0, torch.arange(10_000))], "train", None)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "imagenet22k"}, "'imagenet22k'.*fashion_mnist_mini"),
        ({"name": "mnist"}, "not on this machine.*fashion_mnist_mini"),
        ({"name": "fashion_mnist", "root": "/nowhere"}, "'/nowhere'.*no such folder"),
        ({"name": "imagefolder"}, "data.root is null"),
        ({"train_images": 20_000}, "20000.*10000 training images"),
        ({"image_size": 32}, "image_size is 32.*28"),
    ],
)
def test_missing_data_is_an_error_that_names_the_ways(options, says):
    with pytest.raises(ConfigError, match=says):
        make_source(DataConfig(**options), AugmentConfig(), CPU)


def test_a_folder_without_splits(tmp_path):
    with pytest.raises(ConfigError, match="train/ and val/"):
        make_source(DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), CPU)
