from pathlib import Path

import pytest
import timm
import torch

from earlydrop.commands.weights import main
from earlydrop.training.run import run
from tests.training.states import final_state

TINY = {
    "model__name": "test_resnet",
    "model__hidden": None,
    "model__input_dropout": 0.1,
    "trainer__steps": 2,
    "trainer__eval_every": "100%",
    "probe__at": [],
    "evaluation__splits": ["test"],
    "schedule__name": "none",
}


@pytest.fixture
def weights(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["earlydrop-weights", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_timm_loads_the_weights_of_a_run(config, tmp_path, weights, ending):
    folder = run(config(**TINY))["folder"]
    file = tmp_path / f"weights.{ending}"
    said = weights(folder, file)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10, checkpoint_path=str(file))
    trained = final_state(folder)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"network.{name}"])
    assert (
        said.splitlines()[-1]
        == f"{file}: {len(trained)} tensors, the last weights of {folder}, step 2"
    )


def test_averaged_and_best_weights_are_those_that_were_kept(config, tmp_path, weights):
    folder = run(
        config(trainer__ema=0.5, trainer__stop_metric="test/loss", trainer__stop_patience=9)
    )["folder"]
    checkpoints = Path(folder) / "checkpoints"
    state, best = (
        torch.load(each) for each in (max(checkpoints.glob("step-*.pt")), checkpoints / "best.pt")
    )
    for which, expected in (
        ("last", state["model"]),
        ("averaged", state["model_ema"]),
        ("best", best["model"]),
    ):
        weights(folder, tmp_path / f"{which}.pth", "--which", which)
        found = torch.load(tmp_path / f"{which}.pth")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_not_there_is_said(config, tmp_path, weights):
    folder = run(config())["folder"]
    for which, need in (("averaged", "trainer.ema"), ("best", "trainer.stop_metric")):
        with pytest.raises(
            SystemExit, match=f"has no {which} weights: it was trained without {need}"
        ):
            weights(folder, tmp_path / "w.pth", "--which", which)
    with pytest.raises(
        SystemExit, match=r"w\.bin ends in '\.bin': expected \.safetensors, \.pth, \.pt"
    ):
        weights(folder, tmp_path / "w.bin")
    with pytest.raises(SystemExit, match=r"error: .*provenance\.json"):
        weights(tmp_path, tmp_path / "w.pth")
