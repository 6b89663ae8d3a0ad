from pathlib import Path

import pytest
import torch

from earlydrop.training.config import AugmentConfig, DataConfig
from earlydrop.training.data import make_source
from earlydrop.training.data.order import split_batches
from earlydrop.training.fields import ConfigError
from earlydrop.training.run import run
from tests.training.data.pictures import make_folder

CPU = torch.device("cpu")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(
        ConfigError,
        match=r"the package datasets is not installed; pip install 'earlydrop\[datasets\]'",
    ):
        make_source(DataConfig(name="huggingface", root=str(tmp_path)), AugmentConfig(), CPU)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The package, with a cache of its own."""
    package = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
        package.disable_progress_bars()
        yield package
        package.enable_progress_bars()


@pytest.fixture(scope="module")
def copies(datasets, tmp_path_factory):
    """The same images as a folder, saved to disk, and as parquet files."""
    root = tmp_path_factory.mktemp("copies")
    make_folder(root / "folder")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root / "folder"))
    loaded.save_to_disk(str(root / "saved"))
    (root / "parquet").mkdir()
    for split in loaded:
        loaded[split].to_parquet(str(root / "parquet" / f"{split}-00000.parquet"))
    return root


def opened(root, name="huggingface", augment=None, **more):
    config = DataConfig(name=name, root=str(root), image_size=16, **more)
    return make_source(config, augment or AugmentConfig(shift=0), CPU)


def refused(root, **more):
    with pytest.raises(ConfigError) as caught:
        opened(root, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("form", "workers"), [("saved", 0), ("saved", 1), ("parquet", 0), ("folder", 0)]
)
def test_the_images_are_those_of_the_folder_to_the_bit(copies, form, workers):
    augment = AugmentConfig(crop=True, randaugment="rand-m9-mstd0.5-inc1", erasing=0.5)
    sources = [
        opened(copies / form, augment=augment, workers=workers),
        opened(copies / "folder", "imagefolder", augment=augment),
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


def test_every_form_has_the_same_digest(copies):
    assert len({opened(copies / form).digest for form in ("saved", "parquet", "folder")}) == 1


def test_a_run_has_the_numbers_of_one_from_the_folder(copies, config):
    records = []
    for name, form in (("imagefolder", "folder"), ("huggingface", "saved")):
        data = {"name": name, "root": str(copies / form), "image_size": 16, "train_images": None}
        done = run(
            config(
                data=data,
                trainer__batch_size=4,
                trainer__log_every=1,
                augment__crop=True,
                probe__at=["50%"],
            )
        )
        records.append((Path(done["folder"]) / "metrics.jsonl").read_bytes())
    assert records[0] == records[1]
    assert records[0].count(b"train/loss") == 4


def test_columns_have_any_name(copies, datasets, tmp_path):
    loaded = datasets.load_from_disk(str(copies / "saved")).rename_columns(
        {"image": "img", "label": "fine"}
    )
    loaded = loaded.cast_column("fine", datasets.Value("int32"))
    loaded.save_to_disk(str(tmp_path / "renamed"))
    source = opened(tmp_path / "renamed", image="img", label="fine")
    plain = opened(copies / "saved")
    assert (source.classes, source.digest) == (2, plain.digest)
    assert "data.image is 'image': the split 'train' has the columns img, fine" in refused(
        tmp_path / "renamed"
    )
    assert "data.label is 'label': the split 'train' has the columns img, fine" in refused(
        tmp_path / "renamed", image="img"
    )
    assert "data.label is 'img'" in refused(tmp_path / "renamed", image="img", label="img")
    assert "data.image is 'fine'" in refused(tmp_path / "renamed", image="fine", label="fine")


def test_a_selection_is_read_in_its_own_order(copies, datasets, tmp_path):
    loaded = datasets.load_from_disk(str(copies / "saved"))
    loaded["train"] = loaded["train"].select([7, 0, 3])
    from earlydrop.training.data.huggingface import HuggingFaceImages

    images = HuggingFaceImages(loaded["train"], "train", "image", "label")
    sizes = [
        (copies / "folder" / "train" / path).stat().st_size
        for path in ("dog/2.png", "cat/0.png", "cat/3.png")
    ]
    assert [size for _, size in images.described()] == sizes
    assert images.labels.tolist() == [1, 0, 0]


def test_labels_that_are_none_are_refused(copies, datasets, tmp_path):
    loaded = datasets.load_from_disk(str(copies / "saved"))
    for number, (kind, label, words) in enumerate(
        (
            (
                "string",
                "cat",
                "for each image; dataset.class_encode_column('label') numbers the classes",
            ),
            ("int64", -1, "the split 'train' has the label -1, expected 0 to"),
            ("int64", None, "the split 'train' has an image without a label"),
        )
    ):
        changed = loaded.cast_column("label", datasets.Value(kind))
        changed = changed.map(
            lambda row, index, label=label: {"label": label if index == 3 else row["label"]},
            with_indices=True,
        )
        changed.save_to_disk(str(tmp_path / str(number)))
        assert words in refused(tmp_path / str(number))


def test_what_is_no_local_copy_is_refused(copies, datasets, tmp_path):
    assert (
        "expected a folder written by save_to_disk, one with parquet files, "
        "or one with train/ and val/"
    ) in refused(tmp_path)
    loaded = datasets.load_from_disk(str(copies / "saved"))
    loaded["train"].save_to_disk(str(tmp_path / "one"))
    assert "it holds one split; save a DatasetDict with train and validation, or test" in refused(
        tmp_path / "one"
    )
    datasets.DatasetDict({"train": loaded["train"]}).save_to_disk(str(tmp_path / "alone"))
    assert "it has the splits train, expected one of validation, val, test" in refused(
        tmp_path / "alone"
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"nothing")
    assert "the package datasets cannot read it" in refused(tmp_path / "broken")
    assert "data.train_images is 3" in refused(copies / "saved", train_images=3)
    with pytest.raises(ConfigError, match=r"data\.root is null: data=huggingface needs a folder"):
        make_source(DataConfig(name="huggingface"), AugmentConfig(), CPU)


def test_a_broken_image_is_named_or_left_out(datasets, tmp_path):
    make_folder(tmp_path / "folder")
    broken = tmp_path / "folder" / "train" / "dog" / "1.png"
    broken.write_bytes(b"no image")
    datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder")).save_to_disk(
        str(tmp_path / "saved")
    )
    for form in ("folder", "saved"):
        with pytest.raises(
            ConfigError, match=r"train\[6\] \(.*1\.png\) cannot be read as an image"
        ):
            list(opened(tmp_path / form).batches([(0, torch.arange(10))], "train", None))
    source = opened(tmp_path / "saved", skip_corrupt=True)
    assert source.sizes == {"train": 9, "test": 4}
    assert source.left_out == {"images that cannot be read": 1}
    assert source.digest == opened(tmp_path / "folder", "huggingface", skip_corrupt=True).digest
    assert len(next(source.batches([(0, torch.arange(9))], "train", None))[1]) == 9
