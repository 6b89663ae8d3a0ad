"""Verdicts on claims, against scipy's own tests and made-up runs."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from earlydrop.analysis.stats import paired
from earlydrop.claims.declare import Comparison, LossWindow, Sensitivity
from earlydrop.claims.differences import differences
from earlydrop.claims.judge import judge, judge_all
from earlydrop.claims.measured import value_of, windowed
from earlydrop.claims.regime import regime
from earlydrop.claims.summaries import Summaries
from tests.claims.made_up import ARMS, LOSS, SAME, declaration, made_up, study, verdict


def test_verdicts():
    assert verdict(LOSS, made_up(effect=-0.1)).verdict == "reproduced"
    assert verdict(LOSS, made_up(effect=0.1)).verdict == "opposite"
    assert verdict(LOSS, made_up(effect=0.0)).verdict == "absent"
    assert (
        verdict(LOSS, made_up(effect=-0.02)).verdict == "absent"
    )  # not 0, but smaller than what matters
    finding = verdict(LOSS, made_up(effect=0.0, noise=0.2))
    assert finding.verdict == "not resolved"
    assert len(finding.fingerprints) == 12


def test_a_claim_that_an_arm_is_not_lower():
    claim = dataclasses.replace(LOSS, direction="not lower")
    assert verdict(claim, made_up(effect=0.0)).verdict == "reproduced"
    assert verdict(claim, made_up(effect=0.3)).verdict == "reproduced"
    assert verdict(claim, made_up(effect=-0.3)).verdict == "opposite"
    assert verdict(claim, made_up(effect=0.0, noise=0.3)).verdict == "not resolved"


def test_a_relative_effect_is_of_the_mean_of_what_it_is_held_against():
    summaries = made_up(effect=0.0)
    losses = [
        run.history["train_eval/loss"].iloc[-1]
        for run in summaries.of("toy").itertuples()
        if run.arm == "none"
    ]
    found = verdict(dataclasses.replace(LOSS, smallest=0.02, relative=True), summaries)
    assert found.smallest == pytest.approx(0.02 * sum(losses) / len(losses))


def history(losses, values, steps=(10, 20, 30, 40)):
    return pd.DataFrame({"step": steps, "train_eval/loss": losses, "m": values})


def test_windows_by_loss_compare_runs_at_equal_progress():
    window = LossWindow(5.0, 3.0)
    fast = history(
        [6.0, 4.0, 2.0, 1.0], [0.0, 2.0, 4.0, 5.0]
    )  # the metric is 6 minus the loss: its mean over 5 to 3 is 2
    slow = history([6.0, 5.0, 4.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    bumpy = history(
        [6.0, 5.0, 5.5, 3.0], [0.0, 1.0, 9.0, 3.0]
    )  # where it rises again nothing counts but the line to the next level
    assert windowed(fast, "m", window, 40) == pytest.approx(2.0)
    assert windowed(slow, "m", window, 40) == pytest.approx(2.0)
    assert windowed(bumpy, "m", window, 40) > 2.0
    with pytest.raises(
        ValueError, match=r"the training loss falls from 6 to 3, not through the window from 5 to 2"
    ):
        windowed(slow, "m", LossWindow(5.0, 2.0), 40)
    assert math.isnan(windowed(slow, "other", window, 40))


def test_a_run_that_never_reaches_a_loss_is_named_and_leaves_its_claim_alone_without_a_verdict():
    claim = dataclasses.replace(LOSS, metric="test/accuracy", window=LossWindow(4.0, 0.5))
    found, other = judge(
        declaration(claim, dataclasses.replace(LOSS, id="other")),
        "toy",
        "first",
        made_up(effect=-0.2).of("toy"),
    )
    assert found.verdict == "incomplete"
    assert found.remark.startswith("run toy-early-10: the training loss falls from 9 to ")
    assert other.verdict == "reproduced"


def test_two_values_of_one_run_cost_one_run():
    summaries = made_up(arms=("early",), noise=0.0, seconds=3600.0)
    summaries.history["test_mc/loss"] = summaries.history[
        "train_eval/loss"
    ] + np.random.default_rng(0).normal(0, 1, len(summaries.history))
    claim = dataclasses.replace(
        LOSS, against=ARMS["early"], metric="test_mc/loss", against_metric="train_eval/loss"
    )
    price = verdict(claim, summaries).price
    assert price.hours == pytest.approx(price.seeds)


def test_equivalence():
    assert verdict(SAME, made_up(effect=0.0)).verdict == "reproduced"
    assert verdict(SAME, made_up(effect=0.2)).verdict == "opposite"
    assert verdict(SAME, made_up(effect=0.0, noise=0.5)).verdict == "not resolved"
    assert verdict(SAME, made_up(effect=0.05)).verdict == "not resolved"  # on the margin


def test_differences_that_do_not_scatter_show_nothing_unless_they_are_none():
    for claim in (LOSS, SAME):
        stuck = verdict(claim, made_up(effect=-0.2, noise=0.0, seeds=(0, 0x10)), seeds=(0, 0x10))
        assert (stuck.verdict, stuck.p, stuck.price) == ("not resolved", 1.0, None)
    assert verdict(SAME, made_up(effect=0.0, noise=0.0)).verdict == "reproduced"
    assert verdict(LOSS, made_up(effect=0.0, noise=0.0)).verdict == "absent"


def test_equivalence_is_two_one_sided_tests():
    summaries = made_up(effect=0.03, noise=0.02)
    found = paired(differences(summaries.of("toy"), study(first=()), SAME, range(10, 16)).values)
    losses = {arm: rows.sort_values("seed")["train_eval/loss"].to_numpy() for arm, rows in
              summaries.history[summaries.history["step"] == 100].groupby("arm")}  # fmt: skip
    values = losses["early"] - losses["none"]
    assert found.effect == pytest.approx(values.mean())
    theirs = max(
        scipy.stats.ttest_1samp(values, -0.05, alternative="greater").pvalue,
        scipy.stats.ttest_1samp(values, 0.05, alternative="less").pvalue,
    )
    finding = verdict(SAME, summaries)
    assert finding.p == pytest.approx(2 * theirs)  # Holm over its two tests


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
    two.history["fingerprint"] += "b"
    both = Summaries(pd.concat([one.runs, two.runs]), pd.concat([one.history, two.history]))
    with pytest.raises(ValueError, match="2 finished runs of early with seed 10"):
        verdict(LOSS, both)


def test_holm_is_over_all_claims_of_a_family():
    noise = made_up(effect=-0.012, noise=0.012)
    alone = verdict(LOSS, noise)
    claims = [dataclasses.replace(LOSS, id=f"L{i}") for i in range(5)]
    together = judge(declaration(*claims), "toy", "first", noise.of("toy"))
    assert together[0].p > alone.p


def test_claims_that_were_not_run_count_for_holm():
    missing = dataclasses.replace(LOSS, id="M", arm=ARMS["late"])
    summaries = made_up(effect=-0.012, noise=0.012)
    alone, (found, other) = (
        verdict(LOSS, summaries),
        judge(declaration(LOSS, missing), "toy", "first", summaries.of("toy")),
    )
    assert found.p == pytest.approx(min(1, 2 * alone.p))
    assert other.verdict == "not run"


def test_bootstrap_stands_beside_from_twenty_seeds():
    seeds = range(10, 30)
    finding = verdict(LOSS, made_up(seeds=seeds), seeds=seeds)
    assert finding.bootstrap[0] < finding.paired.effect < finding.bootstrap[1]
    assert verdict(LOSS, made_up()).bootstrap is None


def test_windows_hold_both_ends():
    history = pd.DataFrame({"step": [5, 10, 50, 100], "m": [1.0, 2.0, 4.0, 8.0]})
    assert windowed(history, "m", (0.05, 0.5), 100) == pytest.approx(7 / 3)
    assert windowed(history, "m", None, 100) == 8.0
    assert math.isnan(windowed(history, "m", (0.6, 0.9), 100))
    assert math.isnan(windowed(history, "other", None, 100))


def test_regimes():
    def label(summaries, seeds=range(10, 13)):
        return regime(summaries.of("toy"), study(first=()), ARMS["early"], seeds)[0]

    assert label(made_up(effect=0.1)) == "underfit"  # accuracy is minus loss
    assert label(made_up(effect=-0.1)) == "overfit"
    assert label(made_up(effect=0.0, noise=1.0)) == "unclear"
    assert label(made_up(), []) == "unclear"


def test_two_metrics_of_the_same_runs_can_be_held_against_each_other():
    summaries = made_up(arms=("early",))
    summaries.history["test_mc/loss"] = (
        summaries.history["train_eval/loss"] - 0.1 - 0.001 * (summaries.history["seed"] - 12.5)
    )
    claim = dataclasses.replace(
        LOSS, against=ARMS["early"], metric="test_mc/loss", against_metric="train_eval/loss"
    )
    finding = verdict(claim, summaries)
    assert finding.verdict == "reproduced"
    assert finding.paired.effect == pytest.approx(-0.1)


def test_a_run_that_stopped_early_has_no_window():
    summaries = made_up()
    summaries.runs.loc[0, "step"] = 50
    assert verdict(LOSS, summaries).verdict == "reproduced"
    assert verdict(dataclasses.replace(LOSS, window=(0.0, 0.5)), summaries).verdict == "incomplete"


def test_a_claim_of_another_family_changes_nothing():
    noise = made_up(effect=-0.012, noise=0.012)
    alone = verdict(LOSS, noise)
    beside, other = judge(
        declaration(LOSS, dataclasses.replace(LOSS, id="other", family="others")),
        "toy",
        "first",
        noise.of("toy"),
    )
    assert beside.p == other.p == alone.p


def both(*summaries):
    return Summaries(
        pd.concat([s.runs for s in summaries]), pd.concat([s.history for s in summaries])
    )


def test_runs_of_another_configuration_in_the_folder_change_no_verdict():
    """Another learning rate is another arm, whatever its runs are called."""
    declared, more = made_up(), made_up(effect=0.5, config={"optim.lr": 0.5})
    before, after = verdict(LOSS, declared), verdict(LOSS, both(declared, more))
    assert after == before
    assert after.verdict == "reproduced"
    claimed = dataclasses.replace(
        LOSS, arm=ARMS["early"] | {"optim.lr": 0.5}, against=ARMS["none"] | {"optim.lr": 0.5}
    )
    assert verdict(claimed, both(declared, more)).paired.effect == pytest.approx(0.5, abs=0.02)


def test_runs_of_one_other_configuration_are_judged_with_a_remark():
    lower, higher = made_up(config={"optim.lr": 0.5}), made_up(config={"optim.lr": 0.25})
    found = verdict(LOSS, lower)
    assert found.verdict == "reproduced"
    assert found.remark == "optim.lr=0.5"
    with pytest.raises(
        ValueError,
        match=r"claim L fits runs of several configurations, optim.lr=0.25 and 0.5: name the one",
    ):
        verdict(LOSS, both(lower, higher))
    pinned = [study(config={"optim.lr": 0.25}, first=range(10, 16))]
    assert (
        judge(declaration(LOSS, studies=pinned), "toy", "first", both(lower, higher).of("toy"))[
            0
        ].remark
        == ""
    )
    assert (
        verdict(
            dataclasses.replace(LOSS, arm=ARMS["early"] | {"schedule.rate": 0.2}), lower
        ).verdict
        == "not run"
    )


def test_arms_of_different_configurations_are_never_held_against_each_other():
    """All early runs have one learning rate, all runs without dropout another: there is no pair."""
    apart = both(
        made_up(config={"optim.lr": 0.5}, arms=("early",)),
        made_up(config={"optim.lr": 0.25}, arms=("none",)),
    )
    assert verdict(LOSS, apart).verdict == "not run"


def test_an_arm_in_another_shape_does_not_make_runs_of_another_configuration_ambiguous():
    """The arm of one claim can be like the other arm of the next, but for what neither names."""
    square = dict(ARMS["early"], **{"schedule.shape": "constant"})
    lower = both(
        made_up(config={"optim.lr": 0.5}),
        made_up(config={"optim.lr": 0.5, "schedule.shape": "constant"}, arms=("early",)),
    )
    shape = dataclasses.replace(SAME, arm=square, against=ARMS["early"])
    for claim in (LOSS, SAME, shape):
        assert verdict(claim, lower).remark == "optim.lr=0.5"


def test_a_claim_of_a_share_counts_the_runs_above_the_bound():
    summaries = made_up(effect=-0.1, noise=0.0, seeds=range(10, 20))
    claim = dataclasses.replace(
        LOSS, test=Comparison("share above", 1.0 + 0.3 * 14 - 0.05), smallest=0.05
    )
    found = verdict(claim, summaries, seeds=range(10, 20))
    # Without dropout the losses are 1 + 0.3 seed: seeds 14 to 19 are above the bound. With early
    # dropout they are 0.1 lower: seeds 15 to 19 are above.
    assert found.paired.effect == pytest.approx(-0.1)
    assert found.paired.p == 1.0
    assert found.price is None
    assert found.bootstrap is None
    far = dataclasses.replace(claim, test=Comparison("share above", 1.0 + 0.3 * 10 - 0.05))
    summaries = made_up(effect=-5.0, noise=0.0, seeds=range(10, 20))
    assert verdict(far, summaries, seeds=range(10, 20)).verdict == "reproduced"


def test_a_claim_of_the_median_uses_the_signed_rank_test():
    claim = dataclasses.replace(LOSS, test=Comparison("median"))
    found = verdict(
        claim, made_up(effect=-0.3, noise=0.1, seeds=range(10, 22)), seeds=range(10, 22)
    )
    assert found.verdict == "reproduced"
    assert found.paired.p == pytest.approx(2 * 0.5**12)  # all twelve differences are below 0
    assert (
        verdict(
            claim, made_up(effect=0.0, noise=0.01, seeds=range(10, 22)), seeds=range(10, 22)
        ).verdict
        == "absent"
    )


def test_a_claim_of_a_time_reads_the_first_step_at_the_bound():
    claim = dataclasses.replace(LOSS, test=Comparison("steps to", 3.0), smallest=5.0)
    found = verdict(claim, made_up(effect=0.0))
    assert (found.paired.effect, found.paired.p) == (0.0, 1.0)  # every run reaches 2.0 at step 10
    never = dataclasses.replace(LOSS, test=Comparison("steps to", 1.5), smallest=5.0)
    assert (
        verdict(never, made_up(effect=0.0)).paired.effect == 0.0
    )  # no run reaches it: each counts its length


def differences_of(summaries, metric="train_eval/loss", step=100):
    """Early minus none by seed, without the code under test."""
    rows = summaries.history[summaries.history["step"] == step].sort_values("seed")
    arms = {arm: part[metric].to_numpy() for arm, part in rows.groupby("arm")}
    return arms["early"] - arms["none"]


def test_the_p_values_of_a_family_are_holms_over_two_tests_of_each_claim():
    """Against scipy's tests and the step-down procedure written out."""
    summaries = made_up(effect=-0.03, noise=0.03)
    values = differences_of(summaries)
    claims = [
        dataclasses.replace(LOSS, id="D"),
        dataclasses.replace(SAME, id="E", smallest=0.08),
        dataclasses.replace(LOSS, id="N", direction="not lower", smallest=0.02),
    ]
    test = scipy.stats.ttest_1samp
    two_sided = test(values, 0).pvalue

    def within(margin):
        return max(
            test(values, -margin, alternative="greater").pvalue,
            test(values, margin, alternative="less").pvalue,
        )

    beyond = min(1.0, 2 * test(-values, 0.08, alternative="greater").pvalue)
    above = test(values, -0.02, alternative="greater").pvalue
    plain = {"D": (two_sided, within(0.05)), "E": (within(0.08), beyond), "N": (above, two_sided)}
    ordered = sorted(p for pair in plain.values() for p in pair)
    adjusted = np.maximum.accumulate(
        [min(1.0, p * (len(ordered) - i)) for i, p in enumerate(ordered)]
    )
    holm = dict(zip(ordered, adjusted, strict=True))
    for found in judge(declaration(*claims), "toy", "first", summaries.of("toy")):
        first, second = (holm[p] for p in plain[found.claim.id])
        assert found.p in (pytest.approx(first), pytest.approx(second))
        decided = found.p == pytest.approx(second) and second < 0.05
        assert (found.verdict == "not resolved") == (not decided and first >= 0.05)


