import io

import numpy as np
import pytest
import torch
from PIL import Image

from earlydrop.training.config import AugmentConfig
from earlydrop.training.data.transforms import (
    BrokenImageError,
    Transform,
    collate,
    load_image,
    make_transforms,
    normalised,
)
from earlydrop.training.fields import ConfigError


def test_clean_images_are_clean():
    """Without augmentation, training transforms as evaluation does; each key adds its part."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    none = {"shift": 0, "flip": False}
    train, clean = make_transforms(32, AugmentConfig(**none))
    assert all(torch.equal(train(image), clean(image)) for _ in range(20))
    for part in (
        {"flip": True},
        {"crop": True},
        {"randaugment": "rand-m9-mstd0.5-inc1"},
        {"color_jitter": 0.4},
        {"erasing": 0.5},
    ):
        train, _ = make_transforms(32, AugmentConfig(**(none | part)))
        changed = [not torch.equal(train(image), clean(image)) for _ in range(40)]
        assert any(changed), part
        train(image)


def test_evaluation_sees_224_of_256_pixels():
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    _, clean = make_transforms(224, AugmentConfig())
    image = torch.from_numpy(pixels[16:240, 16:240]).permute(2, 0, 1) / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(clean(Image.fromarray(pixels)), (image - mean) / deviation, atol=1e-5)


def test_randaugment_draws_on_this_pillow():
    """Every operation, ten thousand draws; posterize to 0 bits is black, as in older Pillow."""
    train, _ = make_transforms(8, AugmentConfig(crop=True, randaugment="rand-m9-mstd0.5-inc1"))
    (randaugment,) = (t for t in train.transforms if hasattr(t, "ops"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    for operation in randaugment.ops:
        operation.prob = 1.0
        for _ in range(10_000 // len(randaugment.ops) + 1):
            assert operation(image).size == (8, 8)
    (posterize,) = (op for op in randaugment.ops if "Posterize" in op.name)
    assert not np.asarray(posterize.aug_fn(image, 0)).any()
    assert np.asarray(posterize.aug_fn(image, 1)).any()
    assert posterize.aug_fn(image, 8) == image


def test_autoaugment_draws_on_this_pillow():
    train, _ = make_transforms(8, AugmentConfig(crop=True, randaugment="v0"))
    (autoaugment,) = (t for t in train.transforms if hasattr(t, "policy"))
    operations = [operation for sub_policy in autoaugment.policy for operation in sub_policy]
    posterize = [operation for operation in operations if "Posterize" in operation.name]
    image = Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8))
    assert posterize
    for operation in posterize:
        assert not np.asarray(operation.aug_fn(image, 0)).any()


def test_a_broken_image_is_named_whatever_holds_it(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    with pytest.raises(BrokenImageError, match=r"broken\.png cannot be read as an image"):
        load_image(path)
    with pytest.raises(BrokenImageError, match=r"BytesIO.* cannot be read as an image"):
        load_image(io.BytesIO(b"no image"))


def test_a_mistyped_randaugment_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.randaugment is 'rand-x9'"):
        make_transforms(32, AugmentConfig(randaugment="rand-x9"))


def test_images_of_sixteen_bits_keep_their_range_and_unknown_ranges_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    read = np.asarray(load_image(str(tmp_path / "deep.png")))
    assert read.shape == (8, 8, 3)
    assert np.abs(read[..., 0].astype(float) - ramp / 257).max() <= 0.5
    Image.fromarray(np.full((8, 8), 1e6, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(
        BrokenImageError, match=r"float\.tiff cannot be read as an image: its pixels are of mode F"
    ):
        load_image(str(tmp_path / "float.tiff"))


RECIPES = {
    "clean": AugmentConfig(flip=False),
    "erased": AugmentConfig(crop=True, randaugment="rand-m9-mstd0.5-inc1", erasing=0.7),
    "jittered": AugmentConfig(crop=True, color_jitter=0.4),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_that_are_normalised_later_are_timms_own_numbers_to_the_bit(recipe):
    """Against timm's whole transform, from the same seeds."""
    import random

    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(40)
    ]
    for whole in make_transforms(32, RECIPES[recipe]):
        cut, pixels, expected = Transform(whole), [], []
        for seed, image in enumerate(images):
            for act, results in ((cut, pixels), (whole, expected)):
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                results.append(act(image))
        batch = collate([(each, label) for label, each in enumerate(pixels)])
        assert batch.values.dtype == torch.uint8
        assert torch.equal(normalised(batch, cut.table), torch.stack(expected))
        assert batch.labels.tolist() == list(range(40))


def test_about_as_many_images_are_erased_as_asked_for():
    _, (train, _) = torch.manual_seed(0), make_transforms(16, AugmentConfig(erasing=0.5))
    image = Image.new("RGB", (16, 16))
    erased = sum(Transform(train)(image).box is not None for _ in range(200))
    assert 70 < erased < 130


def test_a_transform_with_steps_that_are_not_known_is_refused():
    train, _ = make_transforms(16, AugmentConfig())
    train.transforms.append(train.transforms[-1])
    with pytest.raises(
        RuntimeError, match=r"transform ends with .*: expected MaybeToTensor, .*install timm"
    ):
        Transform(train)
    train.transforms = [t for t in train.transforms if type(t).__name__ != "MaybeToTensor"]
    with pytest.raises(
        RuntimeError, match=r"transform ends with .*: expected MaybeToTensor, .*install timm"
    ):
        Transform(train)
