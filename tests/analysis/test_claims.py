"""Verdicts on claims, against scipy's own tests and made-up runs."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from earlydrop.analysis.claims import Claim, Family, differences, holm, judge, load_claims, measure, paired, regime
from earlydrop.analysis.findings import claims_folder, judge_all, short_table, write_findings
from earlydrop.analysis.findings_figures import draw_findings
from earlydrop.analysis.summaries import Summaries, read_summaries

LOSS = Claim("L", "lower loss", "here", "early", "none", "train_eval/loss", None, "lower")
SAME = Claim("S", "same loss", "here", "early", "none", "train_eval/loss", None, "equivalent", 0.05)


def made_up(study="toy", effect=-0.1, noise=0.01, seeds=range(10, 16), arms=("none", "early"), **facts):
    random = np.random.default_rng(0)
    runs, history = [], []
    for arm, seed in itertools.product(arms, seeds):
        loss = 1.0 + 0.3 * seed + (effect + noise * random.standard_normal()) * (arm != "none")
        fingerprint = f"{study}-{arm}-{seed}"
        common = {"study": study, "arm": arm, "seed": seed, "fingerprint": fingerprint}
        fact = {"state": "finished", "step": 100, "total_steps": 100, "config/model.name": "m", "config/data.name": "d"}
        runs.append(common | fact | facts)
        for step, value in ((5, 9.0), (10, 2.0), (50, 4.0), (100, loss)):
            history.append(common | {"step": step, "train_eval/loss": value, "test/accuracy": -value})
    return Summaries(pd.DataFrame(runs), pd.DataFrame(history))


def family(*claims, seeds=range(10, 16), **more):
    values = {"name": "f", "regime": "underfit", "standard": "early", "studies": {"toy": {"first": tuple(seeds)}}}
    return Family(**(values | more), claims=claims)


def verdict(claim, summaries, **more):
    (finding,) = judge(family(claim, **more), "toy", "first", summaries.of("toy"))
    return finding


def test_paired_t_is_scipys():
    values = np.random.default_rng(1).normal(0.3, 1, 7)
    found = paired(dict(enumerate(values)))
    theirs = scipy.stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert paired({0: 1.0}) is None


def test_verdicts():
    assert verdict(LOSS, made_up(effect=-0.1)).verdict == "reproduced"
    assert verdict(LOSS, made_up(effect=0.1)).verdict == "opposite"
    finding = verdict(LOSS, made_up(effect=0.0))
    assert finding.verdict == "not resolved"
    assert 0 < finding.resolvable < 0.05
    assert len(finding.fingerprints) == 12


def test_equivalence():
    assert verdict(SAME, made_up(effect=0.0)).verdict == "reproduced"
    assert verdict(SAME, made_up(effect=0.2)).verdict == "opposite"
    assert verdict(SAME, made_up(effect=0.0, noise=0.5)).verdict == "not resolved"
    assert verdict(SAME, made_up(effect=0.05)).verdict == "not resolved"  # on the margin


def test_equivalence_is_two_one_sided_tests():
    summaries = made_up(effect=0.03, noise=0.02)
    values = np.array(list(differences(summaries.of("toy"), SAME, range(10, 16))[0].values()))
    theirs = max(
        scipy.stats.ttest_1samp(values, -0.05, alternative="greater").pvalue,
        scipy.stats.ttest_1samp(values, 0.05, alternative="less").pvalue,
    )
    assert verdict(SAME, summaries).p == pytest.approx(theirs)


def test_unfinished_and_missing_seeds_give_no_verdict():
    summaries = made_up(seeds=range(10, 14))
    finding = verdict(LOSS, summaries)
    assert finding.verdict == "incomplete"
    assert finding.p is None
    assert verdict(LOSS, made_up(seeds=range(90, 94))).verdict == "not run"
    summaries = made_up()
    summaries.runs.loc[0, "state"] = "running"
    assert verdict(LOSS, summaries).verdict == "incomplete"


def test_two_runs_of_one_arm_and_seed_are_an_error():
    one, two = made_up(), made_up(effect=0.5)
    two.runs["fingerprint"] += "b"
    both = Summaries(pd.concat([one.runs, two.runs]), one.history)
    with pytest.raises(ValueError, match="2 finished runs of early with seed 10"):
        verdict(LOSS, both)


def test_holm_by_hand():
    adjusted, levels = holm([0.04, 0.01, 0.03, 0.005])
    assert adjusted == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert levels == pytest.approx([0.025, 0.05 / 3, 0.025, 0.0125])  # the third is not rejected: the fourth gets no more
    assert holm([]) == ([], [])


def test_holm_is_over_all_claims_of_a_study():
    noise = made_up(effect=-0.012, noise=0.012)
    alone = verdict(LOSS, noise)
    claims = [Claim(f"L{i}", "", "", "early", "none", "train_eval/loss", None, "lower") for i in range(5)]
    together = judge(family(*claims), "toy", "first", noise.of("toy"))
    assert together[0].p == pytest.approx(min(1, 5 * alone.p))


def test_claims_that_were_not_run_count_for_holm():
    missing = Claim("M", "", "", "late", "none", "train_eval/loss", None, "lower")
    summaries = made_up(effect=-0.012, noise=0.012)
    alone, (found, other) = verdict(LOSS, summaries), judge(family(LOSS, missing), "toy", "first", summaries.of("toy"))
    assert found.p == pytest.approx(min(1, 2 * alone.p))
    assert other.verdict == "not run"


def test_bootstrap_stands_beside_from_twenty_seeds():
    seeds = range(10, 30)
    finding = verdict(LOSS, made_up(seeds=seeds), seeds=seeds)
    assert finding.bootstrap[0] < finding.paired.effect < finding.bootstrap[1]
    assert verdict(LOSS, made_up()).bootstrap is None


def test_windows_hold_both_ends():
    history = pd.DataFrame({"step": [5, 10, 50, 100], "m": [1.0, 2.0, 4.0, 8.0]})
    assert measure(history, "m", (0.05, 0.5), 100) == pytest.approx(7 / 3)
    assert measure(history, "m", None, 100) == 8.0
    assert math.isnan(measure(history, "m", (0.6, 0.9), 100))
    assert math.isnan(measure(history, "other", None, 100))


def test_regimes():
    assert regime(made_up(effect=0.1).of("toy"), "early", range(10, 13))[0] == "underfit"  # accuracy is minus loss
    assert regime(made_up(effect=-0.1).of("toy"), "early", range(10, 13))[0] == "overfit"
    assert regime(made_up(effect=0.0, noise=1.0).of("toy"), "early", range(10, 13))[0] == "unclear"
    assert regime(made_up().of("toy"), "early", [])[0] == "unclear"


def write(tmp_path, **changes):
    claim = {"claim": "c", "source": "s", "arm": "a", "against": "none", "metric": "m", "window": "final", "direction": "lower"}
    content = {"claims": {"X": claim}, "regime": "underfit", "standard": "a", "studies": {"toy": {"first": [1, 2]}}}
    for key, value in changes.items():
        node = claim if key in claim or key == "margin" else content
        node[key] = value
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(content))
    return load_claims(tmp_path)


def test_claims_are_read(tmp_path):
    (found,) = write(tmp_path, window=["5%", "50%"])
    assert found.claims[0].window == (0.05, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "smaller"}, "claim X: direction is 'smaller': expected lower, higher, equivalent"),
        ({"window": ["50%", "5%"]}, r"window is \['50%', '5%'\]"),
        ({"window": "early"}, "window is 'early': expected 'final' or two rising percentages"),
        ({"margin": 0.1}, "margin missing or unknown"),
        ({"direction": "equivalent"}, "margin missing or unknown"),
        ({"direction": "equivalent", "margin": 0.0}, "margin is 0.0: expected more than 0"),
        ({"regime": "fit"}, "regime is 'fit'"),
        ({"studies": {"toy": {"label": [1, 5], "first": [5, 6]}}}, "seed 5 of study toy is in round first and in round label"),
    ],
)
def test_bad_claims_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)


def test_the_committed_claims_can_be_read_and_cover_every_finding():
    assert load_claims(claims_folder("classic"))
    families = load_claims(claims_folder())
    ids = {claim.id.partition("-")[0] for each in families for claim in each.claims}
    assert ids == {"F1", "F2", "F3a", "F3b", "F4a", "F4b", "F5", "F6", "F7", "F8", "F9"}


def test_summaries_come_back_as_they_were_written(tmp_path):
    summaries = made_up()
    summaries.write(tmp_path)
    again = read_summaries(tmp_path)
    again.write(tmp_path / "again")
    for name in ("runs.csv", "history.csv.xz"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_findings_from_summaries(tmp_path, monkeypatch):
    one = made_up("dynamics", arms=("none", "constant-0.1"), seeds=[*range(3), *range(100, 105)], **{"config/model.name": "vit"})
    one.history["probe/gdv"] = one.history["train_eval/loss"]
    one.write(tmp_path)
    table, labels, figures = write_findings(tmp_path, tmp_path)
    assert table.loc["F3b", "verdict"] == "**opposite**"
    assert table.loc["F1", "verdict"] == "not run"
    assert table.loc["F3b", "n"] == "5"
    assert labels["dynamics"].startswith("overfit (claimed for underfit)")
    assert {path.name for path in figures} >= {"dynamics-probe-gdv.png", "dynamics-test-accuracy.png"}
    assert "data:image/png" in (tmp_path / "findings.html").read_text()
    prints = pd.read_csv(tmp_path / "fingerprints.csv", index_col="what")["fingerprints"]
    assert prints["dynamics first F3b"].split()[0] == "dynamics-constant-0.1-100"
    assert len(prints["figures/dynamics-probe-gdv.png"].split()) == 10  # not the label's seeds
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_findings(tmp_path / "nowhere", tmp_path)


def test_two_metrics_of_the_same_runs_can_be_held_against_each_other():
    summaries = made_up(arms=("early",))
    summaries.history["test_mc/loss"] = summaries.history["train_eval/loss"] - 0.1
    claim = Claim("M", "", "", "early", "early", "test_mc/loss", None, "lower", against_metric="train_eval/loss")
    finding = verdict(claim, summaries)
    assert finding.verdict == "reproduced"
    assert finding.paired.effect == pytest.approx(-0.1)


def test_dropouts_gain_is_drawn_along_an_axis(tmp_path):
    parts = [made_up("classic-images", seeds=range(3, 8), arms=(f"none-{n}", f"constant-{n}"), **{"config/data.train_images": n})
             for n in (250, 10_000)]  # fmt: skip
    runs = pd.concat([part.runs for part in parts])
    runs["config/schedule.name"] = runs["arm"].str.partition("-")[0]
    runs["final/test/accuracy"] = runs["config/data.train_images"] * 1e-6 * (runs["config/schedule.name"] == "constant")
    images = Claim("I", "", "", "constant-250", "none-250", "test/accuracy", None, "higher")
    studies = {"classic-images": {"first": (3, 4, 5, 6, 7)}}
    files = draw_findings([family(images, studies=studies)], Summaries(runs, pd.concat([p.history for p in parts])), tmp_path)
    path = tmp_path / "classic-images-accuracy-by-training-images.png"
    assert path in files
    assert path.stat().st_size > 5_000
    assert len(files[path]) == 20


def test_a_later_round_takes_up_some_claims_and_stands_beside_the_first():
    late = Claim("A", "higher accuracy", "here", "late", "none", "test/accuracy", None, "higher")
    rounds = {"toy": {"first": tuple(range(10, 16)), "more": tuple(range(20, 25))}}
    summaries = made_up(seeds=[*range(10, 16), *range(20, 25)])
    findings = judge_all([family(LOSS, late, studies=rounds)], summaries)
    assert [(f.round, f.claim.id, f.verdict) for f in findings] == [
        ("first", "L", "reproduced"), ("first", "A", "not run"), ("more", "L", "reproduced"),
    ]  # fmt: skip
    short = short_table([family(LOSS, late, studies=rounds)], findings)
    assert short.loc["L", "elsewhere"] == "more: reproduced (n = 5)"
    assert short.loc["A", "elsewhere"] == ""


def test_a_run_that_stopped_early_has_no_window():
    summaries = made_up()
    summaries.runs.loc[0, "step"] = 50
    assert verdict(LOSS, summaries).verdict == "reproduced"
    windowed = Claim("W", "", "", "early", "none", "train_eval/loss", (0.0, 0.5), "lower")
    assert verdict(windowed, summaries).verdict == "incomplete"


def test_the_resolvable_effect_has_the_power_it_says():
    noise = 0.02
    finding = verdict(LOSS, made_up(effect=0.0, noise=noise))
    spread = finding.paired.spread
    random = np.random.default_rng(0)
    values = finding.resolvable + spread * random.standard_normal((4000, 6))
    power = (scipy.stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.03)