@pytest.mark.parametrize(("direction", "effect", "expected"), [
    ("lower", -0.2, "reproduced"), ("lower", 0.2, "opposite"), ("lower", 0.0, "absent"),
    ("higher", -0.2, "opposite"), ("higher", 0.2, "reproduced"), ("higher", 0.0, "absent"),
    ("equivalent", -0.2, "opposite"), ("equivalent", 0.2, "opposite"),
    ("equivalent", 0.0, "reproduced"), ("not lower", -0.2, "opposite"),
    ("not lower", 0.2, "reproduced"), ("not lower", 0.0, "reproduced"),
])  # fmt: skip
def test_every_direction_against_every_effect(direction, effect, expected):
    assert (
        verdict(dataclasses.replace(LOSS, direction=direction), made_up(effect=effect)).verdict
        == expected
    )


def test_what_a_verdict_holds():
    summaries = made_up(effect=-0.1, seeds=range(10, 16))
    summaries.runs["seconds"] = np.where(summaries.runs["arm"] == "early", 10.0, 100.0) * (
        summaries.runs["seed"] - 9
    )
    found = verdict(LOSS, summaries)
    values = differences_of(summaries)
    assert (found.study, found.round, found.claim, found.expected, found.remark) == (
        "toy",
        "first",
        LOSS,
        6,
        "",
    )
    assert found.arms == ("early", "none")
    assert found.fingerprints == tuple(
        f"toy-{arm}-{seed}" for seed in range(10, 16) for arm in ("early", "none")
    )
    assert found.seconds == pytest.approx((10 * 2.25, 100 * 2.25))  # the lower quartile of 1 to 6
    assert found.paired.seeds == tuple(range(10, 16))
    assert found.paired.effect == pytest.approx(values.mean())
    assert found.paired.spread == pytest.approx(values.std(ddof=1))
    assert found.smallest == 0.05
    assert found.price is None  # it is resolved


