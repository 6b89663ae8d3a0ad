import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from earlydrop.analysis.plots import draw_axis
from earlydrop.claims import figures, gain_figure
from earlydrop.claims.declare import LossWindow, Sensitivity
from earlydrop.claims.figures import draw_findings
from earlydrop.claims.gain_figure import draw_gain
from earlydrop.claims.judge import judge_all
from earlydrop.claims.sensitivity_figure import draw_sensitivity
from earlydrop.claims.summaries import Summaries
from tests.claims.made_up import ARMS, LOSS, declaration, made_up, study


def test_dropouts_gain_is_drawn_along_an_axis(tmp_path, monkeypatch):
    parts = [
        made_up(
            "classic-images",
            seeds=range(3, 8),
            arms=("none", "constant-0.1"),
            config={"data.train_images": n},
        )
        for n in (250, 10_000)
    ]
    for part, images in zip(parts, (250, 10_000), strict=True):
        for table in (part.runs, part.history):
            table["arm"] += f" · data.train_images={images}"
    runs = pd.concat([part.runs for part in parts])
    gain = runs["config/data.train_images"] * 1e-6 * (runs["config/schedule.name"] == "constant")
    runs["final/test/accuracy"] = 0.5 + 0.01 * runs["seed"] + gain
    studies = [study("classic-images", first=(3, 4, 5, 6, 7))]
    drawn = {}
    monkeypatch.setattr(
        figures,
        "draw_axis",
        lambda points, *rest: drawn.update({rest[2]: points}) or draw_axis(points, *rest),
    )
    files = draw_findings(
        [declaration(LOSS, studies=studies)],
        Summaries(runs, pd.concat([p.history for p in parts])),
        tmp_path,
    )
    path = tmp_path / "classic-images-accuracy-by-training-images.png"
    assert path in files
    assert len(files[path]) == 20
    assert list(drawn) == [path]
    assert {images: point.effect for images, point in drawn[path].items()} == pytest.approx(
        {250: 0.00025, 10_000: 0.01}
    )
    assert {point.seeds for point in drawn[path].values()} == {(3, 4, 5, 6, 7)}
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    coloured = pixels.max(2) - pixels.min(2) > 50
    assert coloured.sum() > 200  # the curve: axes and text are grey


def test_an_axis_has_no_arms_of_other_settings(tmp_path, monkeypatch):
    parts = []
    for cutoff, rate, effect in (("20%", 0.002, 0.1), ("5%", 0.002, 0.2), ("20%", 0.008, 9.0)):
        for name in ("none", "early"):
            settings = {"optim.lr": rate, "schedule.name": name}
            if name == "early":
                settings |= {"schedule.rate": 0.1, "schedule.cutoff": cutoff}
            arm = f"{name} {settings}"
            monkeypatch.setitem(ARMS, arm, settings)
            gain = effect if name == "early" else 0.0
            parts.append(made_up("underfitting", gain, noise=0.001, arms=(arm,)))
    drawn = {}
    monkeypatch.setattr(
        figures, "draw_axis", lambda points, label, *rest: drawn.update({label: points})
    )
    runs = pd.concat([part.runs for part in parts]).drop_duplicates("fingerprint")
    history = pd.concat([part.history for part in parts]).drop_duplicates(["fingerprint", "step"])
    runs["final/train_eval/loss"] = (
        history.groupby("fingerprint")["train_eval/loss"].last()[runs["fingerprint"]].to_numpy()
    )
    declared = study("underfitting", {"data.name": "d"}, first=tuple(range(10, 16)))
    files = draw_findings(
        [declaration(LOSS, studies=[declared])], Summaries(runs, history), tmp_path
    )
    (points,) = drawn.values()
    assert {value: round(point.effect, 1) for value, point in points.items()} == {
        5.0: 0.2,
        20.0: 0.1,
    }
    assert len(files[tmp_path / "underfitting-loss-by-cutoff.png"]) == 3 * 6


def test_the_figure_of_an_accuracy_has_the_chance_level_of_its_data(tmp_path, monkeypatch):
    part = made_up("glyphs-study", seeds=range(3, 6), config={"data.name": "glyphs"})
    history = part.history.assign(**{"test/accuracy": 0.5})
    drawn = {}
    monkeypatch.setattr(
        figures,
        "draw_metric",
        lambda rows, metric, *rest, classes, **options: drawn.update({metric: classes}),
    )
    studies = [study("glyphs-study", first=(3, 4, 5))]
    files = draw_findings(
        [declaration(LOSS, studies=studies)],
        Summaries(part.runs, history),
        tmp_path,
    )
    assert files
    assert drawn["test/accuracy"] == 1_000


