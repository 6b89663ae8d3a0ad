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
    for file in ("table.md", "short.md", "studies.md", "fingerprints.csv"):
        assert (tmp_path / file).read_text() == (ROOT / "results" / name / file).read_text(), file
    figures = {path.name for path in (ROOT / "results" / name / "figures").iterdir()}
    assert figures == {path.name for path in (tmp_path / "figures").iterdir()}


@pytest.mark.parametrize("name", SETS)
def test_the_readme_shows_the_committed_table(name):
    assert (ROOT / "results" / name / "short.md").read_text().strip() in (ROOT / "README.md").read_text()


def test_the_readme_shows_the_benchmark_as_it_was_printed():
    readme = (ROOT / "README.md").read_text()
    tables = list((ROOT / "results" / "benchmark").glob("*/table.md"))
    assert any(path.read_text().strip() in readme for path in tables)
