"""Looks that are declared: when a claim is judged, when it stops, and what is to run next."""

import dataclasses
import shlex

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from earlydrop.analysis.sequential import nominal_level, sequential_p
from earlydrop.claims.declare import Looks, LossWindow
from earlydrop.claims.judge import judge
from earlydrop.claims.looks import next_look, no_runs
from earlydrop.claims.shown import sentences
from earlydrop.claims.summaries import Summaries
from earlydrop.claims.tables import verdict_table
from earlydrop.commands import findings
from tests.claims.made_up import LOSS, SAME, declaration, made_up, study
from tests.claims.test_read import write

LOOKS = Looks((6, 10, 20), "obrien-fleming")
SEEDS = range(10, 30)


def declared(*claims):
    return dataclasses.replace(declaration(*claims, studies=[study(first=SEEDS)]), looks=LOOKS)


def judged(summaries, *claims):
    return judge(declared(*claims), "toy", "first", summaries.of("toy"))


def test_a_claim_stops_at_the_first_look_that_decides_it():
    summaries = made_up(effect=-0.3, noise=0.05, seeds=SEEDS)
    (found,) = judged(summaries, LOSS)
    assert (found.verdict, found.look, found.looks) == ("reproduced", 1, 3)
    assert found.paired.seeds == tuple(range(10, 16))
    assert found.expected == 6
    values = {seed: value for seed, value in differences_of(summaries).items() if seed < 16}
    test = scipy.stats.ttest_1samp(list(values.values()), 0.0)
    adjusted = 2 * sequential_p([test.pvalue], LOOKS.seeds, LOOKS.boundary)  # Holm: two tests
    assert found.p == pytest.approx(adjusted)
    interval = test.confidence_interval(1 - nominal_level(0.05, LOOKS.seeds, 0, LOOKS.boundary))
    assert (found.paired.low, found.paired.high) == pytest.approx(tuple(interval))
    assert verdict_table([found], summaries)["verdict"].iloc[0] == "**reproduced (look 1 of 3)**"


def differences_of(summaries):
    final = summaries.history[summaries.history["step"] == 100]
    losses = final.pivot_table(index="seed", columns="arm", values="train_eval/loss")
    return (losses["early"] - losses["none"]).to_dict()


def test_a_look_is_judged_when_it_is_whole_and_none_is_skipped():
    noisy = {"effect": -0.1, "noise": 0.3}
    (one,) = judged(made_up(seeds=range(10, 15), **noisy), LOSS)
    assert one.verdict == "incomplete"
    (one,) = judged(
        made_up(seeds=range(10, 19), **noisy), LOSS
    )  # 9 seeds: the second look is not whole
    assert (one.verdict, one.look, len(one.paired.seeds)) == ("not resolved", 1, 6)
    (one,) = judged(made_up(seeds=range(10, 20), **noisy), LOSS)
    assert (one.look, len(one.paired.seeds)) == (2, 10)
    assert "Undecided with 10 seeds (look 2 of 3)" in sentences(one)
    (one,) = judged(made_up(seeds=range(11, 30), **noisy), LOSS)  # the first seed is missing
    assert one.verdict == "incomplete"


def test_a_decision_stays_whatever_later_looks_show():
    """The first six seeds show the effect, the others the opposite."""
    first = made_up(effect=-0.3, noise=0.02, seeds=range(10, 16))
    later = made_up(effect=0.5, noise=0.02, seeds=range(16, 30))
    both = dataclasses.replace(
        first,
        runs=pd.concat([first.runs, later.runs]),
        history=pd.concat([first.history, later.history]),
    )
    (found,) = judged(both, LOSS)
    assert (found.verdict, found.look) == ("reproduced", 1)


def test_equivalence_is_judged_at_looks_too():
    (found,) = judged(made_up(effect=0.0, noise=0.004, seeds=SEEDS), SAME)
    assert (found.verdict, found.look) == ("reproduced", 1)


