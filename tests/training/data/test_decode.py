"""Tensors decoded and cropped by torchcodec and torchvision, against Pillow's images."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import decode, make_source
from earlydrop.training.data.decode import for_tensors, load_tensor
from earlydrop.training.data.transforms import BrokenImageError, Transform, make_transforms
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run
from tests.training.data.test_shards import make_shards

needs_torchcodec = pytest.mark.skipif(
    decode.torchcodec_problem() is not None, reason=str(decode.torchcodec_problem())
)
CPU = torch.device("cpu")


def picture(seed, size=(50, 40)):
    """Smooth colours, as a photograph has them."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def as_jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return exif


def pixels(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


RECIPES = {
    "crop": AugmentConfig(crop=True, flip=True),
    "randaugment": AugmentConfig(crop=True, randaugment="rand-m9-mstd0.5-inc1"),
    "no crop": AugmentConfig(crop=False),
}


@pytest.mark.parametrize("part", ["train", "clean"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_crops_are_pillows_but_for_rounding_and_the_draws_are_the_same(recipe, part):
    def made():
        train, clean = make_transforms(32, RECIPES[recipe])
        return train if part == "train" else clean

    of_images, of_tensors = Transform(made()), Transform(for_tensors(made()))
    assert torch.equal(of_images.table, of_tensors.table)
    for seed in range(20):
        image, results, states = picture(seed), [], []
        for act, given in ((of_images, image), (of_tensors, pixels(image))):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            results.append(act(given).values.double())
            states.append((random.getstate(), torch.random.get_rng_state().tolist()))
        assert states[0] == states[1]
        assert results[0].shape == results[1].shape == (3, 32, 32)
        if recipe != "randaugment":  # whose operations enlarge a difference of one
            assert (results[0] - results[1]).abs().max() <= 8
            assert (results[0] - results[1]).abs().mean() < 0.5


@needs_torchcodec
@pytest.mark.parametrize(
    ("image", "options"),
    [
        (picture(0), {}),
        (picture(1), {"subsampling": 0, "quality": 100}),
        (picture(2), {"progressive": True, "quality": 30}),
        (picture(3).convert("L"), {}),
        (picture(4).convert("CMYK"), {}),
        (picture(5), {"exif": turned()}),
        (picture(6, (1, 1)), {}),
    ],
    ids=["plain", "444", "progressive", "gray", "cmyk", "exif", "one pixel"],
)
def test_a_jpeg_file_has_pillows_pixels(tmp_path, image, options):
    content = as_jpeg(image, **options)
    expected = pixels(Image.open(io.BytesIO(content)))
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (load_tensor(str(tmp_path / "a.jpg")), load_tensor(io.BytesIO(content), "a")):
        assert read.shape == expected.shape
        # Equal with one libjpeg-turbo; another one may round otherwise.
        assert (read.int() - expected.int()).abs().max() <= 2


def test_other_files_are_pillows_to_the_bit(tmp_path):
    picture(0).save(tmp_path / "a.png")
    assert torch.equal(load_tensor(str(tmp_path / "a.png")), pixels(picture(0)))


@needs_torchcodec
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (as_jpeg(picture(0))[:400], "Truncated"),
        (b"", "cannot identify image file"),
        (b"\xff\xd8\xff" + bytes(40), "cannot be read as an image"),
    ],
)
def test_a_broken_file_is_said_as_by_pillow(tmp_path, content, said):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BrokenImageError, match=said):
        load_tensor(str(tmp_path / "a.jpg"))
    with pytest.raises(BrokenImageError, match=r"^b\.jpg cannot be read"):
        load_tensor(io.BytesIO(content), "b.jpg")


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(BrokenImageError, match=r"gone\.jpg cannot be read"):
        load_tensor(str(tmp_path / "gone.jpg"))


def make_folder(root):
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                content = as_jpeg(picture(10 * label + i))
                (root / split / name / f"{i}.jpg").write_bytes(content)


def test_without_torchcodec_it_is_refused_before_the_folder_is_read(tmp_path, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setattr(decode, "torchcodec_problem", lambda: "No module named 'torchcodec'")
    config = DataConfig(name="imagefolder", root=str(tmp_path), decoder="torchcodec")
    with pytest.raises(
        ConfigError,
        match=r"data.decoder is 'torchcodec': .*No module named .*pip install 'earlydrop\[torchc",
    ):
        make_source(config, AugmentConfig(), CPU)


@needs_torchcodec
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_runs_from_a_folder_and_from_its_shards_have_the_same_numbers(
    config, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("earlydrop.training.data.shard_index.INDEXES", tmp_path / "indexes")
    make_folder(tmp_path / "data")
    make_shards(tmp_path / "data", tmp_path / "shards", "--per-shard", 3)

    def settings(name, root, **more):
        data = {"name": name, "root": str(tmp_path / root), "image_size": 16, "workers": workers}
        augment = {"crop": True, "randaugment": "rand-m9-mstd0.5-inc1", "erasing": 0.25}
        return config(
            data=data | more,
            augment=augment,
            trainer__batch_size=4,
            trainer__epochs=1,
            probe__at=[],
        )

    results = [
        run(settings(name, root, decoder="torchcodec"))
        for name, root in (("imagefolder", "data"), ("shards", "shards"))
    ]
    assert results[0]["train/loss"] == results[1]["train/loss"]
    assert results[0]["test/loss"] == results[1]["test/loss"]
    plans = [make_plan(settings("imagefolder", "data", decoder=d)) for d in ("pil", "torchcodec")]
    assert plans[0].fingerprint != plans[1].fingerprint
    assert plans[0].fingerprint == make_plan(settings("imagefolder", "data")).fingerprint