def test_the_loss_is_drawn_against_the_setting_of_a_sensitivity(tmp_path):
    rates = (0.001, 0.002, 0.004)
    parts = [made_up(effect=-rate, config={"optim.lr": rate}) for rate in rates]
    summaries = Summaries(
        pd.concat([each.runs for each in parts]), pd.concat([each.history for each in parts])
    )
    claim = dataclasses.replace(LOSS, sensitivity=Sensitivity("optim.lr", rates, 9.0))
    path = tmp_path / "f-sensitivity.png"
    files = draw_findings([declaration(claim, LOSS)], summaries, tmp_path)
    assert len(files[path]) == 2 * 3 * 6
    assert path.is_file()
    assert tmp_path / "other.png" not in files
    assert draw_sensitivity(declaration(LOSS), summaries, tmp_path / "other.png") == []
    assert not (tmp_path / "other.png").exists()


def test_a_studys_curves_leave_out_arms_that_differ_in_more_than_their_schedule(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(figures, "_MOST_ARMS", 2)
    usual, clipped = made_up(), made_up(config={"optim.clip": 1.0})
    clipped.runs["arm"] += " · optim.clip=1.0"
    summaries = Summaries(
        pd.concat([usual.runs, clipped.runs]), pd.concat([usual.history, clipped.history])
    )
    files = draw_findings([declaration(LOSS)], summaries, tmp_path)
    assert files[tmp_path / "toy-train_eval-loss.png"] == sorted(usual.runs["fingerprint"])


def test_the_gain_is_drawn_from_relative_differences(tmp_path, monkeypatch):
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "gain.yaml").write_text(
        "study: toy\ntitle: t\nrows:\n- {words: as it is, dropout: L}\n- {words: other, depth: M}\n"
    )
    monkeypatch.setattr(gain_figure, "conf_folder", lambda: tmp_path)
    summaries = made_up()
    relative = dataclasses.replace(LOSS, smallest=0.01, relative=True)
    verdicts = judge_all([declaration(relative)], summaries)
    prints = draw_gain([declaration(relative)], verdicts, tmp_path / "gain.png")
    assert prints == sorted(summaries.runs["fingerprint"])
    assert (tmp_path / "gain.png").is_file()
    assert draw_gain([declaration(relative)], [], tmp_path / "none.png") == []
    assert not (tmp_path / "none.png").exists()
    verdicts = judge_all([declaration(LOSS)], summaries)
    with pytest.raises(ValueError, match="claim L has no relative difference"):
        draw_gain([declaration(LOSS)], verdicts, tmp_path / "gain.png")


def sensitive(tmp_path, monkeypatch, rates, window=None, seeds=((2, 3), (2, 3))):
    """The titles and scales of a drawn sensitivity, or None if nothing is drawn."""
    tables = [
        made_up(config={"optim.weight_decay": rate}, seeds=of_rate)
        for rate, of_rate in zip(rates, seeds, strict=True)
    ]
    summaries = Summaries(
        pd.concat([table.runs for table in tables], ignore_index=True),
        pd.concat([table.history for table in tables], ignore_index=True),
    )
    claim = dataclasses.replace(
        LOSS, sensitivity=Sensitivity("optim.weight_decay", rates, 10.0), window=window
    )
    declared = declaration(claim, studies=[study(first=[2, 3, 4])])
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    fingerprints = draw_sensitivity(declared, summaries, tmp_path / "s.png")
    return (drawn[0], fingerprints) if drawn else None


def test_a_sensitivity_says_how_many_seeds_have_finished(tmp_path, monkeypatch):
    figure, fingerprints = sensitive(tmp_path, monkeypatch, (0.05, 0.1), seeds=((2, 3), (2, 3, 4)))
    assert "n = 2 to 3;" in figure.get_suptitle()
    assert len(fingerprints) == 10
    assert figure.axes[0].get_xscale() == "log"


def test_a_setting_of_0_is_drawn(tmp_path, monkeypatch):
    figure, _ = sensitive(tmp_path, monkeypatch, (0.0, 0.05))
    assert figure.axes[0].get_xscale() == "linear"


def test_a_sensitivity_at_losses_that_no_run_has_is_not_drawn(tmp_path, monkeypatch):
    assert sensitive(tmp_path, monkeypatch, (0.05, 0.1), LossWindow(high=90.0, low=80.0)) is None
