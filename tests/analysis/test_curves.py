"""The numbers behind figures, against schedules and statistics computed elsewhere."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import earlydrop
from earlydrop.analysis import load_runs
from earlydrop.analysis.curves import (
    Curve,
    cutoffs,
    histories,
    paired_panel,
    rates_panel,
    staircase,
    values_panel,
)
from tests.analysis.made_up import make_run


def value_at(curve, step):
    """What a drawn line shows at a step: of a jump, the end."""
    after = np.flatnonzero(curve.steps <= step)[-1]
    if curve.steps[after] == step or after + 1 == len(curve.steps):
        return curve.means[after]
    return np.interp(step, curve.steps, curve.means)


@pytest.mark.parametrize(
    "schedule",
    [
        earlydrop.early(0.1, 200),
        earlydrop.early(0.1, 200, shape="constant"),
        earlydrop.late(0.2, 300),
        earlydrop.constant(0.3),
        earlydrop.piecewise("0,0@0.2,0.5@0.5,0"),
    ],
    ids=repr,
)
def test_a_schedule_is_drawn_at_its_rates(schedule):
    schedule = schedule.resolve(1_000)
    curve = staircase(np.array([schedule(step) for step in range(1_000)]))
    drawn = [value_at(curve, step) for step in range(1_000)]
    assert drawn == pytest.approx(
        [schedule(step) for step in range(1_000)], abs=0.01 * schedule.peak + 1e-9
    )  # a pixel
    assert curve.means[0] == schedule(0)
    assert curve.steps[-1] == 1_000


def test_a_jump_is_vertical():
    schedule = earlydrop.late(0.2, 300).resolve(1_000)
    curve = staircase(np.array([schedule(step) for step in range(1_000)]))
    at = [float(mean) for step, mean in zip(curve.steps, curve.means, strict=True) if step == 300]
    assert at == [0.0, 0.2]


def test_rates_are_those_of_the_configuration_not_of_the_log(study):
    make_run(
        study,
        "none",
        0,
        0.5,
        schedule={"name": "early", "rate": 0.3, "cutoff": "10ep"},
        label="epochs",
    )
    runs = load_runs(study)
    panel, logged = rates_panel(histories(runs), runs)
    assert panel.curves["early-0.1-20%"].means[0] == 0.1  # the log begins at step 10
    assert panel.curves["early-0.1-20%"].means[-1] == 0.0
    assert not panel.curves["none"].means.any()
    assert logged == ["epochs"]  # their length was not recorded
    assert cutoffs(runs) == {"early-0.1-20%": 20.0}


def test_a_cutoff_in_epochs_is_known_from_their_length(tmp_path):
    make_run(
        tmp_path / "study", "none", 0, 0.5, schedule={"name": "late", "rate": 0.3, "cutoff": "3ep"}
    )
    (file,) = tmp_path.rglob("provenance.json")
    provenance = json.loads(file.read_text()) | {
        "data": {"classes": 7, "images": {}, "steps_per_epoch": 20}
    }
    file.write_text(json.dumps(provenance))
    runs = load_runs(tmp_path)
    assert list(cutoffs(runs).values()) == [60.0]
    panel, logged = rates_panel(histories(runs), runs)
    (curve,) = panel.curves.values()
    assert (value_at(curve, 59), value_at(curve, 60), logged) == (0.0, 0.3, [])


def test_bands_are_students_intervals_and_a_repeated_seed_counts_once():
    values = [0.5, 0.7, 0.6]
    rows = [
        {"step": 10, "arm": "a", "seed": seed, "test/accuracy": value}
        for seed, value in enumerate(values)
    ]
    history = pd.DataFrame([*rows, rows[1]])
    panel = values_panel(history, "test/accuracy", classes=4)
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
    curve = panel.curves["a"]
    assert curve.means == pytest.approx([0.6])
    assert curve.half_widths == pytest.approx([(high - low) / 2])
    assert (panel.bottom, panel.level) == (0.0, (0.25, "chance, 1/4"))
    assert values_panel(history[:1], "test/accuracy").curves["a"].half_widths == pytest.approx(
        [np.nan], nan_ok=True
    )


def test_paired_differences_are_those_seed_by_seed():
    base, shift = {0: 1.0, 1: 5.0, 2: 9.0}, {0: 0.1, 1: 0.2, 2: 0.3}
    rows = []
    for step in (1, 2):
        for seed, value in base.items():
            rows.append({"step": step, "arm": "none", "seed": seed, "model/distance": value * step})
            rows.append(
                {
                    "step": step,
                    "arm": "early",
                    "seed": seed,
                    "model/distance": value * step + shift[seed],
                }
            )
    panel = paired_panel(pd.DataFrame(rows), "model/distance", {"early": "none"})
    assert panel.curves["early"].means == pytest.approx([0.2, 0.2])
    half = scipy.stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert panel.curves["early"].half_widths == pytest.approx([half, half])
    assert panel.level[0] == 0
    assert paired_panel(pd.DataFrame(rows), "model/distance", {"early": "other"}) is None


def test_a_thinned_curve_keeps_measured_points_and_both_ends():
    steps = np.arange(1_001.0)
    curve = Curve(steps, steps**2, steps).thinned(100)
    assert 90 <= len(curve.steps) <= 101
    assert (curve.steps[0], curve.steps[-1]) == (0, 1_000)
    assert (curve.means == curve.steps**2).all()