def test_what_is_next(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("earlydrop.claims.looks.configurations", lambda *_: [])
    file = declared(LOSS)
    assert next_look(file, [LOSS], no_runs()).seeds == tuple(range(10, 16))
    noisy = {"effect": -0.1, "noise": 0.3}
    assert next_look(file, [LOSS], made_up(seeds=range(10, 13), **noisy)).seeds == tuple(
        range(10, 16)
    )
    assert next_look(file, [LOSS], made_up(seeds=range(10, 16), **noisy)).seeds == tuple(
        range(16, 20)
    )
    assert next_look(file, [LOSS], made_up(seeds=range(10, 20), **noisy)).seeds == tuple(
        range(20, 30)
    )
    assert next_look(file, [LOSS], made_up(seeds=range(10, 30), **noisy)).seeds == ()
    decided = next_look(file, [LOSS], made_up(seeds=range(10, 16), effect=-0.3, noise=0.02))
    assert decided.seeds == ()
    assert decided.verdicts[0].verdict == "reproduced"
    with pytest.raises(ValueError, match=r"f.yaml declares no looks"):
        next_look(dataclasses.replace(file, looks=None), [LOSS], no_runs())


def test_the_command_names_the_seeds_and_arms_of_the_next_look(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim = dataclasses.replace(LOSS, id="F1")
    where = study(first=SEEDS, config={"data.name": "glyphs", "trainer.steps": 40})
    file = dataclasses.replace(declaration(claim, studies=[where]), looks=LOOKS)
    monkeypatch.setattr(findings, "load_declarations", lambda _: [file])
    monkeypatch.setattr("sys.argv", ["earlydrop-findings", "runs", "--next", "F1"])
    findings.main()
    first, *commands = capsys.readouterr().out.strip().splitlines()
    assert first == "toy: run the seeds 10 to 15, then ask again:"
    words = [shlex.split(command) for command in commands]
    assert [("schedule.name=none" in each, each[:2], each[-2]) for each in words] == [
        (False, ["earlydrop", "-m"], "seed=range(10,16)"),
        (True, ["earlydrop", "-m"], "seed=range(10,16)"),
    ]
    for each in words:
        assert {"data.name=glyphs", "trainer.steps=40", "study=toy"} <= set(each), each
    monkeypatch.setattr("sys.argv", ["earlydrop-findings", "elsewhere", "--next", "F1"])
    findings.main()
    _, *commands = capsys.readouterr().out.strip().splitlines()
    assert all(command.endswith(" out=elsewhere") for command in commands)
    made_up(seeds=[10]).write(tmp_path / "summaries")
    monkeypatch.setattr("sys.argv", ["earlydrop-findings", "summaries", "--next", "F1"])
    findings.main()
    *commands, last = capsys.readouterr().out.strip().splitlines()
    assert not any("out=" in command for command in commands)
    assert last == "  earlydrop-findings runs/toy --out summaries --add"


@pytest.mark.parametrize(
    ("looks", "message"),
    [
        (
            [2],
            r"looks is \[2\]: expected two or more rising numbers of seeds, from 2 on, such as",
        ),
        ([2, 2], r"looks is \[2, 2\]: expected two or more rising"),
        ([1, 2], r"looks is \[1, 2\]: expected two or more rising"),
        (["2", 3], r"looks is \['2', 3\]: expected two or more rising"),
        (
            [2, 3],
            r"the last look has 3 seeds and the round first of study toy has 4: expected the same",
        ),
        (
            {"seeds": [2, 4], "boundary": "haybittle"},
            r"the boundary 'haybittle': expected one of obrien-fleming",
        ),
    ],
)
def test_looks_that_cannot_be_are_refused(tmp_path, looks, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, looks=looks, studies={"toy": {"first": [1, 2, 3, 4]}})


def test_looks_are_read(tmp_path):
    (found,) = write(tmp_path, looks=[2, 4], studies={"toy": {"first": [1, 2, 3, 4]}})
    assert found.looks == ((2, 4), "obrien-fleming")
    (found,) = write(
        tmp_path,
        looks={"seeds": [2, 4], "boundary": "pocock"},
        studies={"toy": {"first": [1, 2, 3, 4]}},
    )
    assert found.looks == ((2, 4), "pocock")


def test_looks_are_of_the_first_round_of_the_main_study():
    """Another round, or the first round of a further study, is judged at once."""
    rounds = {"first": tuple(SEEDS), "more": tuple(range(40, 60))}
    main = dataclasses.replace(study(first=SEEDS), rounds=rounds)
    further = dataclasses.replace(study(first=SEEDS), name="further")
    both = dataclasses.replace(declaration(LOSS, studies=[main, further]), looks=LOOKS)
    summaries = made_up(effect=-0.3, noise=0.05, seeds=[*SEEDS, *range(40, 60)])
    runs = summaries.of("toy")
    looks = {
        (name, round_name): judge(both, name, round_name, runs)[0].looks
        for name, round_name in (("toy", "first"), ("toy", "more"), ("further", "first"))
    }
    assert [count is not None and count > 0 for count in looks.values()] == [True, False, False]


def test_a_claim_without_a_value_asks_for_no_further_seeds():
    """One run's loss never falls through the window, whatever runs next."""
    claim = dataclasses.replace(LOSS, metric="test/accuracy", window=LossWindow(high=3.0, low=1.0))
    summaries = made_up(effect=-0.3, noise=0.05, seeds=range(10, 16))
    (verdict,) = judged(summaries, claim)
    assert verdict.value_missing
    look = next_look(declared(claim), [claim], summaries)
    assert look.seeds == ()
    assert "not through the window" in sentences(look.verdicts[0])


def test_a_run_of_a_later_look_without_a_value_ends_the_looks_too(monkeypatch):
    monkeypatch.setattr("earlydrop.claims.looks.configurations", lambda *_: [])
    claim = dataclasses.replace(LOSS, metric="test/accuracy", window=LossWindow(high=8.0, low=3.0))
    summaries = made_up(seeds=range(10, 20))
    history = summaries.history
    history["test/accuracy"] += np.random.default_rng(0).standard_normal(len(history))
    assert next_look(declared(claim), [claim], summaries).seeds == tuple(range(20, 30))
    history.loc[history["seed"] == 18, "train_eval/loss"] = 9.0
    summaries = Summaries(summaries.runs, history)
    (verdict,) = judged(summaries, claim)
    assert (verdict.verdict, verdict.look, verdict.value_missing) == ("not resolved", 1, True)
    look = next_look(declared(claim), [claim], summaries)
    assert look.seeds == ()
    assert "not through the window" in sentences(look.verdicts[0])
