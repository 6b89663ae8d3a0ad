"""Further test sets against a loop of their own over PIL images, timm's transform and logits."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform

from earlydrop.analysis.compare import columns, summary_table
from earlydrop.analysis.runs import load_runs
from earlydrop.commands.cite import command_line
from earlydrop.training.compose import compose
from earlydrop.training.data import extra
from earlydrop.training.data.extra import scored
from earlydrop.training.distributed import Group
from earlydrop.training.endings import Interrupted
from earlydrop.training.evaluate import evaluate_extra
from earlydrop.training.fields import ConfigError
from earlydrop.training.overrides import mistake, with_own_keys
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.checkpoint import load_checkpoint
from earlydrop.training.record.folder import read_config
from earlydrop.training.run import run
from tests.training.data.test_shards import make_shards

CLASSES = ("ant", "bee", "cat", "dog")
SIZE = 16


def draw(root, counts, seed):
    """Random pictures: so many of each class folder, each with a file name of its own."""
    rng = np.random.default_rng(seed)
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for _ in range(count):
            # In the order of their names, the pictures of the classes alternate.
            file = root / name / f"{number * 37 % 101:03d}.png"
            Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(file)
            number += 1


@pytest.fixture
def folders(tmp_path):
    """Training data of four classes, a test set by index, one of two classes, and label lists."""
    data, v2, few = tmp_path / "data", tmp_path / "v2", tmp_path / "few"
    draw(data / "train", dict.fromkeys(CLASSES, 4), 0)
    draw(data / "val", {"ant": 3, "bee": 2, "cat": 4, "dog": 2}, 1)
    draw(v2, {"0": 2, "1": 3, "2": 1, "3": 3}, 2)
    draw(few, {"dog": 3, "bee": 4}, 3)
    (few / "README.txt").write_text("what it is")
    files = sorted((data / "val").rglob("*.png"), key=lambda file: file.name)
    lists = [[CLASSES.index(file.parent.name)] for file in files]
    lists[0] = []
    lists[1] = [0, 1, 2, 3]
    lists[2] = [(lists[2][0] + 1) % 4]
    lists[5].append(3)
    (tmp_path / "real.json").write_text(json.dumps(lists))
    return tmp_path


def settings(folders, *names, **more):
    places = {"v2": "v2", "few": "few", "real": "real.json"}
    extra = {name: str(folders / places[name]) for name in names}
    data = {"name": "imagefolder", "root": str(folders / "data"), "image_size": SIZE}
    return {
        "data": data | {"extra": extra},
        "trainer__batch_size": 4,
        "evaluation__batch_size": 3,
        "probe__at": [],
        **more,
    }


def trained(plan):
    model, _ = scheduled_model(plan)
    content = load_checkpoint(plan.folder / "checkpoints", plan.fingerprint)
    model.load_state_dict(content["model"])
    return model.eval()


def logits_of(model, files):
    transform = create_transform(
        SIZE, is_training=False, crop_pct=224 / 256, interpolation="bicubic"
    )
    images = [transform(Image.open(file).convert("RGB")) for file in files]
    with torch.no_grad():
        return torch.stack([model(image[None])[0] for image in images])


def by_hand(model, folders):
    """Every metric, image by image."""
    files = sorted((folders / "v2").rglob("*.png"))
    labels = torch.tensor([int(file.parent.name) for file in files])
    logits = logits_of(model, files)
    expected = {
        "v2/loss": float(F.cross_entropy(logits, labels)),
        "v2/accuracy": float((logits.argmax(1) == labels).double().mean()),
    }
    files = sorted((folders / "few").rglob("*.png"))
    log_of_two = logits_of(model, files)[:, [1, 3]].log_softmax(1)  # among bee and dog
    places = [("bee", "dog").index(file.parent.name) for file in files]
    losses = [-float(row[place]) for row, place in zip(log_of_two, places, strict=True)]
    right = [int(row.argmax()) == place for row, place in zip(log_of_two, places, strict=True)]
    expected |= {"few/loss": np.mean(losses), "few/accuracy": np.mean(right)}
    files = sorted((folders / "data" / "val").rglob("*.png"), key=lambda file: file.name)
    lists = json.loads((folders / "real.json").read_text())
    predicted = logits_of(model, files).argmax(1).tolist()
    counted = [guess in right for guess, right in zip(predicted, lists, strict=True) if right]
    return expected | {"real/accuracy": np.mean(counted)}


def test_the_last_line_has_every_set_as_a_loop_by_hand_has_it_and_an_evaluation_too(
    config, folders, capsys
):
    options = settings(folders, "v2", "few", "real", trainer__ema=0.5)
    result = run(config(**options))
    plan = make_plan(config(**options))
    expected = by_hand(trained(plan), folders)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name
        assert f"ema/{name}" in result
    assert "real/loss" not in result
    assert "v2/accuracy" in capsys.readouterr().out
    lines = [json.loads(line) for line in (plan.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "v2/accuracy" in line] == [plan.total_steps]
    evaluated = run(config(**options, mode="eval"))
    assert {name: evaluated[name] for name in expected} == {name: result[name] for name in expected}


def test_they_change_neither_the_fingerprint_nor_another_metric(config, folders):
    plain = run(config(**settings(folders)))
    options = settings(folders, "v2", "few", "real", out=str(folders / "again"))
    result = run(config(**options))
    assert Path(plain["folder"]).name == Path(result["folder"]).name
    same = {name: value for name, value in result.items() if name in plain and name != "folder"}
    assert same == {name: value for name, value in plain.items() if name != "folder"}


def test_classes_are_recorded(config, folders):
    result = run(config(**settings(folders, "v2", "few", "real")))
    recorded = json.loads((Path(result["folder"]) / "provenance.json").read_text())["data"]["extra"]
    found = {
        name: (each["images"], each["classes"], each["matched"]) for name, each in recorded.items()
    }
    assert found == {
        "v2": (9, 4, "by index"),
        "few": (7, 2, "by name"),
        "real": (10, 4, "label lists"),
    }


def test_a_plan_counts_them_and_trains_nothing(config, folders, capsys):
    run(config(**settings(folders, "v2", "few", "real"), mode="plan"))
    printed = capsys.readouterr().out
    assert "further      v2: 9 images of 4 classes, by index\n" in printed
    few = "few: 7 images of 2 classes, by name (left out: files beside the class folders: 1)"
    assert few in printed
    real = "real: 10 images of 4 classes, label lists (left out: images with an empty list: 1)"
    assert real in printed


def test_the_logits_of_some_classes_are_those_of_its_folders(config, folders):
    extra = make_plan(config(**settings(folders, "few"))).source.extra["few"]
    assert scored(torch.tensor([[10.0, 11.0, 12.0, 13.0]]), extra).tolist() == [[11.0, 13.0]]


class Half(Group):
    """One of two workers, without the other: its sums stay its own."""

    sums: list

    def sum(self, values):
        self.sums.append(values.clone())
        return values


def test_two_workers_share_the_images(config, folders):
    plan = make_plan(config(**settings(folders, "v2", "few", "real")))
    model, _ = scheduled_model(plan)
    halves = [Half(rank=rank, size=2) for rank in range(2)]
    for half in halves:
        object.__setattr__(half, "sums", [])
        evaluate_extra(model, plan, half)
    together = [one + other for one, other in zip(*(half.sums for half in halves), strict=True)]
    assert [int(values[-1]) for values in together] == [9, 7, 10]
    assert all(0 < half.sums[0][-1] < 9 for half in halves)
    whole = evaluate_extra(model, plan)
    v2, few, real = together
    assert whole == {
        "v2/loss": pytest.approx(float(v2[0] / 9), rel=1e-12),
        "v2/accuracy": float(v2[1] / 9),
        "few/loss": pytest.approx(float(few[0] / 7), rel=1e-12),
        "few/accuracy": float(few[1] / 7),
        "real/accuracy": float(real[0] / 10),
    }


def broken(folders):
    """Wrong places, by what the message has to say."""
    draw(folders / "unknown", {"ant": 1, "yak": 1}, 4)
    draw(folders / "large", {"0": 1, "4": 1}, 4)
    draw(folders / "twice", {"1": 1, "01": 1}, 4)
    (folders / "empty").mkdir()
    draw(folders / "hollow", {"ant": 1, "bee": 0}, 4)
    draw(folders / "cut", {"ant": 1}, 4)
    next((folders / "cut").rglob("*.png")).write_bytes(b"")
    lists = json.loads((folders / "real.json").read_text())
    for name, content in {
        "short": lists[1:],
        "text": {"a": 1},
        "large": [*lists[:-1], [4]],
        "none": [[]] * len(lists),
        "float": [*lists[:-1], [1.5]],
        "turned": [[(label + 1) % 4 for label in one[:1]] for one in lists],
    }.items():
        (folders / f"{name}.json").write_text(json.dumps(content))
    (folders / "broken.json").write_text("[[1]")


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("v2", "nowhere", "there is no such folder"),
        ("real", "nowhere.json", "there is no such folder, and no such file"),
        ("v2", "unknown", "1 of its 2 folders, such as 'yak', are none of the 4 training classes"),
        (
            "v2",
            "large",
            "its folders are numbers, up to '4'; expected each number once, from 0 to 3",
        ),
        ("v2", "twice", "expected each number once"),
        ("v2", "empty", "holds no class folder"),
        ("v2", "hollow", "hollow/bee holds no image"),
        ("v2", "cut", "is empty: copy it again"),
        ("real", "short.json", "it has 10 lists and the test set 11 images"),
        ("real", "text.json", "expected a list of labels for every image"),
        ("real", "float.json", "expected a list of labels for every image"),
        ("real", "large.json", "it has the label 4; expected 0 to 3"),
        ("real", "none.json", "every list in it is empty"),
        ("real", "turned.json", "of the test images have their own class in their list"),
        ("real", "broken.json", "it is no JSON"),
        ("test", "v2", "has the name 'test': expected a letter"),
        ("probe", "v2", "has the name 'probe'"),
        ("a b", "v2", "has the name 'a b'"),
        ("a/b", "v2", "has the name 'a/b'"),
        ("ema/v2", "v2", "has the name 'ema/v2'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(config, folders, name, place, said):
    broken(folders)
    options = settings(folders)
    options["data"]["extra"] = {name: str(folders / place)}
    with pytest.raises(ConfigError) as error:
        run(config(**options, mode="plan"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folders / "runs").exists()


def test_the_home_of_nobody_is_named(config, folders):
    options = settings(folders)
    options["data"]["extra"] = {"v2": "~nobody-of-this-name/v2"}
    with pytest.raises(ConfigError, match=r"data\.extra\.v2.*[Cc]ould not determine home"):
        run(config(**options, mode="plan"))


def test_pictures_with_one_name_have_no_order(config, folders):
    first, second = (folders / "data" / "val" / name for name in ("ant", "bee"))
    next(second.iterdir()).rename(second / sorted(first.iterdir())[0].name)
    with pytest.raises(ConfigError, match="so the order of the lists is not defined"):
        make_plan(config(**settings(folders, "real")))


def test_other_data_refuses_them_by_name(config, folders):
    options = {"data": {"extra": {"v2": str(folders / "v2")}}}
    with pytest.raises(ConfigError, match="data=fashion_mnist_mini is not read from images"):
        run(config(**options))


def test_a_finished_run_says_that_it_measures_no_more(config, folders, capsys):
    run(config(**settings(folders)))
    run(config(**settings(folders, "v2")))
    assert "data.extra.v2 was not measured, since the run had finished" in capsys.readouterr().err
    evaluated = run(config(**settings(folders, "v2"), mode="eval"))
    assert 0 <= evaluated["v2/accuracy"] <= 1


def test_a_run_that_goes_on_with_another_set_records_it(config, folders):
    with pytest.raises(Interrupted):
        run(config(**settings(folders)), watch=lambda step, metrics: True)
    result = run(config(**settings(folders, "few")))
    assert result["state"] == "finished"
    folder = Path(result["folder"])
    assert read_config(folder)["data"]["extra"] == {"few": str(folders / "few")}
    assert (
        json.loads((folder / "provenance.json").read_text())["data"]["extra"]["few"]["images"] == 7
    )


def test_the_table_has_a_column_of_each(config, folders):
    result = run(config(**settings(folders, "v2", "real")))
    runs = load_runs(result["folder"])
    headings = [heading for heading, _ in columns(runs).values()]
    assert headings[-2:] == ["v2 accuracy", "real accuracy"]
    assert summary_table(runs)["v2 accuracy"].tolist() == [f"{result['v2/accuracy']:.4f}"]
    words = shlex.split(command_line(read_config(Path(result["folder"]))))
    assert f"+data.extra.v2='{folders}/v2'" in words


@pytest.mark.parametrize(
    "overrides",
    [["data.extra.v2=/a", "+data.extra.real=/b.json"], ["data.extra={v2:/a,real:/b.json}"]],
)
def test_the_command_line_names_them(overrides):
    assert mistake(overrides) is None
    assert compose(with_own_keys(overrides))["data"]["extra"] == {"v2": "/a", "real": "/b.json"}


def test_shards_take_folders_and_refuse_lists_of_images_in_another_order(
    config, folders, monkeypatch
):
    """Shards of the script are numbered class by class: the lists would be of other images."""
    monkeypatch.setattr("earlydrop.training.data.shard_index.INDEXES", folders / "indexes")
    make_shards(folders / "data", folders / "shards", "--per-shard", 5)
    options = settings(folders, "v2", "few")
    options["data"] |= {"name": "shards", "root": str(folders / "shards")}
    plan = make_plan(config(**options))
    model, _ = scheduled_model(plan)
    expected = evaluate_extra(model, make_plan(config(**settings(folders, "v2", "few"))))
    assert evaluate_extra(model, plan) == expected
    options["data"]["extra"] = {"real": str(folders / "real.json")}
    with pytest.raises(ConfigError, match="if shards renamed the images, use data=imagefolder"):
        make_plan(config(**options))


def test_a_dataset_of_hugging_face_takes_both(config, folders, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folders / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folders / "data"))
    loaded.save_to_disk(str(folders / "saved"))
    options = settings(folders, "few", "real")
    expected = make_plan(config(**options))
    options["data"] |= {"name": "huggingface", "root": str(folders / "saved")}
    plan = make_plan(config(**options))
    model, _ = scheduled_model(plan)
    found = evaluate_extra(model, plan)
    assert found == pytest.approx(evaluate_extra(model, expected), rel=1e-6)
    assert found["few/accuracy"] == evaluate_extra(model, expected)["few/accuracy"]


def test_lists_open_the_test_set_where_no_split_needs_it(config, folders):
    trained_run = run(config(**settings(folders)))
    weights = max((Path(trained_run["folder"]) / "checkpoints").glob("*.pt"))
    more = {"mode": "eval", "checkpoint": str(weights), "evaluation__splits": ["train_clean"]}
    evaluated = run(config(**settings(folders, "real", "few", **more)))
    assert {"train_clean/loss", "real/accuracy", "few/accuracy"} < evaluated.keys()
    assert "test/loss" not in evaluated


def test_a_sweeper_may_optimise_one(config, folders):
    options = settings(folders, "v2", "real")
    make_plan(config(**options, objective="v2/accuracy"))
    for name in ("few/accuracy", "real/loss"):
        with pytest.raises(ConfigError, match=f"objective is '{name}': expected a metric"):
            make_plan(config(**options, objective=name))


def test_lists_of_the_first_class_alone_are_lists():
    content = json.dumps([[0], [], [0]]).encode()
    assert extra.parsed_lists("data.extra", content, count=3, classes=2) == [[0], [], [0]]
    with pytest.raises(ConfigError, match=r"it has the label 2; expected 0 to 1"):
        extra.parsed_lists("data.extra", json.dumps([[2], [], [0]]).encode(), count=3, classes=2)
    with pytest.raises(ConfigError, match="every list in it is empty"):
        extra.parsed_lists("data.extra", json.dumps([[], []]).encode(), count=2, classes=2)