def test_a_claim_that_is_not_resolved_has_a_price_and_others_have_none():
    summaries = made_up(effect=0.0, noise=0.2, seconds=1800.0)
    found = verdict(LOSS, summaries)
    assert found.verdict == "not resolved"
    assert found.price.seeds > 6
    assert found.price.hours == pytest.approx(found.price.seeds)  # two runs of half an hour a seed
    assert verdict(LOSS, made_up(effect=0.0)).price is None


def test_a_relative_effect_of_a_negative_metric_is_positive():
    claim = dataclasses.replace(LOSS, metric="test/accuracy", smallest=0.02, relative=True)
    assert verdict(claim, made_up()).smallest == pytest.approx(
        0.02 * np.mean([1.0 + 0.3 * seed for seed in range(10, 16)])
    )


def test_a_metric_that_nothing_measured_is_not_run():
    found = verdict(dataclasses.replace(LOSS, metric="probe/gdv"), made_up())
    assert (found.verdict, found.paired, found.smallest, found.p, found.fingerprints) == (
        "not run",
        None,
        None,
        None,
        (),
    )


def test_one_seed_is_incomplete_and_its_seeds_are_kept_apart():
    found = verdict(LOSS, made_up(seeds=[10]))
    assert (found.verdict, found.paired) == ("incomplete", None)
    assert found.fingerprints == ("toy-early-10", "toy-none-10")
    other = made_up(seeds=range(30, 36))
    assert (
        verdict(LOSS, both(made_up(), other)).fingerprints == verdict(LOSS, made_up()).fingerprints
    )


