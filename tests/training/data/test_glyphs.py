import numpy as np
import pytest
import scipy.ndimage
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import glyphs, make_source
from earlydrop.training.fields import ConfigError
from earlydrop.training.streams import stream

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source():
    return make_source(DataConfig(name="glyphs"), AugmentConfig(), CPU)


def batch(source, key, seed=1, count=64, split="train", purpose="augment"):
    (found,) = source.batches(
        [(key, torch.arange(count))], split, (seed, purpose) if purpose else None
    )
    return found


def test_images_are_normalised_and_every_class_is_another_letter(source):
    images, labels = batch(source, 0, count=2000)
    assert images.shape == (2000, 1, 28, 28)
    assert (images.mean(), images.std()) == (pytest.approx(0, abs=0.15), pytest.approx(1, abs=0.2))
    assert (labels.min() >= 0) & (labels.max() < source.classes)
    assert labels.unique().numel() > 800
    first = glyphs.glyph_images()[:, 0].reshape(glyphs.CLASSES, -1)
    assert len({face.tobytes() for face in first}) == glyphs.CLASSES
    assert (glyphs.glyph_images().reshape(glyphs.CLASSES * len(glyphs.FACES), -1).max(1) > 0).all()


def test_a_batch_is_a_function_of_seed_and_key_and_never_comes_twice(source):
    one, same, next_, other = (
        batch(source, 3),
        batch(source, 3),
        batch(source, 4),
        batch(source, 3, seed=2),
    )
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    for different in (next_, other):
        assert not torch.equal(one[0], different[0])
        assert not torch.equal(one[1], different[1])


def test_the_fixed_sets_are_indexed_and_differ_from_each_other(source):
    train, test = (batch(source, 0, split=split, purpose=None) for split in ("train", "test"))
    assert not torch.equal(train[0], test[0])
    (some,) = source.batches([(7, torch.tensor([5, 2]))], "train", None)
    assert torch.equal(some[0], train[0][[5, 2]])


def test_the_affine_map_is_the_identity_where_nothing_is_drawn(monkeypatch):
    for name in ("_TURN", "_SHEAR", "_SCALE", "_SHIFT", "_NOISE", "_MEAN"):
        monkeypatch.setattr(glyphs, name, 0.0)
    monkeypatch.setattr(glyphs, "_SPREAD", 1.0)
    letters = torch.rand(5, 1, 28, 28)
    images = glyphs.draw_glyphs(letters, torch.arange(5), stream(0, "x"))
    contrast = images.flatten(1).max(1).values / letters.flatten(1).max(1).values
    torch.testing.assert_close(images[:, 0], letters[:, 0] * contrast.view(-1, 1, 1))
    assert (contrast > 0.49).all()
    assert (contrast <= 1.0).all()


def test_an_image_is_its_letter_turned_sheared_scaled_and_shifted(monkeypatch):
    """Against matrices in float64 and scipy's interpolation."""
    monkeypatch.setattr(glyphs, "_NOISE", 0.0)
    letters = torch.rand(3, 2, 28, 28)
    images = glyphs.draw_glyphs(letters, torch.tensor([2, 0, 1, 1]), stream(0, "x"))
    draws = stream(0, "x")
    faces = torch.randint(2, (4,), generator=draws).tolist()
    drawn = (2 * torch.rand(7, 4, generator=draws) - 1).double().numpy()
    places = (np.arange(28) * 2 + 1) / 28 - 1  # centres of pixels, from -1 to 1
    y, x = np.meshgrid(places, places, indexing="ij")
    for i, label in enumerate((2, 0, 1, 1)):
        turn, shear, across, down, right, lower, contrast = drawn[:, i]
        cosine, sine = np.cos(0.2 * turn), np.sin(0.2 * turn)
        matrix = np.diag([1 / (1 + 0.15 * across), 1 / (1 + 0.15 * down)])
        matrix = matrix @ np.array([[cosine, -sine], [sine, cosine]])
        matrix = matrix @ np.array([[1.0, 0.2 * shear], [0.0, 1.0]])
        shift = 0.15 * np.array([[right], [lower]])
        from_x, from_y = matrix @ np.stack([x.ravel(), y.ravel()]) + shift
        where = [(28 * (from_y + 1) - 1) / 2, (28 * (from_x + 1) - 1) / 2]
        letter = letters[label, faces[i]].double().numpy()
        expected = scipy.ndimage.map_coordinates(letter, where, order=1, mode="grid-constant")
        expected = (expected * (0.75 + 0.25 * contrast) - 0.065) / 0.237
        np.testing.assert_allclose(images[i, 0].numpy().ravel(), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 32}, "data.image_size is 32: data=glyphs draws images of 28 pixels"),
        ({"root": "/"}, "data.root is '/': data=glyphs draws"),
    ],
)
def test_keys_that_it_has_no_use_for_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_source(DataConfig(name="glyphs", **config), AugmentConfig(), CPU)


def test_fonts_that_lack_characters_are_named():
    letters = [ord(c) for c in "abc"]
    assert glyphs.letters([set(letters), set(letters)], lambda code: bytes([code]), 3) == letters
    with pytest.raises(
        ConfigError, match="the fonts here share 2 letters of different shape, of 3 that are needed"
    ):
        glyphs.letters([set(letters), set(letters[:2])], lambda code: bytes([code]), 3)
    with pytest.raises(ConfigError, match="share 1 letters"):  # what looks the same is one letter
        glyphs.letters([set(letters)], lambda code: b"same", 3)


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    import matplotlib

    glyphs.glyph_images.cache_clear()
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match="matplotlib's font DejaVuSans is not there"):
        glyphs.glyph_images()
