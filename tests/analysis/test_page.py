"""The report page in a real browser, on a phone and a desk, in light and dark.

Nothing overflows, and no server is asked.
"""

import json
import re
import shutil
import subprocess

import pytest

from earlydrop.analysis.page import html_page, html_table, pictures, to_markdown
from earlydrop.commands.report import write_report
from tests.analysis.made_up import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def browse(page, width, tmp_path, script):
    """What a script finds in a page at a width, and what the console said."""
    wrapped = page.with_name("measured.html")
    report = f"<script>window.onload=()=>{{document.title=JSON.stringify(({script})())}}</script>"
    wrapped.write_text(page.read_text().replace("</html>", report + "</html>"))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=5000",
            "--dump-dom",
            wrapped.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title.replace("&quot;", '"').replace("&amp;", "&")), console


OVERFLOW = """() => [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('table') || e.tagName == 'TABLE')
  .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.tagName)"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_overflows_and_nothing_complains(study, width, tmp_path):
    make_run(
        study,
        "none",
        7,
        0.5,
        label="a label that is so long that it would squeeze any plot or table it is put into" * 2,
    )
    write_report(study)
    found, console = browse(study / "report.html", width, tmp_path, OVERFLOW)
    assert found == []
    assert console == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_single_runs_are_folded(study, tmp_path):
    write_report(study)
    found, _ = browse(
        study / "report.html",
        1400,
        tmp_path,
        "() => [...document.querySelectorAll('details')].map(e => e.open)",
    )
    assert found == [False]


def test_the_page_opens_with_the_answer_and_has_tables_last(study):
    for run in study.glob("early*"):  # differences that scatter
        lines = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            lines.replace('"train_eval/loss": 0.4', '"train_eval/loss": 0.41')
        )
    write_report(study)
    page = (study / "report.html").read_text()
    order = [
        "Early dropout ended with a lower training loss",
        "What was run",
        "minus the arm without dropout",
        "<svg",
        "<table",
    ]
    assert sorted(order, key=page.index) == order
    assert "prefers-color-scheme: dark" in page
    for server in ("http:", "https:", 'src="//', "@import"):
        assert server not in page


SEEN = """() => {
  const figures = [...document.querySelectorAll('figure.chart')];
  const figure = figures.find(f => f.querySelector('[aria-label=gdv]'));
  const svg = figure.querySelector('svg');
  const panel = JSON.parse(figure.querySelector('script').textContent)[0];
  const at = (x, y) => new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
  const mouse = {pointerType: 'mouse', button: 0, pointerId: 1};
  const send = (type, x, y) => {
    const p = at(x, y);
    svg.setPointerCapture = () => 0;
    svg.dispatchEvent(new PointerEvent(type, {clientX: p.x, clientY: p.y, ...mouse}));
  };
  const [left, top, right, bottom] = panel.box, tip = figure.querySelector('.tip');
  send('pointermove', left + 0.12 * (right - left), (top + bottom) / 2);
  const said = tip.innerText, shown = !tip.hidden;
  send('pointerdown', left + 5, top + 5); send('pointerup', (left + right) / 2, bottom - 5);
  const ticks = [...svg.querySelectorAll(':scope > g:last-of-type text')].map(t => t.textContent);
  const hiding = () =>
    [...svg.querySelectorAll('[id*=tick_]')].filter(t => t.style.display == 'none').length;
  const hidden = hiding() > 0;
  figure.querySelector('button').click();
  const left_over = hiding();
  const table = document.querySelector('table.sortable');
  const column = () => [...table.rows].slice(1).map(r => r.cells[0].innerText);
  const before = column();
  table.rows[0].cells[0].click();
  const up = column();
  table.rows[0].cells[0].click();
  return {said, shown, ticks: ticks.length, hidden, left_over, before, up, down: column()};
}"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_values_are_read_off_figures_are_zoomed_and_tables_sorted(study, tmp_path):
    for seed in range(3):
        make_run(study, "none", seed, 0.5, schedule={"name": "late", "rate": 0.1, "cutoff": "20%"})
    write_report(study)
    found, console = browse(study / "report.html", 1400, tmp_path, SEEN)
    assert console == []
    assert found["shown"]
    assert found["said"].split("\n")[0] == "step 10"
    assert "none: 0.1" in found["said"]
    assert found["ticks"] > 4
    assert found["hidden"]
    assert found["left_over"] == 0
    assert found["up"] == sorted(found["before"]) == found["down"][::-1]


def test_a_page_of_many_arms_stays_small(tmp_path):
    for arm in range(12):
        make_run(tmp_path / "study", "none", 0, 0.5, label=f"arm {arm}", optim={"lr": 0.1 + arm})
    lines = [
        json.dumps(
            {
                "step": step,
                "train/loss": 1 / step,
                "probe/gdv": 0.5 / step,
                "probe/gde": 0.1,
                "model/distance": step**0.5,
            }
        )
        for step in range(1, 3_001)
    ]
    for file in (tmp_path / "study").rglob("metrics.jsonl"):
        file.write_text("\n".join(lines) + "\n")
    write_report(tmp_path / "study")
    assert (tmp_path / "study" / "report.html").stat().st_size < 2_000_000


def test_terms_are_defined_where_they_stand(study):
    write_report(study)
    page = (study / "report.html").read_text()
    for term in ("early GDV", "train_eval loss", "seed", "runs"):
        assert re.search(rf'<abbr title="[^"]{{15,}}">{term}</abbr>', page), term


def test_one_run_has_a_page_too(tmp_path):
    make_run(tmp_path / "study", "none", 0, 0.5)
    write_report(tmp_path / "study")
    page = (tmp_path / "study" / "report.html").read_text()
    assert "One run: nothing to compare it with." in page
    assert "1: 1 arm, 1 seed" in page
    assert "minus the arm without dropout" not in page


def test_tables_are_escaped():
    import pandas as pd

    table = pd.DataFrame({"a|b": ["<b>", "x\ny"]}, index=pd.Index(["r|1", "r2"], name="n"))
    assert r"r\|1" in to_markdown(table)
    assert "&lt;b&gt;" in html_table(table)
    assert "<title>&lt;t&gt;</title>" in html_page("<t>", [])


def test_pictures_are_linked_relative_to_the_page(tmp_path):
    text = pictures([tmp_path / "figures" / "a&b.png"], tmp_path)
    assert 'src="figures/a&amp;b.png"' in text
    assert str(tmp_path) not in text
