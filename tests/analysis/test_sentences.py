"""The sentence that a report opens with."""

import pandas as pd
import pytest

from earlydrop.analysis import load_runs
from earlydrop.analysis.arms import Arm
from earlydrop.analysis.compare import differences
from earlydrop.analysis.sentences import answer, sentence
from earlydrop.analysis.stats import paired
from earlydrop.metrics import METRICS
from tests.analysis.made_up import make_run


def answered(folder):
    runs = load_runs(folder)
    return answer(runs, differences(runs))


def test_the_answer_names_the_difference_its_interval_and_the_seeds(tmp_path):
    for seed, (without, early) in enumerate([(0.5, 0.4), (0.6, 0.48), (0.9, 0.79)]):
        make_run(tmp_path / "study", "none", seed, without)
        make_run(tmp_path / "study", "early-0.1-20%", seed, early)
    said = answered(tmp_path)
    assert said.first == (
        "Early dropout ended with a lower training loss than no dropout in 3 of 3 seeds (-0.110, "
        "95% interval -0.135 to -0.085)."
    )
    assert said.more == (
        "Undecided: with early dropout the final test accuracy differs from that "
        "without dropout by "
        "+0.00000 (95% interval +0.00000 to +0.00000; higher in 0 of 3 seeds).",
    )


def test_an_interval_that_holds_zero_is_undecided():
    loss = METRICS["train_eval/loss"]
    said = sentence("late dropout", loss, paired({0: -0.1, 1: 0.2, 2: -0.3}), 2)
    assert said.startswith(
        "Undecided: with late dropout the final training loss differs from that without dropout by "
        "-0.067 ("
    )
    assert said.endswith("lower in 2 of 3 seeds).")


def test_a_worse_arm_is_counted_in_its_own_direction():
    said = sentence(
        "early dropout", METRICS["test/accuracy"], paired({0: -0.1, 1: -0.11, 2: -0.12}), 0
    )
    assert said.startswith(
        "Early dropout ended with a lower test accuracy than no dropout in 3 of 3 seeds (-0.110,"
    )


def test_seeds_that_are_equal_count_for_neither(tmp_path):
    worse = (0.2, 0.22, 0.21, 0.0, 0.2, 0.2)
    for seed, difference in enumerate(worse):
        make_run(tmp_path / "study", "none", seed, 0.5)
        make_run(tmp_path / "study", "early-0.1-20%", seed, 0.5 + difference)
    said = answered(tmp_path).first
    assert "higher training loss than no dropout in 5 of 6 seeds" in said


def test_arms_of_one_schedule_are_told_apart(study):
    for seed, loss in enumerate((0.5, 0.6, 0.9)):
        make_run(
            study,
            "none",
            seed,
            loss - 0.2 + 0.01 * seed,
            schedule={"name": "early", "rate": 0.2, "cutoff": "20%"},
        )
    said = " ".join([answered(study).first, *answered(study).more])
    assert "with arm early-0.1-20% the final training loss differs" in said
    assert "early-0.2-20% ended with a lower training loss" in said.lower()


@pytest.mark.parametrize(
    ("arms", "why"),
    [
        ({"none": 1}, "One run: nothing to compare it with."),
        ({"early-0.1-20%": 2}, "Nothing to compare: no run is without dropout."),
        ({"none": 1, "early-0.1-20%": 1}, "Nothing to compare: no arm shares two seeds"),
    ],
    ids=str,
)
def test_without_a_comparison_the_answer_says_why(arms, why, tmp_path):
    for arm, seeds in arms.items():
        for seed in range(seeds):
            make_run(tmp_path / "study", arm, seed, 0.5)
    assert answered(tmp_path).first.startswith(why)


def test_runs_without_the_metrics_of_sentences_are_told_so(study):
    runs = load_runs(study)
    found = {"early-0.1-20%": {"train": paired({0: -0.1, 1: -0.1, 2: -0.2})}}
    said = answer(runs, found)
    assert said.first.startswith("Nothing to compare in a sentence: neither train_eval/loss nor")


def test_a_schedule_of_the_users_keeps_its_name():
    heading = METRICS["train_eval/loss"].heading
    arm = Arm(values=(("schedule.name", "mine:ramp"),), base=(), words="ramp")
    row = {"study": "s", "arm": "ramp", "seed": 0, "state": "finished", "settings": arm}
    runs = pd.DataFrame([row | {"final/train_eval/loss": 0.5}])
    difference = paired({0: -0.1, 1: -0.1, 2: -0.11})
    said = answer(runs, {"ramp": {heading: difference}}).first
    assert said.startswith("Arm ramp ended with a lower training loss")


def test_differences_that_are_equal_in_all_seeds_decide_nothing():
    """One more right answer in each seed: the metric is too coarse to tell how it scatters."""
    said = sentence("early dropout", METRICS["test/accuracy"], paired({0: 0.01, 1: 0.01}), 2)
    assert said.startswith("Undecided: with early dropout the final test accuracy differs")
