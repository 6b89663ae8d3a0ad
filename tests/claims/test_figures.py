import numpy as np
import pandas as pd
import pytest
from PIL import Image

from earlydrop.analysis.plots import draw_axis
from earlydrop.claims import figures
from earlydrop.claims.figures import draw_findings
from earlydrop.claims.summaries import Summaries
from tests.claims.made_up import LOSS, declaration, made_up, study


def test_dropouts_gain_is_drawn_along_an_axis(tmp_path, monkeypatch):
    parts = [
        made_up("classic-images", seeds=range(3, 8), arms=("none", "constant-0.1"), config={"data.train_images": n})
        for n in (250, 10_000)
    ]
    runs = pd.concat([part.runs for part in parts])
    gain = runs["config/data.train_images"] * 1e-6 * (runs["config/schedule.name"] == "constant")
    runs["final/test/accuracy"] = 0.5 + 0.01 * runs["seed"] + gain
    studies = [study("classic-images", first=(3, 4, 5, 6, 7))]
    drawn = {}
    monkeypatch.setattr(figures, "draw_axis", lambda points, *rest: drawn.update({rest[2]: points}) or draw_axis(points, *rest))
    files = draw_findings([declaration(LOSS, studies=studies)], Summaries(runs, pd.concat([p.history for p in parts])), tmp_path)
    path = tmp_path / "classic-images-accuracy-by-training-images.png"
    assert path in files
    assert len(files[path]) == 20
    assert list(drawn) == [path]
    assert {images: point.effect for images, point in drawn[path].items()} == pytest.approx({250: 0.00025, 10_000: 0.01})
    assert {point.seeds for point in drawn[path].values()} == {(3, 4, 5, 6, 7)}
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    coloured = pixels.max(2) - pixels.min(2) > 50
    assert coloured.sum() > 200  # the curve: axes and text are grey
