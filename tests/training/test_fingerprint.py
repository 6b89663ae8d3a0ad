"""The fingerprint follows from the roles of the keys: of every one of them."""

import pandas as pd
import pytest
from PIL import Image

from earlydrop.analysis.arms import config_of
from earlydrop.claims.summaries import has_value, read_summaries
from earlydrop.training.fields import CADENCE, NUMBERS, SEED
from earlydrop.training.fingerprint import EXPLICIT_MODELS, VERSIONS, parts_used, settings
from earlydrop.training.keys import keys
from earlydrop.training.models import BUILDERS
from earlydrop.training.models.timm import ARCHITECTURES
from earlydrop.training.plan import make_plan

OWN = """
from torch import nn

def build(task, size: int = 3):
    return nn.Sequential(nn.Flatten(), nn.Dropout(task.unit), nn.LazyLinear(task.classes))

def data(size: int = 12):
    return [[([[i, j], [j, 2 * i]], j % 2) for j in range(size) for i in range(2)]] * 2

def rise(top: float = 0.1):
    return lambda step: top * step / (1 + step)

def steepness(moments):
    return moments.norms
"""


@pytest.fixture(autouse=True)
def own(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("own")
    (folder / "of_the_fingerprint.py").write_text(OWN)
    (folder / "weights.pth").write_bytes(b"weights")
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{i}.png")
    return root


CHANGED = {  # a valid value beside the default, where the type alone does not give one
    "model.name": "mlp",
    "model.hidden": [8],
    "model.profile": [1.0],
    "model.attention": "fused",
    "model.dropout": "shared",
    "data.name": "fashion_mnist_mini",
    "data.train_images": 301,
    "data.image_size": 16,
    "schedule.name": "late",
    "schedule.kind": "all",
    "schedule.cutoff": "30%",
    "schedule.shape": "cosine",
    "schedule.points": "0,0.2@0.5,0",
    "schedule.gamma": 0.5,
    "optim.name": "sgd",
    "optim.warmup": "30%",
    "augment.randaugment": "rand-m5",
    "probe.at": ["50%"],
    "trainer.precision": "bf16",
    "trainer.masks": "native",
    "trainer.eval_every": "10%",
    "trainer.stop_metric": "test/loss",
    "mode": "plan",
    "resume": "force",
    "tracking.mode": "online",
    "tracking.backend": "csv",
    "tracking.console": True,
    "tracking.system": True,
    "objective": "test/loss",
    "device": "cpu",
    "schedule.rate": 0.3,
    "optim.momentum": 0.5,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.min_lr": 1e-4,
    "trainer.profile": "1:2",
    "trainer.compile_mode": "reduce-overhead",
    "evaluation.splits": ["test"],
    "evaluation.batch_size": 4,
    "trainer.batch_size": 4,
    "trainer.accumulate": 2,
    "trainer.steps": 7,
    "model.pretrained": "weights.pth",
    "data.decoder": "torchcodec",
    "data.image": "picture",
    "data.label": "kind",
    "model.args": {"size": 4},
    "data.args": {"size": 14},
    "schedule.args": {"top": 0.2},
    "probe.measures": ["of_the_fingerprint:steepness"],
}
NEEDS = {  # what makes a key mean something
    "schedule.path_rate": {"schedule.kind": "all"},
    "schedule.points": {"schedule.name": "piecewise", "schedule.points": "0,0.1@0.5,0"},
    "schedule.gamma": {"schedule.name": "curriculum"},
    "optim.momentum": {"optim.name": "sgd"},
    "augment.switch": {"augment.mixup": 0.8, "augment.cutmix": 1.0},
    "trainer.compile_mode": {"trainer.compile": True},
    "trainer.stop_patience": {"trainer.stop_metric": "test/loss"},
    "trainer.mc_passes": {"schedule.name": "constant"},
    "model.dropout": {"model.name": "mlp"},
    "model.profile": {"model.name": "mlp"},
    "model.hidden": {"model.name": "mlp"},
    **{
        f"probe.{name}": {"probe.at": ["0%"]}
        for name in ("batches", "dataset_limit", "clean", "compare", "curvature", "measures")
    },
    "model.args": {"model.name": "of_the_fingerprint:build"},
    "schedule.args": {"schedule.name": "of_the_fingerprint:rise"},
    "data.args": {"data.name": "of_the_fingerprint:data", "augment.shift": 0},
    **{name: {"data.train_images": 300} for name in ("data.train_images",)},
}


def changed(key):
    if key.name in CHANGED:
        return CHANGED[key.name]
    if bool in key.kinds:
        return not key.default
    if str in key.kinds:
        return "other"
    if list in {getattr(kind, "__origin__", None) for kind in key.kinds}:
        return ["other"]
    return (key.default or 0) + (1 if int in key.kinds else 0.25)


@pytest.fixture
def saved(image_folder, tmp_path):
    """The image folder as a dataset of Hugging Face, with a second column of each kind."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        loaded = datasets.load_dataset("imagefolder", data_dir=str(image_folder))
    for split, rows in loaded.items():
        turned = rows.select(range(len(rows) - 1, -1, -1))
        loaded[split] = rows.add_column("kind", turned["label"][:]).add_column(
            "picture", turned.cast_column("image", datasets.Image(decode=False))["image"][:]
        )
        loaded[split] = loaded[split].cast_column("picture", datasets.Image())
    loaded.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "name", [name for name in keys() if name != "checkpoint"]
)  # a plan to evaluate weights is of no run
def test_every_key_acts_as_its_role_says(name, image_folder, tmp_path, request, monkeypatch):
    key = keys()[name]
    folder = name in (
        "data.image_size",
        "augment.crop",
        "augment.randaugment",
        "augment.color_jitter",
        "data.skip_corrupt",
        "data.extra",
        "data.decoder",
    )
    base = {"out": str(tmp_path), "trainer.epochs": 3, "trainer.batch_size": 2} | NEEDS.get(
        name, {}
    )
    base |= (
        {"data.name": "imagefolder", "data.root": str(image_folder), "data.image_size": 8}
        if folder or name == "data.name"
        else {}
    )
    if name == "data.root":
        base |= {"data.name": "fashion_mnist_mini"}
    if name in ("data.image", "data.label"):
        base |= {
            "data.name": "huggingface",
            "data.root": str(request.getfixturevalue("saved")),
            "data.image_size": 8,
        }
    one, other = (
        config_of(base),
        config_of(base | {name: str(image_folder) if name == "data.root" else changed(key)}),
    )
    if name == "data.decoder":
        monkeypatch.setattr("earlydrop.training.data.decode.torchcodec_problem", lambda: None)
    if name == "data.extra":
        other.data.extra = {"again": str(image_folder / "val")}
    if name == "data.name":
        other.data.root = other.data.image_size = None
    assert key.used(one), name
    prints = {make_plan(each).fingerprint for each in (one, other)}
    assert len(prints) == (2 if key.role in (NUMBERS, CADENCE, SEED) else 1), name
    assert (settings(one) != settings(other)) == (key.role == NUMBERS), name


def test_keys_of_image_folders_are_left_out_for_data_in_memory():
    plain = make_plan(config_of({})).fingerprint
    assert (
        plain
        == make_plan(
            config_of({"augment.crop": True, "augment.randaugment": "rand-m9"})
        ).fingerprint
    )


def test_keys_that_a_users_data_may_read_are_settings_of_it():
    changed = {"data.skip_corrupt": True, "augment.crop": True, "data.image": "picture"}
    found = settings(config_of({"data.name": "faces:load"} | changed))
    assert changed.items() <= found.items()


@pytest.mark.parametrize("mixing", [{}, {"augment.mixup": 0.8}, {"augment.cutmix": 1.0}])
def test_the_switch_probability_counts_only_where_both_mixes_are_on(mixing):
    one, other = (
        make_plan(config_of(mixing | {"augment.switch": share})).fingerprint
        for share in (0.25, 0.75)
    )
    assert one == other


def test_keys_of_images_in_memory_are_left_out_for_endless_images_and_text():
    for base in ({"data.name": "glyphs"}, {"data.name": "text", "model.name": "gpt_micro"}):
        more = {"augment.shift": 1, "augment.flip": False, "augment.erasing": 0.25}
        assert (
            make_plan(config_of(base)).fingerprint == make_plan(config_of(base | more)).fingerprint
        )


def test_a_raised_version_renames_the_runs_that_use_the_part_and_no_others(monkeypatch):
    def prints():
        return [
            make_plan(config_of(c)).fingerprint
            for c in ({}, {"augment.mixup": 0.8}, {"probe.at": ["0%"]})
        ]

    before = prints()
    monkeypatch.setitem(VERSIONS, "mixing", 2)
    after = prints()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    monkeypatch.setitem(VERSIONS, "probe", 2)
    assert [a == b for a, b in zip(after, prints(), strict=True)] == [True, True, False]


def test_a_part_of_some_models_is_for_them_alone():
    found = {
        name: parts_used(config_of({"model.name": name})) & {"vit", "swin"}
        for name in (
            "vit_micro",
            "vit_tiny_patch16_224",
            "deit_tiny_patch16_224",
            "mixer_s32_224",
            "swin_femto",
        )
    }
    assert found == {
        "vit_micro": set(),
        "vit_tiny_patch16_224": {"vit"},
        "deit_tiny_patch16_224": set(),
        "mixer_s32_224": set(),
        "swin_femto": {"swin"},
    }


def test_committed_fingerprints_are_todays(request):
    """Every configuration behind results/ keeps its run's fingerprint, if its data is here."""
    for name in ("findings", "classic"):
        runs = read_summaries(request.config.rootpath / "results" / name).runs
        here = (
            runs[runs["config/data.name"] == "fashion_mnist_mini"].groupby(["study", "arm"]).head(1)
        )
        for row in here.to_dict("records"):
            values = {
                c.removeprefix("config/"): v for c, v in row.items() if c.startswith("config/")
            }
            values = {key: value for key, value in values.items() if has_value(key, value)}
            if pd.isna(values.get("trainer.stop_patience")):
                values["trainer.stop_patience"] = 3
            plan = make_plan(config_of(values | {"seed": row["seed"]}))
            assert plan.fingerprint == row["fingerprint"], (row["study"], row["arm"])


def test_the_fingerprint_is_of_what_determines_the_numbers(config):
    def fingerprint(**options):
        return make_plan(config(**options)).fingerprint

    base = fingerprint()
    same = (
        {"out": "elsewhere"},
        {"tracking": "offline"},
        {"threads": 1},
        {"study": "x"},
        {"label": "x"},
        {"data__workers": 3},
        {"resume": "force"},
        {"tags": ["a"]},
        {"optim__momentum": 0.5},
        {"schedule__points": "0,0"},
        {"trainer__checkpoint_seconds": 3.0},
        {"trainer__steps": 18},
        {"schedule__cutoff": "9"},
    )
    for options in same:
        assert fingerprint(**options) == base, options
    other = (
        {"seed": 1},
        {"schedule__rate": 0.2},
        {"schedule__cutoff": "10"},
        {"trainer__batch_size": 16},
        {"trainer__log_every": 2},
        {"probe__batches": 4},
        {"augment__shift": 1},
        {"trainer__precision": "bf16"},
        {"trainer__masks": "native"},
        {"model__attention": "fused"},
        {"optim__lr": 1e-3},
        {"data__train_images": 301},
        {"trainer__compile": True},
    )
    assert len({fingerprint(**options) for options in other} | {base}) == len(other) + 1
    none = fingerprint(schedule__name="none")
    assert none == fingerprint(
        schedule__name="none", schedule__rate=0.7, trainer__masks="native", schedule__kind="path"
    )


def test_choices_that_mean_nothing_without_dropout_share_a_fingerprint(config):
    prints = {
        make_plan(config(schedule__name="none", model__dropout=d)).fingerprint
        for d in (None, "standard", "gaussian")
    }
    assert len(prints) == 1
    assert (
        make_plan(config(model__dropout="standard")).fingerprint != make_plan(config()).fingerprint
    )


def test_the_names_of_models_with_an_explicit_map_are_all_known():
    prefixes = [f"{name}_" for name in ARCHITECTURES]
    assert all(name.startswith(EXPLICIT_MODELS) for name in [*BUILDERS, *prefixes])


def test_weights_to_begin_with_count_by_their_content(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    (tmp_path / "b.pth").write_bytes(b"others")
    names = ("weights.pth", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"))
    prints = [make_plan(config_of({"model.pretrained": name})).fingerprint for name in names]
    assert prints[0] == prints[1] != prints[2]
    assert make_plan(config_of({})).fingerprint not in prints
