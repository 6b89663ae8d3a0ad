import os
import pickle
import random
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from earlydrop.training.data.files import (
    HIDDEN,
    OTHER,
    OUTSIDE,
    READ_ALREADY,
    Samples,
    counts_in_words,
    find_images,
)
from earlydrop.training.fields import ConfigError


def make(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def below(root, found):
    return [(os.path.relpath(path, root), label) for path, label in found.samples]


@pytest.mark.parametrize("seed", range(8))
def test_folders_without_surprises_are_read_as_torchvision_reads_them(tmp_path, seed):
    """Same classes and images in the same order, with links to folders and files elsewhere."""
    draw = random.Random(seed)
    for name in ("b", "a", "a-b", "a b", "B", "10", "9"):
        make(tmp_path / "split", f"{name}/first.png")
        for _ in range(draw.randrange(12)):
            folders = [
                draw.choice(("x", "x-y", "X", "x.png", "z z")) for _ in range(draw.randrange(3))
            ]
            make(
                tmp_path / "split",
                "/".join(
                    [
                        name,
                        *folders,
                        f"{draw.randrange(99)}.{draw.choice(('png', 'JPG', 'tiff', 'webp'))}",
                    ]
                ),
            )
    make(tmp_path / "elsewhere", "deep/1.png", "deep/deeper/2.jpeg", "3.png")
    (tmp_path / "split" / "a" / "linked").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "split" / "b" / "linked.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    make(tmp_path / "class", "4.png", "sub/5.png")
    (tmp_path / "split" / "linked").symlink_to(tmp_path / "class")
    found, expected = find_images(tmp_path / "split"), ImageFolder(str(tmp_path / "split"))
    assert found.classes == expected.classes
    assert list(found.samples) == expected.samples
    assert found.left_out == {}


def test_what_is_hidden_is_no_class_and_no_image(tmp_path):
    make(
        tmp_path,
        "cat/1.png",
        "cat/.2.png",
        "cat/._1.png",
        "cat/__MACOSX/3.png",
        "cat/sub/.ipynb_checkpoints/4.png",
        "cat/sub/5.png",
    )
    make(tmp_path, ".ipynb_checkpoints/1.png", "__MACOSX/cat/1.png", ".DS_Store", "notes.txt")
    found = find_images(tmp_path)
    assert found.classes == ["cat"]
    assert below(tmp_path, found) == [("cat/1.png", 0), ("cat/sub/5.png", 0)]
    assert found.left_out == {HIDDEN: 7, OUTSIDE: 1}


def test_files_of_other_types_are_counted_by_type(tmp_path):
    make(tmp_path, "cat/1.png", "cat/1.jfif", "cat/2.JFIF", "cat/1.avif", "cat/LICENSE")
    counted = {
        "files that end in .jfif": 2,
        "files that end in .avif": 1,
        "files without an ending": 1,
    }
    found = find_images(tmp_path)
    assert below(tmp_path, found) == [("cat/1.png", 0)]
    assert found.left_out == counted
    assert (
        counts_in_words(found.left_out)
        == "files that end in .avif: 1; files that end in .jfif: 2; files without an ending: 1"
    )
    make(tmp_path, *(f"cat/1.{number}" for number in range(2_000)))
    words = counts_in_words(find_images(tmp_path).left_out).split("; ")
    assert len(words) == 6
    assert f"{OTHER}: 1,998" in words


def test_links_that_lead_in_a_circle_are_not_followed(tmp_path):
    """Two classes with a link to what holds them would be read without end."""
    split = tmp_path / "data" / "train"
    make(
        tmp_path / "data",
        *(f"train/{name}/{i}.png" for name in ("cat", "dog", "emu") for i in range(12)),
        "val/cat/1.png",
    )
    for name in ("cat", "dog"):
        (split / name / "up").symlink_to("..")
    (split / "emu" / "root").symlink_to(tmp_path)
    (split / "emu" / "again").symlink_to(split / "emu")
    (split / "emu" / "cat").symlink_to("../cat")
    (split / "up").symlink_to("..")
    (split / "kitten").symlink_to("cat")
    (split / "emu" / "itself").symlink_to("itself")
    found = find_images(split)
    assert found.classes == ["cat", "dog", "emu"]
    assert len(found.samples) == len({os.path.realpath(path) for path, _ in found.samples}) == 36
    assert found.left_out == {READ_ALREADY: 7, "files without an ending": 1}


def test_a_class_that_is_a_link_takes_no_image_from_a_real_class_folder(tmp_path):
    make(tmp_path, "split/b/1.png", "split/b/sub/2.png")
    (tmp_path / "split" / "a").symlink_to(tmp_path / "split" / "b" / "sub")
    with pytest.raises(ConfigError, match=r"a holds no image: .* \(left out: .*: 1\)"):
        find_images(tmp_path / "split")


def test_a_class_that_is_a_link_comes_before_links_below_other_classes(tmp_path):
    make(tmp_path, "split/a/1.png", "shared/2.png")
    for link in ("a/linked", "z"):
        (tmp_path / "split" / link).symlink_to(tmp_path / "shared")
    found = find_images(tmp_path / "split")
    assert below(tmp_path / "split", found) == [("a/1.png", 0), ("z/2.png", 1)]
    assert found.left_out == {READ_ALREADY: 1}


def test_a_folder_is_read_by_its_own_path_and_a_linked_one_once(tmp_path):
    make(tmp_path, "split/cat/z/1.png", "split/dog/0.png", "shared/2.png", "shared/deep/3.png")
    (tmp_path / "split" / "cat" / "a").symlink_to("z")
    for name in ("cat", "dog"):
        (tmp_path / "split" / name / "shared").symlink_to(tmp_path / "shared")
    (tmp_path / "shared" / "back").symlink_to(tmp_path / "split" / "dog")
    found = find_images(tmp_path / "split")
    images = ["cat/shared/2.png", "cat/shared/deep/3.png", "cat/z/1.png", "dog/0.png"]
    assert below(tmp_path / "split", found) == [
        (path, int(path.startswith("dog"))) for path in images
    ]
    assert found.left_out == {READ_ALREADY: 3}


def test_a_folder_that_cannot_be_used_is_named_with_what_is_in_it(tmp_path):
    (tmp_path / "empty").mkdir()
    make(tmp_path, "files/1.png", "files/.hidden/1.png")
    with pytest.raises(
        ConfigError, match=r"empty holds no class folder: expected one folder per class$"
    ):
        find_images(tmp_path / "empty")
    with pytest.raises(
        ConfigError,
        match=r"one folder per class \(left out: files beside the class folders: 1; hidden",
    ):
        find_images(tmp_path / "files")
    make(tmp_path, "split/cat/1.png", "split/dog/1.avif")
    with pytest.raises(
        ConfigError,
        match=r"split/dog holds no image: expected files that end in \.jpg.*\.avif: 1\)$",
    ):
        find_images(tmp_path / "split")


def test_a_folder_that_cannot_be_opened_is_no_empty_one(tmp_path, monkeypatch):
    make(tmp_path, "cat/1.png", "cat/closed/2.png")
    scandir = os.scandir

    def refuses(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(PermissionError, match="closed"):
        find_images(tmp_path)


def test_a_list_of_images_is_held_in_three_arrays():
    """Any names, not only UTF-8; to be sent to other workers in about the bytes of the names."""
    pairs = [(f"/data/train/n{i % 50:04d}/n{i}.JPEG", i % 50) for i in range(2_000)] + [
        ("/data/ä/\udce4.png", 7),
        ("", 8),
    ]
    found = Samples(pairs)
    assert list(found) == pairs
    assert found[-2] == found[2_000] == pairs[-2]
    assert found[1:3] == pairs[1:3]
    with pytest.raises(IndexError):
        found[2_002]
    sent = pickle.dumps(found)
    assert list(pickle.loads(sent)) == pairs
    assert len(sent) < sum(len(path) for path, _ in pairs) + 12 * len(pairs) + 1_000
    assert list(Samples()) == []
