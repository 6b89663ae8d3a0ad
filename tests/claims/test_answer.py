import dataclasses
import re

import pytest

from earlydrop.claims.answer import (
    answer_rows,
    answer_table,
    counting_verdicts,
    differing_line,
    differing_verdicts,
    measured,
    points,
)
from earlydrop.claims.declare import Comparison
from earlydrop.claims.judge import judge_all
from earlydrop.claims.read import claims_folder, load_declarations
from earlydrop.claims.summaries import merged
from tests.claims.made_up import LOSS, declaration, made_up, study

F5 = dataclasses.replace(LOSS, id="F5-loss")
ACCURACY = dataclasses.replace(LOSS, id="F5-accuracy", metric="test/accuracy", direction="higher")
SEEDS = range(10, 16)


def judged(*claims, summaries, studies=None):
    declared = declaration(*claims, studies=studies or [study(first=SEEDS)])
    return [declared], judge_all([declared], summaries)


def test_a_cell_says_the_verdict_and_the_difference_in_plain_units():
    table = answer_table(*judged(F5, ACCURACY, summaries=made_up(effect=-0.2)))
    assert list(table.index) == [
        "Early dropout lowers the training loss",
        "Early dropout raises the test accuracy",
    ]
    assert re.fullmatch(r"✓ confirmed: −0\.\d+ loss", table.iloc[0, -1])
    assert re.fullmatch(r"✓ confirmed: \+\d+\.\d\d points", table.iloc[1, -1])
    other = dataclasses.replace(ACCURACY, direction="lower")
    assert (
        answer_table(*judged(F5, other, summaries=made_up(effect=-0.2)))
        .iloc[1, -1]
        .startswith("✗ opposite: +")
    )
    assert (
        answer_table(*judged(F5, summaries=made_up(effect=0.0)))
        .iloc[0, -1]
        .startswith("= no effect: ")
    )
    assert (
        answer_table(*judged(F5, summaries=made_up(effect=0.0, noise=0.2)))
        .iloc[0, -1]
        .startswith("? undecided: ")
    )


def test_a_relative_difference_is_a_percentage_of_what_it_is_held_against():
    summaries = made_up(effect=-0.2, noise=0.0001)
    claim = dataclasses.replace(F5, smallest=0.01, relative=True)
    mean = sum(1.0 + 0.3 * seed for seed in SEEDS) / len(SEEDS)
    _, verdicts = judged(claim, summaries=summaries)
    assert measured(verdicts[0]) == f"−{100 * 0.2 / mean:.1f}% loss"
    shares = dataclasses.replace(F5, test=Comparison("share above", 3.0))
    assert measured(judged(shares, summaries=summaries)[1][0]).endswith("% of runs")
    times = dataclasses.replace(F5, test=Comparison("steps to", 3.0))
    assert measured(judged(times, summaries=summaries)[1][0]) == "+0 steps"


def test_each_dataset_has_a_column():
    one = declaration(F5, studies=[study("a", {"data.name": "glyphs"}, first=SEEDS)])
    two = dataclasses.replace(
        declaration(F5, studies=[study("b", {"data.name": "text"}, first=SEEDS)]), name="t"
    )
    verdicts = []
    for each, name, effect in ((one, "a", -0.2), (two, "b", 0.2)):
        data = {"data.name": dict(each.studies[name].config)["data.name"]}
        verdicts += judge_all([each], made_up(name, effect=effect, config=data))
    table = answer_table([one, two], verdicts)
    assert list(table.columns) == ["glyphs", "text"]
    assert [cell.split()[1].rstrip(":") for cell in table.iloc[0]] == ["confirmed", "opposite"]


def test_every_claim_of_the_paper_has_a_row_and_every_row_a_claim():
    ids = {claim.id for each in load_declarations(claims_folder()) for claim in each.claims}
    named = {claim for row in answer_rows() for claim in row.claims}
    assert named <= ids
    beside = (
        "D5",
        "D6",
        "W",
        "F5-best",
        "F11",
        "F13",
    )  # others' claims, and those that a row of their finding stands for
    assert {claim for claim in ids - named if not claim.startswith(beside)} == set()


@pytest.mark.parametrize(
    "text",
    [
        "- {words: a}",
        "- {words: a, claims: []}",
        "- {words: a, claims: [F1]}\n- {words: b, claims: [F1]}",
    ],
)
def test_rows_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "answer.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"answer.yaml: (a row is|claim F1 is in two rows)"):
        answer_rows(tmp_path / "answer.yaml")


