import pandas as pd
import pytest

from earlydrop.claims.map_figures import draw_maps, rate_cells
from earlydrop.claims.summaries import Summaries
from tests.claims.made_up import made_up


def map_of(study):
    parts = [
        made_up(
            study,
            effect=effect,
            noise=0.0,
            seeds=(0, 1),
            config={"optim.lr": rate, "optim.warmup": warmup},
        )
        for rate, warmup, effect in ((0.002, "0%", -0.1), (0.002, "10%", 0.2), (0.004, "0%", 0.3))
    ]
    runs = pd.concat([part.runs for part in parts], ignore_index=True)
    runs["final/train_eval/loss"] = 0.0
    for part in parts:
        last = part.history[part.history["step"] == 100]
        for row in last.to_dict("records"):
            here = runs["fingerprint"] == row["fingerprint"]
            runs.loc[here, "final/train_eval/loss"] = row["train_eval/loss"]
    return Summaries(runs, pd.concat([part.history for part in parts], ignore_index=True))


def test_a_cell_is_the_paired_difference_in_percent_of_the_loss_without_dropout():
    cells = rate_cells(map_of("map-text").of("map-text"))
    assert set(cells) == {("0.002", "0%"), ("0.002", "10%"), ("0.004", "0%")}
    words, percent = cells["0.002", "0%"]
    assert percent == pytest.approx(100 * -0.1 / 1.15)  # the losses without dropout are 1.0 and 1.3
    assert words == "-8.7%\nof 1.15\nlower in 2 of 2"
    assert cells["0.004", "0%"][0].endswith("lower in 0 of 2")


def test_a_map_is_drawn_for_each_study_that_has_run(tmp_path):
    files = draw_maps(map_of("map-text"), tmp_path, lambda study, runs: f"{study} made up")
    assert [path.name for path in files] == ["map-text.png"]
    assert (tmp_path / "map-text.png").stat().st_size > 10_000
    ((_, fingerprints),) = files.items()
    assert len(fingerprints) == 12
