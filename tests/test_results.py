"""The files under results/ are what their own summaries give; the README shows the same."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats
from matplotlib.figure import Figure

from earlydrop.claims.write import write_findings

ROOT = Path(__file__).resolve().parents[1]
SETS = [name for name in ("findings", "classic") if (ROOT / "results" / name).is_dir()]


@pytest.mark.parametrize("name", SETS)
def test_the_committed_tables_are_what_the_summaries_give(name, tmp_path, monkeypatch):
    # Only the names of the pictures are compared.
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())
    for file in ("runs.csv", "history.csv.xz"):
        shutil.copy(ROOT / "results" / name / file, tmp_path)
    write_findings(tmp_path, tmp_path, name)
    for file in (
        "table.md",
        "short.md",
        "studies.md",
        "fingerprints.csv",
        *(["answer.md"] if name == "findings" else []),
    ):
        assert (tmp_path / file).read_text() == (ROOT / "results" / name / file).read_text(), file
    figures = {path.name for path in (ROOT / "results" / name / "figures").iterdir()}
    assert figures == {path.name for path in (tmp_path / "figures").iterdir()}


def test_the_readme_shows_the_answer():
    readme = (ROOT / "README.md").read_text()
    table, *further = (
        (ROOT / "results" / "findings" / "answer.md").read_text().strip().split("\n\n")
    )
    assert readme.partition("<!-- table: answer -->\n")[2].partition("\n<!-- end -->")[0] == table
    for line in further:
        if line.startswith("Another round"):
            assert line in " ".join(readme.split())  # in a paragraph, wherever its lines break


def test_the_readmes_numbers_of_early_dropout_on_text_are_those_of_the_summaries():
    runs = pd.read_csv(ROOT / "results" / "findings" / "runs.csv", low_memory=False)
    runs = runs[(runs["study"] == "text") & runs["seed"].between(300, 359)]
    loss = runs.pivot_table(index="seed", columns="arm", values="final/train_eval/loss")
    accuracy = runs.pivot_table(index="seed", columns="arm", values="final/test/accuracy")
    gain = loss["none"] - loss["early-0.1-20%"]
    points = 100 * (accuracy["early-0.1-20%"] - accuracy["none"]).mean()
    half = scipy.stats.t.ppf(0.975, 59) * gain.std() / 60**0.5
    stuck = (loss > 2.1).sum()
    assert len(gain) == 60
    readme = " ".join((ROOT / "README.md").read_text().split())
    for text in (
        f"by {100 * gain.mean() / loss['none'].mean():.1f}% ({gain.mean():.3f}, 95% interval "
        f"{gain.mean() - half:.3f} to {gain.mean() + half:.3f}; lower in {(gain > 0).sum()} of 60)",
        f"raises the test accuracy by {points:.1f} points",
        (
            f"{stuck['none']} of the 60 runs without dropout never leave their first plateau, "
            f"{stuck['early-0.1-20%']} with early"
        ),
    ):
        assert text in readme, text


def test_the_readmes_losses_on_images_are_those_of_the_answer():
    answer = (ROOT / "results" / "findings" / "answer.md").read_text()
    (row,) = [
        line
        for line in answer.splitlines()
        if line.startswith("| Early dropout lowers the training loss")
    ]
    fashion, glyphs = (cell.strip() for cell in row.split("|")[2:4])
    readme = " ".join((ROOT / "README.md").read_text().split())
    rises = [cell.removeprefix("✗ opposite: +").removesuffix(" loss") for cell in (fashion, glyphs)]
    assert f"the loss rises by {rises[1]} on glyphs (generated, never repeated)" in readme
    assert f"and by {rises[0]} on Fashion-MNIST" in readme


def test_the_start_page_shows_what_the_quickstart_showed():
    shows = (ROOT / "results" / "quickstart" / "shows.txt").read_text().strip()
    lines = shows.splitlines()
    assert len(lines) == 10  # a verdict and a measurement of each of five claims
    assert shows in (ROOT / "docs" / "index.md").read_text()
    table = (ROOT / "results" / "quickstart" / "table.md").read_text()
    for verdict, measurement in zip(lines[::2], lines[1::2], strict=True):
        assert f"- {verdict}\n{measurement}\n" in table


def test_every_cell_of_the_answer_has_one_of_four_words():
    text = (ROOT / "results" / "findings" / "answer.md").read_text()
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| claim")
    ]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
    assert len([cell for cell in cells if cell]) > 30
    for cell in filter(None, cells):
        assert cell[0] in "✓✗=?", cell
        assert any(word in cell for word in ("confirmed", "opposite", "no effect", "undecided")), (
            cell
        )


def test_every_undecided_claim_has_its_price():
    """Each undecided row of the table names the seeds that would decide it.

    A row whose differences do not scatter is exempt.
    """
    for line in (ROOT / "results" / "findings" / "table.md").read_text().splitlines():
        if "not resolved" in line and line.startswith("|"):
            assert "not resolved (" in line, line


def test_the_readmes_gain_beside_other_remedies_is_that_of_the_answer():
    answer = (ROOT / "results" / "findings" / "answer.md").read_text()
    rows = (
        "With gradient clipping, early dropout still",
        "With half the learning rate, early",
        "With twice the warm-up, early",
    )
    gains = []
    for row in rows:
        (line,) = [line for line in answer.splitlines() if line.startswith(f"| {row}")]
        assert "confirmed" in line
        gains.append(re.search(r"\N{MINUS SIGN}([\d.]+)% loss", line)[1])
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"early dropout still lowers the loss by {min(gains)}% to {max(gains)}%" in readme


def test_the_readmes_losses_at_the_best_setting_are_those_of_the_summaries():
    runs = pd.read_csv(ROOT / "results" / "findings" / "runs.csv", low_memory=False)
    runs = runs[(runs["study"] == "text") & (runs["config/optim.clip"] == 1.0)]
    runs = runs[runs["config/schedule.kind"] == "unit"]
    means = runs.groupby(["config/optim.lr", "config/schedule.name"])[
        "final/train_eval/loss"
    ].mean()
    best = means.groupby("config/optim.lr").min().idxmin()
    assert best == 0.008
    assert len(runs[runs["config/optim.lr"] == best]) == 40
    readme = " ".join((ROOT / "README.md").read_text().split())
    text = f"loss {means[best, 'none']:.3f} without, {means[best, 'early']:.3f} with early dropout)"
    assert text in readme, text
