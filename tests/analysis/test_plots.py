"""Figures say what they show, and nothing in them is cut off."""

import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from earlydrop.analysis import load_runs
from earlydrop.analysis.compare import differences
from earlydrop.analysis.curves import Curve, Panel
from earlydrop.analysis.panels import draw_panel
from earlydrop.analysis.plots import drawings
from earlydrop.analysis.points import differences_by_metric, draw_differences, points_figure
from tests.analysis.made_up import make_run


@pytest.fixture
def runs(study):
    for file in study.rglob("provenance.json"):
        data = {"classes": 10, "images": {"train": 100, "test": 10}, "steps_per_epoch": 20}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data": data}))
    for file in study.rglob("metrics.jsonl"):
        lines = [{"step": 10, "test/accuracy": 0.01}, {"step": 15, "model/distance": 1.0}]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines) + file.read_text())
    return load_runs(study)


def words(figure):
    texts = [
        text
        for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))
        if text.get_visible()
    ]
    return [text for text in texts if text.get_text()]


def all_words(figure):
    return " ".join(text.get_text().replace("\n", " ") for text in words(figure))


def test_a_figure_says_what_it_shows_of_what(runs):
    figures = {drawing.name: drawing.figure for drawing in drawings(runs)}
    accuracy = all_words(figures["test_accuracy"])
    for text in (
        "Test accuracy",
        "mlp on toy, n = 3 seeds",
        "95% intervals of the mean (Student's t)",
        "fraction correct, higher is better",
        "chance, 1/10",
        "optimizer step (20 an epoch)",
        "minus none, seed by seed",
        "cutoff",
        "early-0.1-20%",
    ):
        assert text in accuracy, text
    assert "nats, lower is better" in all_words(figures["train_eval_loss"])
    assert "model distance ‖W − W₀‖₂" in all_words(figures["model_distance"])
    assert "from the configuration" in all_words(figures["drop_rate"])


def test_no_accuracy_below_zero(runs):
    (accuracy,) = [drawing for drawing in drawings(runs) if drawing.name == "test_accuracy"]
    assert accuracy.panels[0][0].get_ylim()[0] >= 0


def test_a_low_chance_level_does_not_move_the_axis_below_zero():
    values = np.array([0.4, 0.5])
    curve = Curve(np.array([1.0, 2.0]), values, np.zeros(2))
    axes = Figure().subplots()
    draw_panel(
        axes, Panel("accuracy", {"none": curve}, bottom=0.0, level=(1 / 256, "chance")), ["none"]
    )
    assert axes.get_ylim()[0] == 0.0


def test_a_loss_under_dropout_is_not_subtracted(runs):
    panels = {drawing.name: len(drawing.panels) for drawing in drawings(runs)}
    assert panels["training_loss"] == 1
    assert panels["test_accuracy"] == panels["gdv"] == 2


@pytest.mark.parametrize("cutoff", ["20%", "97%"])
def test_nothing_is_cut_off(study, cutoff, tmp_path):
    for seed in range(2):
        late = {"name": "late", "rate": 0.1, "cutoff": cutoff}
        make_run(study, "none", seed, 0.5, schedule=late, label="late " + "x" * 80)
    for drawing in drawings(load_runs(study)):
        drawing.save(tmp_path)
        width, height = drawing.figure.bbox.size
        renderer = FigureCanvasAgg(drawing.figure).get_renderer()
        for text in words(drawing.figure):
            box = text.get_window_extent(renderer)
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            tick = text.get_text().strip("−-.0123456789") == ""
            assert inside or tick, (drawing.name, text.get_text(), box)


def test_differences_say_which_way_is_better(runs, tmp_path):
    found = differences(runs)
    by_metric = differences_by_metric(found)
    assert (
        by_metric["train_eval loss"]["early-0.1-20%"] is found["early-0.1-20%"]["train_eval loss"]
    )
    figure = points_figure(by_metric, list(found), "Differences", "mlp on toy")
    text = all_words(figure)
    assert "← better" in text
    assert "better →" in text
    assert "Test accuracy, at the end" in text
    assert "Gradient direction variance, mean over the first fifth" in text
    draw_differences(found, tmp_path / "differences.png", "mlp on toy")
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")
