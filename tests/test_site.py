"""The documentation's pages that are made from the code; ``.ci/run`` builds the whole site."""

import importlib.util
from pathlib import Path

import yaml

from earlydrop.training.keys import keys

ROOT = Path(__file__).parents[1]


def site_pages():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_has_its_row():
    page = site_pages().keys_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(keys())
    assert all(row.count(" | ") == 3 for row in rows)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = {line.rpartition(": ")[2].strip() for line in text.partition("\nnav:")[2].splitlines()}
    pages = {
        str(path.relative_to(ROOT / "docs"))
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".md", ".py")
    }
    assert pages <= named
    assert yaml.safe_load(text)["docs_dir"] == "docs"


def test_every_public_name_is_in_the_reference():
    import earlydrop

    page = (ROOT / "docs" / "reference" / "library.md").read_text(encoding="utf-8")
    left = [name for name in earlydrop.__all__ if name not in page and name != "__version__"]
    assert left == []
