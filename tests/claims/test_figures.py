import pandas as pd

from earlydrop.claims.figures import draw_findings
from earlydrop.claims.summaries import Summaries
from tests.claims.made_up import LOSS, declaration, made_up, study


def test_dropouts_gain_is_drawn_along_an_axis(tmp_path):
    parts = [
        made_up("classic-images", seeds=range(3, 8), arms=("none", "constant-0.1"), config={"data.train_images": n})
        for n in (250, 10_000)
    ]
    runs = pd.concat([part.runs for part in parts])
    runs["final/test/accuracy"] = runs["config/data.train_images"] * 1e-6 * (runs["config/schedule.name"] == "constant")
    studies = [study("classic-images", first=(3, 4, 5, 6, 7))]
    files = draw_findings([declaration(LOSS, studies=studies)], Summaries(runs, pd.concat([p.history for p in parts])), tmp_path)
    path = tmp_path / "classic-images-accuracy-by-training-images.png"
    assert path in files
    assert path.stat().st_size > 5_000
    assert len(files[path]) == 20
