"""What a plan says that a run costs, against what the run takes."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from earlydrop.training.cost import Cost, estimate
from earlydrop.training.fields import ConfigError
from earlydrop.training.models import BUILDERS
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.run import run


def test_memory_and_checkpoints_are_what_torch_holds(config, tmp_path):
    plan = make_plan(config())
    cost = estimate(plan)
    model, _ = scheduled_model(plan)
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert (cost.weights, cost.optimizer, cost.checkpoint) == (
        3 * weights,  # the initial weights and the gradients too
        2 * weights,
        3 * weights,
    )
    result = run(config())
    newest = max((make_plan(config()).folder / "checkpoints").glob("step-*.pt"))
    assert newest.stat().st_size == pytest.approx(cost.checkpoint, rel=0.2)
    assert result["state"] == "finished"
    hidden, batch = 16, 32
    assert cost.activations >= 4 * batch * hidden  # at least the hidden layer's outputs


def test_a_given_speed_is_taken_and_workers_share_it(config):
    one = estimate(make_plan(config(plan__images_per_second=100.0)))
    plan = make_plan(config(plan__images_per_second=100.0, plan__workers=4))
    four = estimate(plan)
    assert not one.measured
    assert one.training == pytest.approx(plan.total_steps * 32 / 100)
    assert four.training == pytest.approx(one.training / 4)
    assert one.input is None  # nothing is read from files


def test_monte_carlo_passes_and_curvature_are_counted(config):
    given = {"plan__images_per_second": 100.0, "schedule__name": "constant", "probe__at": ["50%"]}
    without = estimate(make_plan(config(**given)))
    plan = make_plan(config(**given, trainer__mc_passes=3, probe__curvature=True))
    both = estimate(plan)
    passes = both.evaluation - without.evaluation
    assert passes == pytest.approx(4 * plan.source.sizes["test"] / 3 / 100)
    assert both.probes - without.probes == pytest.approx(65 * 32 / 100)


def test_every_worker_makes_all_monte_carlo_passes(config):
    given = {"plan__images_per_second": 100.0, "plan__workers": 4, "schedule__name": "constant"}
    without = estimate(make_plan(config(**given)))
    plan = make_plan(config(**given, trainer__mc_passes=3))
    passes = estimate(plan).evaluation - without.evaluation
    assert passes == pytest.approx(4 * plan.source.sizes["test"] / 3 / 100)


def test_the_plan_says_what_each_worker_gets(config, capsys):
    shared = {"trainer__accumulate": 8, "plan__workers": 4, "plan__images_per_second": 50.0}
    enough = {"probe__batches": 4, "probe__dataset_limit": 128}
    run(config(mode="plan", **shared, **enough))
    out = capsys.readouterr().out
    assert "batch        32 in 8 parts of 4, 2 for each of 4 workers" in out
    assert re.search(
        (
            r"memory\s+\S+ kB for each worker \(.* weights and gradients, .* optimizer, "
            r".* activations of a part"
        ),
        out,
    )
    assert "2 kept and one being written" in out
    assert re.search(
        r"estimated .* GPU hours, compute bound, at 50 images/s a worker as given$",
        out,
        re.MULTILINE,
    )
    with pytest.raises(ConfigError, match="3 workers cannot share"):
        run(config(mode="plan", trainer__accumulate=8, plan__workers=3))
    with pytest.raises(ConfigError, match="4 workers need at least 4 of each"):
        run(config(mode="plan", **shared))


def test_the_plan_refuses_what_a_run_refuses(config, monkeypatch):
    class Undriven(nn.Sequential):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.3, self.training)

    def build(task):
        return Undriven(nn.Flatten(), nn.Dropout(task.unit), nn.Linear(784, task.classes))

    monkeypatch.setitem(BUILDERS, "undriven", build)
    own = {"model__name": "undriven", "model__hidden": None}
    for mode in ("plan", "train"):
        with pytest.raises(ConfigError, match="that no schedule drives"):
            run(config(mode=mode, **own))


def test_timing_leaves_the_random_state_of_training_alone(config):
    """A plan, then a run, gives the run's numbers."""
    torch.manual_seed(1)
    before = run(config())
    estimate(make_plan(config(seed=3)))
    assert run(config(resume="never"))["train_eval/loss"] == before["train_eval/loss"]


PACE = Cost(1_000.0, True, 0.0, 0.0, 0.0, 0, 0, 0, 0, input=100.0)


def test_the_slower_of_device_and_input_sets_the_pace():
    assert PACE._replace(input=None).seconds(3_000) == 3.0
    assert PACE._replace(loaders=5).seconds(3_000) == 3_000 / 500
    assert PACE._replace(loaders=20).seconds(3_000) == 3.0
    assert (
        PACE._replace(loaders=20).seconds(3_000, 1 / 3) == 1.5
    )  # an evaluation, whose passes are cheap
    assert PACE.seconds(3_000) == 3.0 + 30.0  # one process reads, then trains
    assert [PACE._replace(loaders=n).input_bound for n in (0, 9, 10)] == [True, True, False]


def test_a_plan_of_an_image_folder_says_what_bounds_it(config, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    folder = {
        "data__name": "imagefolder",
        "data__root": str(tmp_path),
        "data__image_size": 8,
        "data__train_images": None,
    }
    run(config(mode="plan", plan__images_per_second=1e9, **folder))
    assert re.search(
        (
            r"bound by its input of \d+ images/s from 1 core like those here; "
            r"compute bound it would be"
        ),
        capsys.readouterr().out,
    )
    run(config(mode="plan", plan__images_per_second=1e-3, data__workers=2, **folder))
    assert re.search(
        (
            r"compute bound, at 0 images/s a worker as given, "
            r"with an input of \d+ images/s from 2 cores"
        ),
        capsys.readouterr().out,
    )


def test_timing_an_image_folder_leaves_the_number_of_threads_alone(config, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(16):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    folder = {
        "data__name": "imagefolder",
        "data__root": str(tmp_path),
        "data__image_size": 8,
        "data__train_images": None,
    }
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        cost = estimate(make_plan(config(plan__images_per_second=100.0, **folder)))
        assert cost.input > 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
