import json
from pathlib import Path

import pytest
import torch
from torch import nn

from earlydrop.training.average import WeightAverage
from earlydrop.training.endings import Interrupted
from earlydrop.training.evaluate import evaluate_all
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.states import assert_same, final_state


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 3)
        self.last.weight = self.first.weight


def test_it_is_the_sum_of_the_past_weights():
    """Against Σ (1 − d) dᵏ w: of parameters and of BatchNorm's statistics.

    A weight with two names counts once.
    """
    model, decay = Tied(), 0.75
    average = WeightAverage(model, decay)
    past = [{name: value.clone() for name, value in model.state_dict().items()}]
    for _ in range(6):
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        model.norm(torch.randn(4, 3))
        past.append({name: value.clone() for name, value in model.state_dict().items()})
        average.update()
    found = average.state_dict()
    assert found.keys() == past[0].keys()
    for name, value in found.items():
        if value.is_floating_point():
            shares = [decay**6, *((1 - decay) * decay ** (6 - i) for i in range(1, 7))]
            torch.testing.assert_close(
                value, sum(share * each[name] for share, each in zip(shares, past, strict=True))
            )
    assert found["norm.num_batches_tracked"] == 6
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        assert (
            torch.equal(model.last.weight, found["last.weight"]) is False
        )  # they have changed places
        torch.testing.assert_close(
            model.first.weight,
            sum(s * e["first.weight"] for s, e in zip(shares, past, strict=True)),
        )
    assert_same(dict(model.state_dict()), before)


def lines(result):
    return [
        json.loads(line)
        for line in (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_run_keeps_and_evaluates_it_and_trains_as_without(config, capsys):
    plain, averaged = run(config()), run(config(trainer__ema=0.9))
    assert plain["folder"] != averaged["folder"]
    assert_same(final_state(plain["folder"])["model"], final_state(averaged["folder"])["model"])
    state = final_state(averaged["folder"])
    assert "model_ema" not in final_state(plain["folder"])
    for one, other in zip(lines(plain), lines(averaged), strict=True):
        assert one == {name: value for name, value in other.items() if not name.startswith("ema/")}
        assert ("ema/test/loss" in other) == ("test/loss" in other)
    plan = make_plan(config(trainer__ema=0.9))
    from earlydrop.training.data.objective import Objective
    from earlydrop.training.prepare import scheduled_model

    model, _ = scheduled_model(plan)
    model.load_state_dict(state["model_ema"])
    found = evaluate_all(model, Objective(plan.source, plan.config.augment), plan)
    assert {f"ema/{name}": value for name, value in found.items()}.items() <= lines(averaged)[
        -1
    ].items()
    capsys.readouterr()
    evaluated = run(config(trainer__ema=0.9, mode="eval"))
    said = capsys.readouterr().out
    assert said.index("averaged weights, step 18") < said.index("last weights, step 18")
    assert evaluated["test/loss"] == lines(averaged)[-1]["test/loss"]


def test_a_run_that_stops_goes_on_to_the_bit(config, monkeypatch):
    straight = run(config(trainer__ema=0.9))
    original = Trainer.train_step
    stopping = [True]

    def stop(self, parts):
        original(self, parts)
        if self.step == 7 and stopping.pop():
            self.stop = lambda: True

    monkeypatch.setattr(Trainer, "train_step", stop)
    other = config(trainer__ema=0.9, out=config().out + "-stopped")
    with pytest.raises(Interrupted):
        run(other)
    stopping.append(False)
    resumed = run(other)
    assert lines(resumed) == lines(straight)
    one, two = final_state(straight["folder"]), final_state(resumed["folder"])
    assert_same(one, two)
