import json
from pathlib import Path

import pytest
import torch

from earlydrop.training.data.objective import Objective
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.probes import probe_gradients
from earlydrop.training.run import run
from earlydrop.training.streams import stream, stream_seed
from tests.training.states import assert_same, final_state


def test_the_probe_changes_nothing(config):
    with_probe = final_state(run(config())["folder"])
    without = final_state(run(config(probe__at=[]))["folder"])
    assert_same(with_probe["model"], without["model"])
    assert_same(with_probe["optimizer"], without["optimizer"])


def probes(result):
    lines = [
        json.loads(line)
        for line in (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()
    ]
    return [line for line in lines if "probe/gdv" in line]


def test_comparing_on_and_off_changes_no_weights_and_repeats_the_plain_probe(config):
    plain, compared = run(config()), run(config(probe__compare=True))
    assert_same(final_state(plain["folder"])["model"], final_state(compared["folder"])["model"])
    cutoff = 9  # dropout is off from there on, the step itself included
    assert [line["step"] for line in probes(compared)] == [0, cutoff, 2 * cutoff]
    for without, both in zip(probes(plain), probes(compared), strict=True):
        now = "probe_on/gdv" if both["step"] < cutoff else "probe_off/gdv"
        assert without["probe/gdv"] == both["probe/gdv"] == both[now]
        assert both["probe_on/gdv"] != both["probe_off/gdv"]
        assert both["probe_off/gde"] > 0


def test_a_run_without_dropout_is_compared_at_the_schedules_rate_and_trains_as_before(config):
    plain, compared = (
        run(config(schedule__name="none", probe__compare=each)) for each in (False, True)
    )
    assert_same(final_state(plain["folder"])["model"], final_state(compared["folder"])["model"])
    for without, both in zip(probes(plain), probes(compared), strict=True):
        assert (
            without["probe/gdv"]
            == both["probe/gdv"]
            == both["probe_off/gdv"]
            != both["probe_on/gdv"]
        )
    other = run(config(schedule__name="none", probe__compare=True, schedule__rate=0.5))
    assert other["folder"] != compared["folder"]
    assert probes(other)[0]["probe_off/gdv"] == probes(compared)[0]["probe_off/gdv"]
    assert probes(other)[0]["probe_on/gdv"] != probes(compared)[0]["probe_on/gdv"]


def test_at_one_set_of_weights_on_is_what_a_run_with_dropout_measures(config):
    """At step 0 all runs have the same weights.

    So the comparison of the run without dropout is the probe of the run with it.
    """
    none = probes(run(config(schedule__name="none", probe__compare=True)))[0]
    constant = probes(run(config(schedule__name="constant")))[0]
    assert none["probe_on/gdv"] == constant["probe/gdv"]
    assert none["probe_on/gde"] == constant["probe/gde"]


def test_a_comparison_without_a_rate_is_refused(config):
    with pytest.raises(
        ConfigError,
        match=r"probe\.compare is true: schedule\.rate is 0, expected the rate to compare with",
    ):
        run(config(schedule__name="none", schedule__rate=0.0, probe__compare=True))


def dataset_indices(plan, step):
    """The training images of the whole-dataset gradient, in the order of the requests."""
    objective, asked = Objective(plan.source, plan.config.augment), []
    give = objective.batches

    def batches(keyed, seed, purpose):
        keyed = list(keyed)
        if purpose == "probe-dataset":
            asked.append([int(index) for _, indices in keyed for index in indices])
        return give(keyed, seed, purpose)

    objective.batches = batches
    probe_gradients(scheduled_model(plan)[0], objective, plan, step)
    assert all(each == asked[0] for each in asked)
    return asked[0]


def test_the_whole_dataset_gradient_is_of_a_fixed_random_part_of_the_images(config):
    plan = make_plan(config())
    found = dataset_indices(plan, 0)
    assert len(set(found)) == len(found) == 64
    assert set(found) <= set(range(300))
    assert max(found) > 200  # not the first ones
    assert found == dataset_indices(plan, 9) == dataset_indices(make_plan(config(seed=1)), 0)
    assert sorted(dataset_indices(make_plan(config(probe__dataset_limit=300)), 0)) == list(
        range(300)
    )


def test_a_batch_goes_through_the_model_in_the_parts_of_training(config):
    """Against a loop over the parts, each with its own augmentation, mixing and masks.

    No part is larger than training's.
    """
    mixed = {"augment__mixup": 0.8, "augment__cutmix": 1.0, "augment__smoothing": 0.1}
    settings = config(trainer__accumulate=4, probe__batches=2, schedule__name="constant", **mixed)
    plan = make_plan(settings)
    (model, _), objective, step = scheduled_model(plan), Objective(plan.source, settings.augment), 9
    order, norms = stream(settings.seed, "probe", step), []
    for i in range(2):
        chunks = torch.randperm(300, generator=order)[:32].chunk(4)
        for j, indices in enumerate(chunks):
            ((x, y),) = objective.batches(
                [((step * 100_000 + i) * 4 + j, indices)], settings.seed, "probe"
            )
            torch.manual_seed(stream_seed(settings.seed, "probe-dropout", step, i, j))
            (objective.loss(model.train()(x), y) / 4).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        model.zero_grad()
    sizes = set()
    model.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    found = probe_gradients(model, objective, plan, step)
    assert found["probe/gradient_norm"] == pytest.approx(sum(norms) / 2, rel=1e-5)
    assert sizes == {8}
    assert run(settings)["state"] == "finished"


def test_a_probe_in_one_part_keeps_its_fingerprint_and_one_in_several_has_another(config):
    from earlydrop.training.fingerprint import parts_used

    assert "probe_parts" not in parts_used(config())
    assert "probe_parts" in parts_used(config(trainer__accumulate=2))
    assert "probe_parts" not in parts_used(config(trainer__accumulate=2, probe__at=[]))
