"""What is committed under results/ is what its own summaries give, and what the README shows is that."""

import shutil
from pathlib import Path

import pytest

from earlydrop.claims.tables import write_findings

ROOT = Path(__file__).resolve().parents[1]
SETS = [name for name in ("findings", "classic") if (ROOT / "results" / name).is_dir()]


@pytest.mark.parametrize("name", SETS)
def test_the_committed_tables_are_what_the_summaries_give(name, tmp_path):
    for file in ("runs.csv", "history.csv.xz"):
        shutil.copy(ROOT / "results" / name / file, tmp_path)
    write_findings(tmp_path, tmp_path, name)
    for file in ("table.md", "short.md", "studies.md", "fingerprints.csv", *(["answer.md"] if name == "findings" else [])):
        assert (tmp_path / file).read_text() == (ROOT / "results" / name / file).read_text(), file
    figures = {path.name for path in (ROOT / "results" / name / "figures").iterdir()}
    assert figures == {path.name for path in (tmp_path / "figures").iterdir()}


def test_the_readme_shows_the_answer():
    readme = (ROOT / "README.md").read_text()
    table, _, otherwise = (ROOT / "results" / "findings" / "answer.md").read_text().strip().partition("\n\n")
    assert readme.partition("<!-- table: answer -->\n")[2].partition("\n<!-- end -->")[0] == table
    assert otherwise in " ".join(readme.split())  # in a paragraph, wherever its lines break


def test_the_readme_shows_what_the_quickstart_showed():
    lines = [line for line in (ROOT / "results" / "quickstart" / "shows.txt").read_text().splitlines() if line]
    assert len(lines) == 6
    assert "\n".join(lines) in (ROOT / "README.md").read_text()
    table = (ROOT / "results" / "quickstart" / "table.md").read_text().splitlines()
    assert [line.removeprefix("- ") for line in table if line.startswith("- ")] == lines


def test_every_finding_is_resolved_or_has_its_price():
    """No cell of the answer is open without the seeds that would resolve it and what they cost."""
    text = (ROOT / "results" / "findings" / "answer.md").read_text()
    for cell in (cell.strip() for line in text.splitlines()[2:] for cell in line.strip("|").split("|")[2:]):
        assert "open" not in cell or "(n=" in cell, cell
        assert "not resolved" not in cell
        assert "incomplete" not in cell
