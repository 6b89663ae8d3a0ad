"""Weights to begin with, from a file, and files that are refused.

All weights are taken but those of a classifier for other classes.
"""

import pytest
import safetensors.torch
import timm
import torch

from earlydrop.training.config import ModelConfig
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import Task, build_model, in_words
from earlydrop.training.run import run

NAME = "test_resnet"


def build(path, classes=5, channels=3, name=NAME):
    return build_model(
        ModelConfig(name=name, pretrained=str(path)), Task(channels, classes, 32, 0.2, 0.0), 0
    )


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return timm.create_model(NAME, num_classes=7).state_dict()


@pytest.mark.parametrize("form", ["plain", "state_dict", "module", "safetensors"])
def test_every_form_of_file_gives_the_same_weights(tmp_path, weights, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        renamed = {f"module.{key}": value for key, value in weights.items()}
        torch.save(
            {"plain": weights, "state_dict": {"state_dict": weights}, "module": {"model": renamed}}[
                form
            ],
            path,
        )
    found = build(path, classes=7).state_dict()
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_another_number_of_classes_replaces_the_head_and_says_so(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    found, fresh = (
        build(tmp_path / "w.pth").state_dict(),
        build_model(ModelConfig(name=NAME), Task(3, 5, 32, 0.2, 0.0), 0).state_dict(),
    )
    for key, value in found.items():
        assert torch.equal(value, fresh[key] if key.startswith("fc.") else weights[key]), key
    (words,) = in_words(
        ModelConfig(name=NAME, pretrained=str(tmp_path / "w.pth")), Task(3, 5, 32, 0.2, 0.0)
    )["begins with"]
    assert words.endswith("; new, for 5 classes: fc.weight, fc.bias (7 classes there)")


def test_a_first_convolution_for_colours_is_summed_for_grey_images(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    found = build(tmp_path / "w.pth", channels=1).state_dict()
    first = next(iter(weights))
    torch.testing.assert_close(found[first], weights[first].sum(1, keepdim=True))


def test_a_vits_positions_are_resized_by_timms_own_rule(tmp_path):
    """A file of a ViT for 160 pixels, as timm reads it for 96."""
    torch.manual_seed(1)
    there = timm.create_model("test_vit", num_classes=5)
    torch.save(there.state_dict(), tmp_path / "w.pth")
    expected = timm.create_model("test_vit", num_classes=5, img_size=96)
    timm.models.load_checkpoint(
        expected,
        str(tmp_path / "w.pth"),
        filter_fn=timm.models.vision_transformer.checkpoint_filter_fn,
    )
    name = "test_vit"
    found = build_model(
        ModelConfig(name=name, pretrained=str(tmp_path / "w.pth")), Task(3, 5, 96, 0.1, 0.0), 0
    )
    torch.testing.assert_close(found.state_dict()["pos_embed"], expected.state_dict()["pos_embed"])


def test_files_that_are_refused(tmp_path, weights):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1], tmp_path / "list.pth")
    torch.save(
        {key: value for key, value in weights.items() if key != "conv1.0.weight"},
        tmp_path / "part.pth",
    )
    for name, says in {
        "none.pth": "No such file or directory; expected a file of weights",
        "text.pth": "it cannot be read as weights",
        "list.pth": "it has no weights by name",
        "part.pth": (
            "it holds another model than model.name=test_resnet on this data: "
            "it lacks conv1.0.weight"
        ),
    }.items():
        with pytest.raises(ConfigError, match=rf"model.pretrained is '.*{name}': {says}"):
            build(tmp_path / name)


def test_a_run_begins_with_them(config, tmp_path, capsys):
    settings = {"probe__at": [], "trainer__epochs": 1}
    first = run(config(**settings))
    file = max((tmp_path / "runs").rglob("step-*.pt"))
    second = run(
        config(
            model__pretrained=str(file),
            study="second",
            optim__lr=1e-9,
            optim__min_lr=0.0,
            optim__warmup="0%",
            **settings,
        )
    )
    assert second["test/loss"] == pytest.approx(first["test/loss"], abs=1e-4)
    assert "begins with 4 of 4 tensors" in capsys.readouterr().out


def test_files_without_counts_of_batches_are_taken(tmp_path, weights):
    kept = {key: value for key, value in weights.items() if "num_batches_tracked" not in key}
    assert len(kept) < len(weights)
    torch.save(kept, tmp_path / "w.pth")
    found = build(tmp_path / "w.pth", classes=7).state_dict()
    assert all(torch.equal(found[key], value) for key, value in kept.items())
