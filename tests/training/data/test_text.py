import importlib.util

import pytest
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source, text
from earlydrop.training.data.published import known_classes
from earlydrop.training.fields import ConfigError

CPU = torch.device("cpu")


def source(**keys):
    return make_source(DataConfig(name="text", **keys), AugmentConfig(), CPU)


def test_the_embedded_text_reads_as_it_should():
    found = source()
    ((tokens, following),) = found.batches([(0, torch.tensor([0, 1]))], "train", None)
    assert tokens.shape == following.shape == (2, 128)
    assert bytes(tokens[0].tolist()).startswith(b"Genesis 1\nIn the beginning God created")
    assert torch.equal(tokens[0, 1:], following[0, :-1])
    assert following[0, -1] == tokens[1, 0]
    assert found.sizes == {"train": 30_807, "test": 1_621}


@pytest.mark.parametrize("name", ["text", "glyphs", "fashion_mnist_mini"])
def test_the_number_of_classes_is_known_without_opening_a_dataset(name):
    opened = make_source(DataConfig(name=name), AugmentConfig(), CPU)
    assert known_classes(name) == opened.classes
    assert known_classes("imagefolder") is None


def test_no_context_is_in_both_splits(tmp_path):
    (tmp_path / "t").write_bytes(
        bytes(i // 128 for i in range(128 * 41))
    )  # each context holds its own number
    found = source(root=str(tmp_path / "t"))
    seen = {}
    for split, size in found.sizes.items():
        ((tokens, _),) = found.batches([(0, torch.arange(size))], split, None)
        seen[split] = set(tokens[:, 0].tolist())
    assert seen["test"] == {19, 39}
    assert seen["train"] == set(range(40)) - {19, 39}


def test_another_text_and_another_length_have_other_digests(tmp_path):
    (tmp_path / "t").write_bytes(b"ab" * 1000)
    assert (
        len(
            {
                source().digest,
                source(train_images=100).digest,
                source(root=str(tmp_path / "t")).digest,
            }
        )
        == 3
    )
    assert source(train_images=100).sizes["train"] == 100


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"root": "nowhere"}, "data.root is 'nowhere': data=text needs a file"),
        ({"train_images": 40_000}, "data.train_images is 40000: the text has 30807 contexts"),
        ({"image_size": 28}, "data.image_size is 28: data=text has no images"),
    ],
)
def test_what_cannot_be_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        source(**keys)


def test_a_text_shorter_than_a_context_is_refused(tmp_path):
    (tmp_path / "t").write_text("too short")
    with pytest.raises(ConfigError, match="9 bytes, expected at least 257"):
        source(root=str(tmp_path / "t"))
    (tmp_path / "t").write_bytes(b"x" * 256)  # the byte that follows the last context is missing
    with pytest.raises(ConfigError, match="256 bytes, expected at least 257"):
        source(root=str(tmp_path / "t"))
    (tmp_path / "t").write_bytes(b"x" * 257)
    assert source(root=str(tmp_path / "t")).sizes == {"train": 1, "test": 1}


def test_a_text_cannot_be_mixed():
    with pytest.raises(ConfigError, match=r"augment.mixup is 0.8: bytes of a text cannot be mixed"):
        make_source(DataConfig(name="text"), AugmentConfig(mixup=0.8), CPU)


def test_a_damaged_file_is_named():
    spec = importlib.util.spec_from_file_location(
        "text_read_anew", text.__file__
    )  # the text that was read before is kept
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    anew.EMBEDDED_SHA256 = "0"
    with pytest.raises(ConfigError, match=r"kjv.xz is damaged"):
        anew.read_text(DataConfig(name="text"))


@pytest.mark.parametrize("contexts", [2, 19, 20, 21, 40])
def test_every_twentieth_context_is_a_test_context_and_the_last_of_a_short_text(contexts, tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(97, 123)) * (contexts * 128 // 26 + 1))
    text = (tmp_path / "a.txt").read_bytes()[: contexts * 128 + 1]
    (tmp_path / "a.txt").write_bytes(text)
    source = make_source(
        DataConfig(name="text", root=str(tmp_path / "a.txt")),
        AugmentConfig(shift=0, flip=False),
        torch.device("cpu"),
    )
    expected = list(range(19, contexts, 20)) if contexts >= 20 else [contexts - 1]
    assert source.sizes == {"train": contexts - len(expected), "test": len(expected)}
    count = len(expected)
    ((tokens, following),) = source.batches([(0, torch.arange(count))], "test", None)
    for row, context in enumerate(expected):
        assert bytes(tokens[row].tolist()) == text[context * 128 : context * 128 + 128]
        assert bytes(following[row].tolist()) == text[context * 128 + 1 : context * 128 + 129]
