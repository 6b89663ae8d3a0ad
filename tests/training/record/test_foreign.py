"""Weights from elsewhere: other runs, and files laid out as the released code writes them."""

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from earlydrop.training.config import ModelConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import Task, build_model
from earlydrop.training.record.foreign import foreign_weights
from earlydrop.training.run import run
from tests.training.data.pictures import make_folder

TASK = Task(3, 7, 224, 0.0, 0.0)


def released(path, weights, **more):
    """A file as the released code's ``save_on_master`` writes it."""
    content = {
        "model": weights,
        "optimizer": {"state": {}},
        "epoch": 299,
        "scaler": {},
        "args": argparse.Namespace(lr=4e-3),
    } | more
    torch.save(content, path)
    return str(path)


def old_convnext(weights):
    """ConvNeXt's weights under the names of its first code, which the released repository kept."""
    renamed = {}
    for name, value in weights.items():
        name = name.replace("stem.", "downsample_layers.0.")
        if ".downsample." in name:
            stage, part = name.split(".")[1], name.split("downsample.")[1]
            name = f"downsample_layers.{stage}.{part}"
        name = (
            name.replace(".blocks.", ".")
            .replace("conv_dw", "dwconv")
            .replace("mlp.fc1", "pwconv1")
            .replace("mlp.fc2", "pwconv2")
        )
        name = name.replace("head.norm", "norm").replace("head.fc", "head")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "mixer_s32_224", "swin_femto", "convnext_femto"]
)
def test_released_files_are_read_under_timms_names(name, tmp_path):
    model, other = (build_model(ModelConfig(name=name), TASK, seed) for seed in (0, 1))
    weights = model.state_dict()
    if name == "convnext_femto":
        weights = old_convnext(weights)
        assert weights.keys() != model.state_dict().keys()
    ((words, found),) = foreign_weights(released(tmp_path / "checkpoint.pth", weights), name, other)
    assert "epoch 299" in words
    other.load_state_dict(found["model"])
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_swins_of_before_timm_1_are_renamed(tmp_path):
    """Downsampling followed its stage, the head had no fc, buffers given by sizes were kept."""
    model = build_model(ModelConfig(name="swin_femto"), TASK, 0)
    old = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts).replace("head.fc.", "head.")] = value
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    ((_, found),) = foreign_weights(released(tmp_path / "checkpoint.pth", old), "swin_femto", model)
    assert found["model"].keys() == model.state_dict().keys()


def test_weights_of_another_image_size_are_not_interpolated(tmp_path):
    model = build_model(ModelConfig(name="swin_femto"), TASK, 0)
    larger = timm.create_model("swin_tiny_patch4_window7_224", num_classes=4)
    old = {}
    for name, value in model.state_dict().items():
        old[name.replace("head.fc.", "head.")] = value
    table = next(name for name in old if name.endswith("relative_position_bias_table"))
    rows = larger.state_dict()["layers.0.blocks.0.attn.relative_position_bias_table"].shape[0]
    old[table] = torch.zeros(rows, old[table].shape[1])
    with pytest.raises(ConfigError, match="another model"):
        foreign_weights(released(tmp_path / "checkpoint.pth", old), "swin_femto", model)


def test_averaged_weights_come_first(tmp_path):
    model = build_model(ModelConfig(name="vit_tiny_patch16_224"), TASK, 0)
    path = released(tmp_path / "c.pth", model.state_dict(), model_ema=model.state_dict())
    assert [
        words.split(" of ")[0] for words, _ in foreign_weights(path, "vit_tiny_patch16_224", model)
    ] == [
        "averaged weights",
        "weights",
    ]


def test_a_run_evaluates_another_runs_folder_and_file(config):
    first = run(config())
    evaluated = run(config(seed=1, mode="eval", checkpoint=first["folder"]))
    assert evaluated["test/loss"] == first["test/loss"]
    file = max(
        os.path.join(first["folder"], "checkpoints", f)
        for f in os.listdir(os.path.join(first["folder"], "checkpoints"))
        if f.endswith(".pt")
    )
    assert run(config(mode="eval", checkpoint=file))["test/loss"] == first["test/loss"]


def test_weights_are_evaluated_with_what_the_evaluation_reads_alone(config, tmp_path):
    """No training set, or a small one; lengths and schedule do not matter."""
    make_folder(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "val", tmp_path / "rest" / "val")
    options = {"trainer__batch_size": 4, "probe__at": []}
    data = {"name": "imagefolder", "image_size": 16}
    trained = run(config(data=data | {"root": str(tmp_path / "whole")}, **options))
    weights = {"mode": "eval", "checkpoint": trained["folder"]}
    rest = data | {"root": str(tmp_path / "rest")}
    usual = config(
        **weights,
        data=rest,
        evaluation__splits=["test"],
        trainer__batch_size=4096,
        schedule__cutoff="5000",
    )
    assert run(usual)["test/loss"] == trained["test/loss"]
    with pytest.raises(ConfigError, match=r"expected a folder with train/ and val/ \(or test/\)"):
        run(config(**weights, data=rest))
    whole = data | {"root": str(tmp_path / "whole")}
    assert (
        run(config(**weights, data=whole, trainer__batch_size=4096))["train_clean/loss"]
        == trained["train_clean/loss"]
    )
    shutil.rmtree(tmp_path / "whole" / "val")
    train = run(config(**weights, data=whole, evaluation__splits=["train_clean"]))
    assert train["train_clean/loss"] == trained["train_clean/loss"]


