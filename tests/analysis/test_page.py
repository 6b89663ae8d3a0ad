"""The report page in a real browser: nothing overflows on a phone or a desk, in light or dark, and no server is asked."""

import json
import shutil
import subprocess

import pytest

from earlydrop.analysis.page import html_page, html_table, to_markdown
from earlydrop.commands.report import write_report
from tests.analysis.made_up import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def browse(page, width, tmp_path, script):
    """What a script finds in a page at a width, and what the console said."""
    wrapped = page.with_name("measured.html")
    report = f"<script>window.onload=()=>{{document.title=JSON.stringify(({script})())}}</script>"
    wrapped.write_text(page.read_text().replace("</html>", report + "</html>"))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom", wrapped.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title.replace("&quot;", '"').replace("&amp;", "&")), console


OVERFLOW = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('table') || e.tagName == 'TABLE')
  .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.tagName)"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_overflows_and_nothing_complains(study, width, tmp_path):
    make_run(study, "none", 7, 0.5, label="a label that is so long that it would squeeze any plot or table it is put into" * 2)
    write_report(study)
    found, console = browse(study / "report.html", width, tmp_path, OVERFLOW)
    assert found == []
    assert console == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_single_runs_are_folded(study, tmp_path):
    write_report(study)
    found, _ = browse(study / "report.html", 1400, tmp_path, "() => [...document.querySelectorAll('details')].map(e => e.open)")
    assert found == [False]


def test_the_page_opens_with_the_differences_before_any_table(study):
    write_report(study)
    page = (study / "report.html").read_text()
    assert page.index("minus the arm without dropout") < page.index('alt="differences"') < page.index("<table>")
    assert "prefers-color-scheme:dark" in page
    for server in ("http:", "https:", 'src="//', "@import"):
        assert server not in page


def test_one_run_has_a_page_too(tmp_path):
    make_run(tmp_path / "study", "none", 0, 0.5)
    write_report(tmp_path / "study")
    page = (tmp_path / "study" / "report.html").read_text()
    assert "1 runs of" in page
    assert "minus the arm without dropout" not in page


def test_tables_are_escaped():
    import pandas as pd

    table = pd.DataFrame({"a|b": ["<b>", "x\ny"]}, index=pd.Index(["r|1", "r2"], name="n"))
    assert r"r\|1" in to_markdown(table)
    assert "&lt;b&gt;" in html_table(table)
    assert "<title>&lt;t&gt;</title>" in html_page("<t>", [])