def test_the_difference_of_a_regime_is_standard_minus_none():
    summaries = made_up(effect=0.1)
    label, found = regime(summaries.of("toy"), study(first=()), ARMS["early"], range(10, 13))
    assert label == "underfit"
    assert found.seeds == (10, 11, 12)
    assert found.effect == pytest.approx(differences_of(summaries, "test/accuracy")[:3].mean())
    assert regime(summaries.of("toy"), study(first=()), ARMS["early"], []) == ("unclear", None)
    assert regime(summaries.of("toy"), study(first=()), ARMS["early"], [10])[0] == "unclear"


def test_rounds_and_studies_without_runs_are_left_out_but_for_the_main_ones():
    missing = dataclasses.replace(LOSS, id="M", arm=ARMS["late"])
    main = study("toy", first=range(10, 16), label=range(3), more=range(50, 56))
    elsewhere = study("elsewhere", first=range(10, 16))
    declared = declaration(LOSS, missing, studies=[main, elsewhere])

    def told(summaries):
        return [
            (found.study, found.round, found.claim.id, found.verdict)
            for found in judge_all([declared], summaries)
        ]

    ran = made_up(seeds=[0, 1, 2, *range(10, 16), *range(50, 56)])
    assert told(ran) == [
        ("toy", "first", "L", "reproduced"),
        ("toy", "first", "M", "not run"),
        ("toy", "more", "L", "reproduced"),
    ]
    elsewhere = told(both(ran, made_up("elsewhere")))
    assert elsewhere[3:] == [("elsewhere", "first", "L", "reproduced")]
    assert told(made_up(seeds=range(50, 56)))[-1] == ("toy", "more", "L", "reproduced")


