from pathlib import Path

import pytest

from earlydrop.schedules import early
from earlydrop.sites import find_sites
from earlydrop.training.endings import Interrupted
from earlydrop.training.fields import ConfigError
from earlydrop.training.peaks import TwoPeaks
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.record.folder import RunFolder, read_metrics
from earlydrop.training.run import run
from earlydrop.training.trainer import Trainer
from tests.training.states import assert_same, final_state

TWO = {
    "model__name": "vit_micro",
    "model__hidden": None,
    "model__width": 16,
    "model__depth": 3,
    "schedule__kind": "all",
    "schedule__rate": 0.1,
    "schedule__path_rate": 0.5,
    "probe__at": [],
    "trainer__log_every": 1,
}


def test_the_model_is_built_for_both_peaks(config):
    plan = make_plan(config(**TWO))
    model, scheduler = scheduled_model(plan)
    assert isinstance(scheduler, TwoPeaks)
    built = {
        kind: [site.base_rate for site in find_sites(model) if site.kind == kind and site.driven]
        for kind in ("unit", "path")
    }
    assert set(built["unit"]) == {0.1}
    assert sorted(set(built["path"])) == [0.25, 0.5]
    assert plan.path_schedule == early(0.5, 9) == scheduler.kinds["path"].schedule
    assert plan.schedule == early(0.1, 9) == scheduler.kinds["unit"].schedule
    assert "all-path0.5" in plan.folder.name


def test_both_rates_are_logged_as_their_schedules_say(config):
    metrics = read_metrics(Path(run(config(**TWO))["folder"]) / "metrics.jsonl")
    steps = [line["step"] - 1 for line in metrics]
    assert [line["dropout/unit_rate"] for line in metrics] == [
        early(0.1, 9)(step) for step in steps
    ]
    assert [line["dropout/path_rate"] for line in metrics] == [
        early(0.5, 9)(step) for step in steps
    ]


def test_the_plan_shows_both(config, capsys):
    run(config(**TWO, mode="plan"))
    printed = capsys.readouterr().out
    assert "rates        0: 0.1, " in printed
    assert "path rates   0: 0.5, " in printed


def test_one_peak_given_twice_gives_the_bits_of_one_peak(config):
    one = run(config(**TWO | {"schedule__path_rate": None, "schedule__rate": 0.3}))
    two = run(config(**TWO | {"schedule__path_rate": 0.3, "schedule__rate": 0.3}))
    assert one["folder"] != two["folder"]
    assert_same(final_state(one["folder"])["model"], final_state(two["folder"])["model"])


def test_a_run_with_two_peaks_is_resumed_to_the_bit(config, tmp_path):
    whole = run(config(**TWO, out=str(tmp_path / "whole")))
    settings = config(**TWO, out=str(tmp_path / "stopped"))
    plan = make_plan(settings)
    folder = RunFolder(plan.folder)
    trainer = Trainer(plan, *scheduled_model(plan), folder, lambda step, metrics: None)
    trainer.stop = lambda: trainer.step >= 4
    trainer.resume()
    with pytest.raises(Interrupted):
        trainer.train()
    folder.close()
    assert_same(final_state(whole["folder"]), final_state(run(settings)["folder"]))


def test_it_is_a_setting_of_its_own_and_its_default_is_none(config):
    plain = {key: value for key, value in TWO.items() if key != "schedule__path_rate"}
    prints = [
        make_plan(config(**plain, schedule__path_rate=rate)).fingerprint
        for rate in (None, 0.3, 0.5)
    ]
    assert len(set(prints)) == 3
    assert make_plan(config(**plain)).fingerprint == prints[0]
    never = [
        make_plan(
            config(**TWO | {"schedule__name": "none", "schedule__path_rate": rate})
        ).fingerprint
        for rate in (None, 0.5)
    ]
    assert never[0] == never[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"schedule__kind": "unit"},
            r"path_rate is 0.5: .* needs schedule.kind=all; schedule.kind is 'unit'",
        ),
        ({"schedule__kind": "path"}, r"needs schedule.kind=all; schedule.kind is 'path'"),
        ({"schedule__path_rate": 1.0}, r"schedule.path_rate is 1.0: expected a rate in \[0, 1\)"),
        ({"schedule__path_rate": 0.0}, "path_rate is 0: expected more than 0; schedule.kind=unit"),
        ({"schedule__rate": 0.0}, "path_rate is 0.5 and schedule.rate is 0: .* schedule.kind=path"),
        (
            {"schedule__name": "piecewise", "schedule__points": "0,0.1@0.5,0"},
            "schedule=piecewise has no schedule.rate",
        ),
        (
            {"model__name": "mlp", "model__width": None, "model__depth": None},
            "schedule.kind is 'all'.*no path site",
        ),
    ],
)
def test_where_it_means_nothing_it_is_refused(config, options, says):
    with pytest.raises(ConfigError, match=says):
        run(config(**TWO | options))
    assert not Path(config().out).exists()


def test_a_probe_compares_a_run_without_dropout_at_both_peaks(config):
    given = TWO | {"schedule__name": "none", "probe__at": ["0%"], "probe__compare": True}
    one, two = (make_plan(config(**given | {"schedule__path_rate": rate})) for rate in (None, 0.5))
    assert one.fingerprint != two.fingerprint
    built = [
        [site.base_rate for site in find_sites(scheduled_model(plan)[0]) if site.kind == "path"]
        for plan in (one, two)
    ]
    assert [max(rates) for rates in built] == [0.1, 0.5]


def test_weights_of_one_peak_are_refused_by_a_run_of_two(config):
    _, two = scheduled_model(make_plan(config(**TWO)))
    _, one = scheduled_model(make_plan(config(**TWO | {"schedule__path_rate": None})))
    with pytest.raises(ValueError, match="saved with one peak"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="expected what DropoutScheduler"):
        one.load_state_dict(two.state_dict())
    assert two.last_rate == 0.5
