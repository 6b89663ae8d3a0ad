import importlib.util
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source
from earlydrop.training.data.order import split_batches
from earlydrop.training.data.shard_index import INDEXES, cached_index, read_index
from earlydrop.training.fields import ConfigError
from earlydrop.training.run import run
from tests.training.data.pictures import make_folder

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[3] / "scripts" / "make_shards.py"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, so that no index of a user's is read or written."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_shards(*arguments):
    """Call the script in this process, with a command line of its own."""
    spec = importlib.util.spec_from_file_location("make_shards", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(SCRIPT), *map(str, arguments)])
        script.main()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An image folder and its shards, four images in each."""
    folder, out = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("made") / "shards"
    make_folder(folder)
    make_shards(folder, out, "--per-shard", 4)
    return folder, out


@pytest.fixture
def shards(written, tmp_path):
    """A copy that a test may spoil."""
    copy = tmp_path / "shards"
    for file in sorted(written[1].rglob("*.*")):
        target = copy / file.relative_to(written[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return copy


def opened(root, name="shards", augment=None, **more):
    config = DataConfig(name=name, root=str(root), image_size=16, **more)
    return make_source(config, augment or AugmentConfig(shift=0), CPU)


def refused(root, **more):
    with pytest.raises(ConfigError) as caught:
        opened(root, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_script_writes_what_tar_and_webdataset_read(written):
    folder, out = written
    assert [path.name for path in sorted((out / "train").iterdir())] == [
        "shardindex.json",
        *(f"train-00000{i}.tar" for i in range(3)),
    ]
    with tarfile.open(out / "train" / "train-000001.tar") as tar:
        assert tar.getnames() == [
            f"{i:08d}.{ending}" for i in range(4, 8) for ending in ("png", "cls")
        ]
        assert [tar.extractfile(f"{i:08d}.cls").read() for i in (4, 5)] == [b"0", b"1"]
        assert (
            tar.extractfile("00000005.png").read()
            == (folder / "train" / "dog" / "0.png").read_bytes()
        )
    listed = json.loads((out / "train" / "shardindex.json").read_text())
    assert [(shard["url"], shard["nsamples"]) for shard in listed["shardlist"]] == [
        (f"train-00000{i}.tar", n) for i, n in enumerate((4, 4, 2))
    ]
    assert json.loads((out / "classes.json").read_text()) == ["cat", "dog"]


def test_the_script_refuses_what_it_cannot_write(written, tmp_path):
    folder, out = written
    with pytest.raises(SystemExit, match=f"error: {out} is not empty: give a new folder"):
        make_shards(folder, out)
    with pytest.raises(SystemExit, match="has none of train/, val/ and test/"):
        make_shards(out / "train", tmp_path / "new")
    (tmp_path / "other" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(SystemExit, match="cat holds no image"):
        make_shards(tmp_path / "other", tmp_path / "new")
    make_folder(tmp_path / "uneven")
    (tmp_path / "uneven" / "val" / "dog").rename(tmp_path / "uneven" / "val" / "fox")
    with pytest.raises(
        SystemExit, match="val/ and train/ have other class folders: expected the same"
    ):
        make_shards(tmp_path / "uneven", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_images_are_those_of_the_folder_to_the_bit(written, workers):
    augment = AugmentConfig(crop=True, randaugment="rand-m9-mstd0.5-inc1", erasing=0.5)
    sources = [
        opened(written[1], augment=augment, workers=workers),
        opened(written[0], "imagefolder", augment=augment),
    ]
    assert sources[0].sizes == sources[1].sizes == {"train": 10, "test": 4}
    assert sources[0].classes == sources[1].classes == 2
    for split, count in (("train", 10), ("test", 4)):
        for augmented in (None, (3, "augment")):
            mine, theirs = (
                list(source.batches(split_batches(count, 3), split, augmented))
                for source in sources
            )
            for (images, labels), (same_images, same_labels) in zip(mine, theirs, strict=True):
                assert torch.equal(images, same_images)
                assert torch.equal(labels, same_labels)
    sources[0].close()


def test_a_run_from_shards_has_the_numbers_of_one_from_the_folder(written, config):
    records = []
    for name, root in (("imagefolder", written[0]), ("shards", written[1])):
        data = {"name": name, "root": str(root), "image_size": 16, "train_images": None}
        done = run(
            config(
                data=data,
                trainer__batch_size=4,
                trainer__log_every=1,
                augment__crop=True,
                augment__mixup=0.8,
                probe__at=["50%"],
            )
        )
        records.append((Path(done["folder"]) / "metrics.jsonl").read_bytes())
    assert records[0] == records[1]
    assert records[0].count(b"train/loss") == 4


def test_samples_are_ordered_by_key_wherever_they_lie(written, tmp_path):
    """Shards that somebody shuffled for streaming give the same numbers."""
    members = []
    for path in sorted((written[1] / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members += [(member.name, tar.extractfile(member).read()) for member in tar]
    pairs = [members[i : i + 2] for i in range(0, len(members), 2)]
    order = np.random.default_rng(0).permutation(len(pairs))
    (tmp_path / "mixed" / "train").mkdir(parents=True)
    (tmp_path / "mixed" / "val").symlink_to(written[1] / "val")
    for number, part in enumerate(np.array_split(order, 2)):
        write(
            tmp_path / "mixed" / "train" / f"part-{number}.tar",
            [each for place in part for each in reversed(pairs[place])],
        )
    sources = [opened(tmp_path / "mixed"), opened(written[1])]
    assert sources[0].digest == sources[1].digest
    images = [
        next(source.batches([(0, torch.arange(10))], "train", (0, "augment")))[0]
        for source in sources
    ]
    assert torch.equal(*images)


def write(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_an_index_is_made_once_for_a_file(shards, home, monkeypatch):
    path = shards / "train" / "train-000000.tar"
    first = cached_index(path)
    assert len(list((home / ".cache" / "earlydrop" / "shards").iterdir())) == 1
    monkeypatch.setattr(tarfile, "TarFile", None)
    second = cached_index(path)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(home))
    assert (second.names, second.left_out) == (first.names, first.left_out)
    assert [second.offsets, second.labels] == [
        first.offsets,
        first.labels,
    ]
    path.write_bytes((shards / "train" / "train-000001.tar").read_bytes())
    os.utime(path, ns=(1, 1))
    assert cached_index(path).names[0] == "00000004.png"
    for file in INDEXES.expanduser().iterdir():
        file.write_bytes(b"damaged")
    assert cached_index(path).names[0] == "00000004.png"


def test_a_home_that_cannot_be_written_to_keeps_no_index(shards, home):
    home.write_text("a file")
    assert opened(shards).sizes == {"train": 10, "test": 4}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_shard_is_named(shards, number):
    """The first and the last by the list, one between also by the numbers."""
    (shards / "train" / f"train-00000{number}.tar").unlink()
    said = f"{shards / 'train' / f'train-00000{number}.tar'} is missing (shards that are there: 2)"
    assert said in refused(shards)
    (shards / "train" / "shardindex.json").unlink()
    if number == 1:
        assert said in refused(shards)


@pytest.mark.parametrize("keep", [100, 700, 1024, -512, -1024, 0])
def test_a_truncated_shard_is_named(shards, keep):
    path = shards / "train" / "train-000001.tar"
    whole = path.read_bytes().rstrip(b"\0")
    padded = whole + b"\0" * (-len(whole) % 512)
    path.write_bytes(padded[:keep] if keep > 0 else padded[: len(padded) + keep])
    assert str(path) in refused(shards)
    (shards / "train" / "shardindex.json").unlink()
    assert str(path) in refused(shards)


def spoil(shards, change):
    path = shards / "train" / "train-000001.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    write(path, change(members))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda members: [m for m in members if m[0] != "00000005.cls"],
            "sample '00000005' has 0 labels",
        ),
        (
            lambda members: [m for m in members if m[0] != "00000005.png"],
            "sample '00000005' has 0 images",
        ),
        (lambda members: [*members, members[-2]], "sample '00000007' has 2 images"),
        (
            lambda members: [("00000004.png", b""), *members[1:]],
            "sample '00000004' has an empty image",
        ),
        (
            lambda members: [members[0], ("00000004.cls", b"cat"), *members[2:]],
            "00000004.cls is 'cat': expected the number of a class",
        ),
        (
            lambda members: [members[0], ("00000004.cls", b"-1"), *members[2:]],
            "00000004.cls is '-1': expected the number of a class",
        ),
        (
            lambda members: [members[0], ("00000004.cls", b"9" * 30), *members[2:]],
            "expected the number of a class",
        ),
        (lambda members: [members[0], ("00000004.cls", b"7"), *members[2:]], "has the label 7"),
        (lambda members: [members[0], ("00000004.cls", b"2"), *members[2:]], "has the label 2"),
        (lambda members: [], "holds no sample"),
        (lambda members: members[:4], "has 2 samples"),
    ],
)
def test_a_sample_that_is_none_is_named(shards, change, words):
    path = spoil(shards, change)
    said = refused(shards)
    assert str(path) in said
    assert words in said


def test_without_a_list_of_classes_labels_number_them(shards):
    (shards / "classes.json").unlink()
    assert opened(shards).classes == 2
    spoil(shards, lambda members: [members[0], ("00000004.cls", b"7"), *members[2:]])
    assert "has no image of class 2, and labels up to 7 (train-000001.tar)" in refused(shards)


def test_splits_with_other_classes_are_refused(shards):
    (shards / "classes.json").unlink()
    for path in (shards / "val").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]
        write(
            path, [(name, b"0" if name.endswith(".cls") else content) for name, content in members]
        )
    assert "train/ has classes that val/ lacks: 1, such as '1'" in refused(shards)


def test_files_of_other_types_are_counted(shards):
    spoil(
        shards,
        lambda members: [
            *members[:2],
            ("00000004.json", b"{}"),
            ("00000004.seg.png", b""),
            *members[2:],
        ],
    )
    assert opened(shards).left_out == {"files that end in .json": 1, "files that end in .png": 1}


def test_a_broken_image_is_named_or_left_out(shards):
    path = spoil(shards, lambda members: [("00000004.png", b"no image"), *members[1:]])
    with pytest.raises(ConfigError, match=f"{path}: 00000004.png cannot be read as an image"):
        list(opened(shards).batches([(0, torch.arange(10))], "train", None))
    source = opened(shards, skip_corrupt=True)
    assert source.sizes == {"train": 9, "test": 4}
    assert source.left_out == {"images that cannot be read": 1}
    assert len(next(source.batches([(0, torch.arange(9))], "train", None))[1]) == 9


def test_what_is_no_folder_of_shards_is_refused(tmp_path, shards):
    assert "expected a folder with train/ and val/ (or test/), tar files in each" in refused(
        tmp_path
    )
    for path in (shards / "train").iterdir():
        path.unlink()
    assert f"{shards / 'train'} holds no shard" in refused(shards)
    (shards / "train" / "a-0.tar.gz").write_bytes(b"")
    assert "a-0.tar.gz is compressed" in refused(shards)
    (shards / "train" / "a-0.tar").write_bytes(b"no tar file")
    assert f"{shards / 'train' / 'a-0.tar'} cannot be read as a tar file" in refused(shards)
    (shards / "train" / "shardindex.json").write_text("{}")
    assert "is no list of shards" in refused(shards)
    with pytest.raises(ConfigError, match=r"data\.root is null: data=shards needs the folder"):
        make_source(DataConfig(name="shards"), AugmentConfig(), CPU)


def test_many_shards_are_read_with_few_open_files(written, monkeypatch):
    monkeypatch.setattr("earlydrop.training.data.shards._MOST_OPEN", 1)
    (images, _), (again, _) = opened(written[1]).batches(
        [(0, torch.arange(10)), (1, torch.arange(10))], "train", None
    )
    assert torch.equal(images, again)


def test_reading_an_index_agrees_with_tarfile(written):
    path = written[1] / "val" / "val-000000.tar"
    index, content = read_index(path), path.read_bytes()
    with tarfile.open(path) as tar:
        for name, offset, length in zip(index.names, index.offsets, index.lengths, strict=True):
            assert content[offset : offset + length] == tar.extractfile(name).read()


def list_shards(shards, urls):
    for split in ("train", "val"):
        folder = shards / split
        if folder.is_dir():
            content = json.loads((folder / "shardindex.json").read_text())
            for entry in content["shardlist"]:
                entry["url"] = urls(split, entry["url"])
            (folder / "shardindex.json").write_text(json.dumps(content))


def test_a_list_may_name_shards_by_a_path(shards):
    before = opened(shards).digest
    list_shards(shards, lambda split, name: f"data/{split}/{name}")
    assert opened(shards).digest == before


def test_numbers_that_are_no_numbering_have_no_gaps(shards):
    before = opened(shards).sizes
    for path, year in zip(
        sorted((shards / "train").glob("*.tar")), (2023, 2024, 2025), strict=True
    ):
        path.rename(path.with_name(f"day-{year}0101000000.tar"))
    for listed in shards.rglob("shardindex.json"):
        listed.unlink()
    assert opened(shards).sizes == before


def test_classes_are_a_list(shards):
    (shards / "classes.json").write_text('{"cat": 1, "dog": 0}')
    assert "is no list of classes" in refused(shards)
