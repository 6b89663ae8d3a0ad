"""What a notebook shows of the library's values."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop.schedules.curve import curve_svg


def points(schedule):
    svg = ET.fromstring(curve_svg(schedule))
    line = svg.find("{http://www.w3.org/2000/svg}polyline")
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()], "".join(
        svg.itertext()
    )


def test_a_schedules_curve_is_drawn_to_a_little_past_its_last_change():
    drawn, words = points(earlydrop.early(rate=0.2, cutoff=1_000, shape="linear"))
    assert drawn[0][1] == 10  # the peak is at the top
    xs = [x for x, y in drawn if y < 130]
    assert max(xs) - drawn[0][0] == pytest.approx(0.8 * 360, abs=2)  # 1,000 of 1,250 steps
    middle = min(drawn, key=lambda point: abs(point[0] - (46 + 0.4 * 360)))
    assert middle[1] == pytest.approx(10 + 120 / 2, abs=1)  # half the rate at half the cutoff
    assert "0.2" in words
    assert "1,248" in words  # the last step above 0 is 998
    assert "optimizer step" in words


@pytest.mark.parametrize(
    ("schedule", "axis"),
    [
        (earlydrop.early(0.1, "20%"), "% of the run"),
        (earlydrop.late(0.1, "50ep"), "epoch"),
        (earlydrop.constant(0.1), "optimizer step"),
        (earlydrop.none(), "optimizer step"),
        (earlydrop.late(0.1, 5_000), "optimizer step"),
        (earlydrop.piecewise("0,0@0.20,0.5@0.50,0"), "% of the run"),
        (earlydrop.early(0.1, 0), "optimizer step"),
    ],
    ids=repr,
)
def test_every_schedule_has_a_picture(schedule, axis):
    drawn, words = points(schedule)
    assert axis in words
    assert len(drawn) > 5
    assert all(0 <= x <= 410 and 10 <= y <= 130 for x, y in drawn)
    assert repr(schedule).split("(")[0] in schedule._repr_html_()


def test_sites_show_as_a_table():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Dropout(0.1))
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.2, 10))
    for sites in (earlydrop.find_sites(model), scheduler.sites):
        cells = re.findall("<td>(.*?)</td>", sites._repr_html_())
        assert cells[:5] == ["1", "unit", "0.3", "0.2", "yes"]
    assert earlydrop.find_sites(model) == list(scheduler.sites)


def test_an_audit_groups_the_rates_of_one_attribute():
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(p)) for p in (0.1, 0.2, 0.3))
    model = nn.Sequential(*blocks)
    found = earlydrop.audit(model, torch.ones(2, 4))
    html = found._repr_html_()
    assert re.findall("<td>(.*?)</td>", html)[:4] == ["*.*", "dropout", "0.1 to 0.3", "3"]
    assert html.count("<tr>") == 2
    assert "0.1 to 0.3" in str(found)


def test_a_probes_report_is_a_small_table_of_rounded_numbers():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]
    report = earlydrop.probe(
        model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), batches, dataset=batches
    )
    cells = re.findall("<td>(.*?)</td>", report._repr_html_())
    shown = dict(zip(cells[::2], cells[1::2], strict=True))
    assert float(shown["gdv"]) == pytest.approx(report.gdv, rel=1e-3)
    assert shown["gradients"] == "4"
    assert not re.search(r"\d\.\d{6}", report._repr_html_())
    assert f"gradient norm          {shown['gradient norm']}" in str(report)
    assert "further" not in shown


def test_what_a_name_holds_is_no_html():
    model = nn.Sequential()
    model.add_module("<b>", nn.Dropout(0.1))
    assert "<b>" not in earlydrop.find_sites(model)._repr_html_()


def test_a_narrow_peak_of_a_resolved_schedule_is_drawn():
    schedule = earlydrop.piecewise("0,0@0.46,0.5@0.47,0@0.48,0").resolve(total_steps=1_000)
    drawn, words = points(schedule)
    assert min(y for _, y in drawn) == 10
    assert "1,000" in words


def test_steps_beyond_ten_thousand_are_written_out():
    _, words = points(earlydrop.early(0.1, cutoff=100_000))
    assert "e+" not in words
    assert "124,998" in words