def test_losses_that_fall_by_a_jump_and_metrics_between_the_measurements():
    """At 33 losses the metric is read where a line between measurements first reaches them."""
    steps = np.array([10.0, 20.0, 40.0, 80.0])
    losses, values = np.array([6.0, 4.0, 4.5, 1.0]), np.array([1.0, 3.0, 2.0, 10.0])
    levels = np.linspace(5.0, 2.0, 33)
    best = np.minimum.accumulate(losses)
    fine = np.linspace(10, 80, 700_001)
    curve = np.interp(fine, steps, best)
    reached = [fine[np.argmax(curve <= level + 1e-9)] for level in levels]
    expected = np.interp(reached, steps, values).mean()
    found = windowed(
        history(losses, values, tuple(steps.astype(int))), "m", LossWindow(5.0, 2.0), 80
    )
    assert found == pytest.approx(expected, abs=1e-3)
    ends = history([5.0, 4.0, 3.0, 2.0], [0.0, 1.0, 2.0, 3.0])
    assert windowed(ends, "m", LossWindow(5.0, 2.0), 40) == pytest.approx(
        1.5
    )  # both ends are reached


def test_the_sensitivity_to_a_setting_is_compared_seed_by_seed():
    """As in Wortsman et al. 2023, section 2.2; a seed that lacks one rate has no value."""
    rates = {0.001: -0.3, 0.002: -0.1, 0.004: -0.6}
    studies = [
        made_up(
            effect=effect,
            noise=0.05,
            config={"optim.lr": rate},
            seeds=range(10, 16 if rate < 0.004 else 15),
        )
        for rate, effect in rates.items()
    ]
    summaries = Summaries(
        pd.concat([each.runs for each in studies]), pd.concat([each.history for each in studies])
    )
    claim = dataclasses.replace(LOSS, sensitivity=Sensitivity("optim.lr", tuple(rates), 4.5))
    found = differences(summaries.of("toy"), study(first=range(10, 16)), claim, range(10, 16))
    final = summaries.history[summaries.history["step"] == 100]
    losses = final.pivot_table(
        index="seed", columns=["arm", "fingerprint"], values="train_eval/loss"
    )
    assert list(found.values) == [10, 11, 12, 13, 14]
    for seed in found.values:
        assert found.values[seed] == found.arm[seed] - found.against[seed]
        for arm, ours in (("early", found.arm), ("none", found.against)):
            values = [min(value, 4.5) for value in losses.loc[seed, arm].dropna()]
            assert len(values) == 3
            assert ours[seed] == pytest.approx(sum(values) / 3 - min(values))
    assert len(found.fingerprints) == 2 * (6 + 6 + 5)
    assert found.names == ("early-0.1-20%", "none")
    timed = summaries.of("toy").assign(seconds=10.0)
    timed.loc[timed["arm"] == "none", "seconds"] = 7.0
    seconds = differences(timed, study(first=range(10, 16)), claim, range(10, 16)).seconds
    assert seconds == (30.0, 21.0)  # of a run at each of the three rates
    result = verdict(claim, summaries)
    assert result.verdict == "incomplete"
    assert len(result.paired.seeds) == 5


def test_equal_differences_have_no_bootstrap_and_give_no_regime():
    summaries = made_up(effect=0.5, noise=0.0, seeds=range(10, 34))
    found = verdict(LOSS, summaries, seeds=range(10, 34))
    assert (found.verdict, found.bootstrap) == ("not resolved", None)
    assert (found.lower, found.higher) == (0, 24)


def test_a_run_that_stopped_early_before_a_bound_has_no_time():
    claim = dataclasses.replace(LOSS, test=Comparison("steps to", 3.0))
    (row,) = made_up(arms=("none",), seeds=[10]).of("toy").itertuples()
    assert value_of(row, claim, "train_eval/loss") == 10
    never = dataclasses.replace(claim, test=Comparison("steps to", 0.1))
    assert value_of(row, never, "train_eval/loss") == 100
    stopped = row._replace(step=50)
    assert value_of(stopped, claim, "train_eval/loss") == 10
    assert math.isnan(value_of(stopped, never, "train_eval/loss"))
    losses = dataclasses.replace(LOSS, metric="test/accuracy", window=LossWindow(high=8.0, low=5.0))
    assert math.isfinite(value_of(stopped, losses, "test/accuracy"))
