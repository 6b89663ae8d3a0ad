import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source
from earlydrop.training.data.order import split_batches
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run
from tests.training.data.pictures import make_folder

CPU = torch.device("cpu")


def test_a_folder_without_splits(tmp_path):
    with pytest.raises(ConfigError, match="train/ and val/"):
        make_source(DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), CPU)


def test_corrupt_images_are_counted_and_left_out_when_told(tmp_path):
    make_folder(tmp_path)
    victim = sorted((tmp_path / "train").rglob("*.*"))[0]
    whole = make_source(
        DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), torch.device("cpu")
    )
    victim.write_bytes(victim.read_bytes()[:40])
    found = make_source(
        DataConfig(name="imagefolder", root=str(tmp_path), skip_corrupt=True),
        AugmentConfig(),
        torch.device("cpu"),
    )
    assert found.left_out == {"images that cannot be read": 1}
    assert found.sizes["train"] == whole.sizes["train"] - 1
    assert found.digest != whole.digest
    for _ in found.batches([(0, torch.arange(found.sizes["train"]))], "train", None):
        pass


def test_an_empty_file_is_refused_at_once(tmp_path):
    make_folder(tmp_path)
    victim = sorted((tmp_path / "train").rglob("*.*"))[0]
    victim.write_bytes(b"")
    with pytest.raises(
        ConfigError,
        match=(
            f"{victim.name} is empty: "
            "copy it again, or leave such images out with data.skip_corrupt=true"
        ),
    ):
        make_source(
            DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), torch.device("cpu")
        )


def test_classes_that_differ_between_splits_are_named(tmp_path):
    make_folder(tmp_path)
    shutil.copytree(next((tmp_path / "train").iterdir()), tmp_path / "train" / "zebra")
    with pytest.raises(
        ConfigError,
        match=(
            r"train/ has classes that val/ lacks: 1, such as 'zebra'; "
            r"expected the same classes in both"
        ),
    ):
        make_source(
            DataConfig(name="imagefolder", root=str(tmp_path)), AugmentConfig(), torch.device("cpu")
        )


def opened(root, **more):
    return make_source(
        DataConfig(name="imagefolder", root=str(root), image_size=32, **more), AugmentConfig(), CPU
    )


def test_the_digest_is_of_what_torchvision_finds(tmp_path):
    """The formula of the first version, over torchvision's samples."""
    make_folder(tmp_path)
    digest = hashlib.sha256()
    for split, name in (("train", "train"), ("test", "val")):
        for path, label in ImageFolder(str(tmp_path / name)).samples:
            file = Path(path)
            digest.update(
                f"{split}/{file.parent.name}/{file.name}:{file.stat().st_size}:{label}\n".encode()
            )
    assert opened(tmp_path).digest == digest.hexdigest()
    assert opened(tmp_path).left_out == {}


def test_what_is_left_out_changes_nothing_and_is_in_the_plan_and_the_log(tmp_path, config, capsys):
    make_folder(tmp_path / "data")
    options = {
        "data": {"name": "imagefolder", "root": str(tmp_path / "data"), "image_size": 16},
        "trainer__batch_size": 4,
        "probe__at": [],
    }
    clean = make_plan(config(**options)).fingerprint
    cat = tmp_path / "data" / "train" / "cat"
    shutil.copytree(cat, tmp_path / "data" / "train" / ".ipynb_checkpoints")
    shutil.copy(cat / "0.png", cat / "._0.png")
    shutil.copy(cat / "0.png", cat / "7.avif")
    (cat / "up").symlink_to("..")
    words = (
        "files that end in .avif: 1; hidden files and folders: 2; "
        "links to folders that are read already, or that hold the split: 1"
    )
    assert run(config(mode="plan", **options))["state"] == "planned"
    assert f"left out     {words}\n" in capsys.readouterr().out
    assert make_plan(config(**options)).fingerprint == clean
    trained = run(config(**options))
    assert (
        f"WARNING left out of the data: {words}\n"
        in (Path(trained["folder"]) / "log.txt").read_text()
    )


def test_names_that_are_not_utf8_are_read(tmp_path, config, capsys):
    make_folder(tmp_path / "data")
    for split in ("train", "val"):
        folder = os.fsencode(tmp_path / "data" / split)
        os.rename(os.path.join(folder, b"cat"), os.path.join(folder, b"caf\xe9"))
        os.rename(os.path.join(folder, b"dog", b"1.png"), os.path.join(folder, b"dog", b"\xff.png"))
    (tmp_path / "data" / "train" / "dog" / os.fsdecode(b"1.\xfe")).touch()
    data = {"name": "imagefolder", "root": str(tmp_path / "data"), "image_size": 16}
    run(config(mode="plan", data=data, trainer__batch_size=4))
    assert "left out     files that end in .\\udcfe: 1\n" in capsys.readouterr().out
    assert run(config(data=data, trainer__batch_size=4))["state"] == "finished"


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_broken_image_whose_name_is_not_utf8_is_named(tmp_path, content):
    make_folder(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path / "train" / "cat") + b"/9\xff.png")).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(opened(tmp_path).batches(split_batches(11, 11), "train", None))
    assert "train/cat/9\\udcff.png" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train" / "cat" / "9.png").symlink_to("nowhere.png")
    with pytest.raises(
        ConfigError, match=r"cat/9\.png cannot be read \(No such file or directory\): copy it again"
    ):
        opened(tmp_path)
    assert opened(tmp_path, skip_corrupt=True).left_out == {"images that cannot be read": 1}


def test_only_the_splits_that_are_asked_for_are_read(tmp_path):
    make_folder(tmp_path, [("test", 3)])
    options = DataConfig(name="imagefolder", root=str(tmp_path), image_size=32)
    source = make_source(options, AugmentConfig(), CPU, ["test"])
    assert (source.classes, source.sizes) == (2, {"train": 0, "test": 3 * 2})
    assert [len(labels) for _, labels in source.batches(split_batches(6, 4), "test", None)] == [
        4,
        2,
    ]
    with pytest.raises(
        ConfigError,
        match=r"expected a folder with train/ and val/ \(or test/\), one folder per class",
    ):
        make_source(options, AugmentConfig(), CPU)
    with pytest.raises(
        ConfigError, match=r"expected a folder with train/, one folder per class in each"
    ):
        make_source(options, AugmentConfig(), CPU, ["train"])