def test_standard_dropout_is_evaluated_at_the_rate_of_its_step(config):
    """Its weights are scaled by the rate at test, so the run's length and the schedule count."""
    options = {"model__dropout": "standard", "schedule__name": "late"}
    trained = run(config(**options))
    weights = {"mode": "eval", "checkpoint": trained["folder"]}
    assert run(config(**weights, **options))["test/loss"] == trained["test/loss"]
    assert run(config(**weights, schedule__name="late"))["test/loss"] != trained["test/loss"]
    with pytest.raises(
        ConfigError, match=r"trainer\.batch_size is 4096: the training set has only 300 images"
    ):
        run(config(**weights, **options, trainer__batch_size=4096))


def test_standard_dropout_without_the_step_of_its_weights_is_refused(config, tmp_path):
    """A file of weights alone does not say at which rate they were saved."""
    options = {"model__dropout": "standard"}
    trained = run(config(**options))
    last = max((Path(trained["folder"]) / "checkpoints").glob("step-*.pt"))
    torch.save(torch.load(last, weights_only=True)["model"], tmp_path / "plain.pt")
    with pytest.raises(ConfigError, match="does not hold the step at which the weights were saved"):
        run(config(**options, mode="eval", checkpoint=str(tmp_path / "plain.pt")))
    constant = options | {"schedule__name": "constant"}  # one rate at every step
    assert run(config(**constant, mode="eval", checkpoint=str(tmp_path / "plain.pt")))


OWN_STANDARD = """
from torch import nn
from earlydrop.classic import StandardDropout

def build(task):
    inputs = task.channels * task.image_size**2
    return nn.Sequential(
        nn.Flatten(), StandardDropout(task.unit), nn.Linear(inputs, task.classes)
    )
"""


def test_a_model_of_ones_own_with_standard_dropout_is_evaluated_with_its_run_only(
    config, tmp_path, monkeypatch
):
    (tmp_path / "ownstandard.py").write_text(OWN_STANDARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {
        "model__name": "ownstandard:build",
        "model__hidden": None,
        "schedule__name": "constant",
        "schedule__rate": 0.5,
    }
    trained = run(config(**options))
    assert run(config(**options, mode="eval"))["test/loss"] == trained["test/loss"]
    with pytest.raises(ConfigError, match="it has layers of standard dropout, which scale"):
        run(config(**options, mode="eval", checkpoint=trained["folder"]))
    at_rate_0 = options | {"schedule__name": "none"}
    trained = run(config(**at_rate_0))
    evaluated = run(config(**at_rate_0, mode="eval", checkpoint=trained["folder"]))
    assert evaluated["test/loss"] == trained["test/loss"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil.pth cannot be read as weights"):
        foreign_weights("evil.pth", "vit_tiny_patch16_224", torch.nn.Linear(1, 1))
    assert not (tmp_path / "evil").exists()


def test_what_is_no_checkpoint_of_this_model_is_refused(tmp_path):
    model = build_model(ModelConfig(name="vit_tiny_patch16_224"), TASK, 0)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no weights")
    other = timm.create_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    for path, message in (
        (tmp_path / "none.pth", r"there is no such file, nor a folder with checkpoints"),
        (tmp_path / "text.pth", r"text.pth cannot be read as weights"),
        (tmp_path / "empty.pth", r"empty.pth cannot be read as weights \(EOFError\)"),
        (tmp_path / "text.safetensors", r"text.safetensors cannot be read as weights"),
        (
            released(tmp_path / "other.pth", other),
            (
                r"holds another model than model.name=vit_tiny_patch16_224 on this data: "
                r"head.weight is \(5"
            ),
        ),
        (released(tmp_path / "part.pth", {"a": torch.zeros(1)}), "it lacks"),
        (released(tmp_path / "list.pth", [1]), "has no 'model' with weights by name"),
    ):
        with pytest.raises(ConfigError, match=message):
            foreign_weights(str(path), "vit_tiny_patch16_224", model)


def test_weights_that_timms_rules_cannot_rename_are_refused(tmp_path):
    plain = torch.nn.Linear(2, 2).state_dict()
    micro = ModelConfig(name="vit_micro")
    task = Task(1, 10, 28, 0.1, 0.1)
    with_input_dropout = build_model(replace(micro, input_dropout=0.1), task, 0)
    swin = build_model(ModelConfig(name="swin_femto"), TASK, 0)
    deeper = {
        name.replace("layers.2.blocks.5", "layers.2.blocks.7"): value
        for name, value in swin.state_dict().items()
    }
    convnext = build_model(ModelConfig(name="convnext_femto"), TASK, 0)
    for weights, name, model in (
        (plain, "convnext_femto", convnext),
        (deeper, "swin_femto", swin),
        (build_model(micro, task, 0).state_dict(), "vit_micro", with_input_dropout),
    ):
        path = released(tmp_path / "weights.pth", weights)
        with pytest.raises(ConfigError, match=f"another model than model.name={name} "):
            foreign_weights(path, name, model)


def test_a_checkpoint_is_for_evaluation(config):
    with pytest.raises(ConfigError, match=r"checkpoint is 'x': expected mode=eval"):
        run(config(checkpoint="x"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_of_weights_alone_is_evaluated(tmp_path, name):
    """As `earlydrop-weights` and timm write it."""
    model = build_model(ModelConfig(name="vit_tiny_patch16_224"), TASK, 0)
    weights = {key: value + 1 for key, value in model.state_dict().items()}
    if name.endswith(".pth"):
        torch.save(weights, tmp_path / name)
    else:
        safetensors.torch.save_file(weights, tmp_path / name)
    ((title, content),) = foreign_weights(str(tmp_path / name), "vit_tiny_patch16_224", model)
    assert title == f"weights of {tmp_path / name}"
    assert content["scheduler"] is None
    assert all(torch.equal(content["model"][key], value) for key, value in weights.items())