def test_the_largest_round_that_has_run_decides():
    studies = [study(first=range(10, 14), more=range(20, 30), later=range(40, 60))]
    declared, verdicts = judged(
        F5, summaries=made_up(effect=-0.2, seeds=[*range(10, 14), *range(20, 30)]), studies=studies
    )
    assert counting_verdicts(declared[0], verdicts)["F5-loss"].round == "more"


def test_a_repetition_that_disagrees_is_named_beside_the_round_that_counts():
    noisy = made_up(effect=0.0, noise=0.2, seeds=range(20, 30))
    for effect, word in ((-0.2, "confirmed"), (0.2, "opposite")):
        both = merged(noisy, made_up(effect=effect, seeds=range(10, 14)))
        declared, verdicts = judged(
            F5, summaries=both, studies=[study(first=range(20, 30), repeat=range(10, 14))]
        )
        assert [verdict.round for verdict in differing_verdicts(declared[0], verdicts)] == [
            "repeat"
        ]
        claim = '"Early dropout lowers the training loss" on d'
        expected = (
            f"Another round differs (smaller undecided rounds left out): {claim} "
            f'({word} in "repeat").'
        )
        assert differing_line(declared, verdicts) == expected
    both = merged(
        made_up(effect=-0.2, seeds=range(20, 30)), made_up(effect=-0.2, seeds=range(10, 14))
    )
    declared, verdicts = judged(
        F5, summaries=both, studies=[study(first=range(20, 30), repeat=range(10, 14))]
    )
    assert differing_verdicts(declared[0], verdicts) == []


def test_a_repetition_that_leaves_open_what_was_decided_is_named_unless_it_is_smaller():
    both = merged(
        made_up(effect=-0.2, seeds=range(20, 24)),
        made_up(effect=0.0, noise=0.2, seeds=range(10, 14)),
    )
    declared, verdicts = judged(
        F5, summaries=both, studies=[study(first=range(20, 24), repeat=range(10, 14))]
    )
    assert '(undecided in "repeat")' in differing_line(declared, verdicts)
    more = merged(both, made_up(effect=-0.2, seeds=range(24, 25)))
    declared, verdicts = judged(
        F5, summaries=more, studies=[study(first=range(20, 25), repeat=range(10, 14))]
    )
    assert differing_line(declared, verdicts) == ""


def test_of_several_claims_it_says_how_many_have_each_verdict():
    names = ("cutoff-5", "cutoff-50", "rate-half", "shape")
    claims = [dataclasses.replace(LOSS, id=f"F9-{name}", direction="lower") for name in names]
    claims[0] = dataclasses.replace(claims[0], direction="higher")
    table = answer_table(*judged(*claims, summaries=made_up(effect=-0.2)))
    assert table.iloc[0, -1] == "✗ 1 opposite, ✓ 3 confirmed"


def test_points_lie_towards_their_claim():
    found = points(*judged(F5, ACCURACY, summaries=made_up(effect=-0.2)))
    assert [point.claim for point in found] == [
        row.words for row in answer_rows() if row.claims[0] in ("F5-loss", "F5-accuracy")
    ]
    for point in found:
        assert point.verdict == "confirmed"
        assert point.paired.low < 0.2 < point.paired.high
        assert point.smallest == 0.05


def test_a_file_that_another_replaces_leaves_the_answer_when_the_other_has_run():
    old = dataclasses.replace(declaration(F5, studies=[study("a", first=SEEDS)]), name="old")
    new = dataclasses.replace(
        declaration(F5, studies=[study("b", first=SEEDS)]), name="new", replaces="old"
    )
    verdicts = judge_all([old], made_up("a", effect=-0.2))
    assert answer_table([old, new], verdicts).iloc[0, 0].startswith("\N{CHECK MARK} confirmed")
    verdicts += judge_all([new], made_up("b", effect=0.2))
    assert answer_table([old, new], verdicts).iloc[0, 0].startswith("\N{BALLOT X} opposite")


def test_the_papers_claims_and_ours_have_tables_of_their_own():
    verdicts = judge_all([declaration(F5)], made_up(effect=-0.2))
    assert list(answer_table([declaration(F5)], verdicts, ours=False).index) == [
        "Early dropout lowers the training loss"
    ]
    assert answer_table([declaration(F5)], verdicts, ours=True).empty
