import dataclasses
import re

from earlydrop.claims.answer import answer_table, decisive, dissent, dissent_line, points
from earlydrop.claims.judge import judge_all
from earlydrop.claims.summaries import merged
from tests.claims.made_up import LOSS, declaration, made_up, study

F5 = dataclasses.replace(LOSS, id="F5-loss")
ACCURACY = dataclasses.replace(LOSS, id="F5-accuracy", metric="test/accuracy", direction="higher")
SEEDS = range(10, 16)


def judged(*claims, summaries, studies=None):
    declared = declaration(*claims, studies=studies or [study(first=SEEDS)])
    return [declared], judge_all([declared], summaries)


def test_parts_that_agree_are_one_word_and_others_are_named():
    table = answer_table(*judged(F5, ACCURACY, summaries=made_up(effect=-0.2)))
    assert table.loc["F5", "claimed"] == "early dropout helps"
    assert table.loc["F5", table.columns[-1]] == "reproduced"
    other = dataclasses.replace(ACCURACY, direction="lower")
    table = answer_table(*judged(F5, other, summaries=made_up(effect=-0.2)))
    assert table.loc["F5", table.columns[-1]] == "loss reproduced, accuracy opposite"


def test_each_sort_of_data_has_a_column():
    one = declaration(F5, studies=[study("a", {"data.name": "glyphs"}, first=SEEDS)])
    two = dataclasses.replace(declaration(F5, studies=[study("b", {"data.name": "text"}, first=SEEDS)]), name="t")
    verdicts = []
    for each, name, effect in ((one, "a", -0.2), (two, "b", 0.2)):
        data = {"data.name": dict(each.studies[name].config)["data.name"]}
        verdicts += judge_all([each], made_up(name, effect=effect, config=data))
    table = answer_table([one, two], verdicts)
    assert table.loc["F5"].to_dict() == {"claimed": "early dropout helps", "glyphs": "reproduced", "text": "opposite"}


def test_the_largest_round_that_has_run_decides():
    studies = [study(first=range(10, 14), more=range(20, 30), later=range(40, 60))]
    declared, verdicts = judged(F5, summaries=made_up(effect=-0.2, seeds=[*range(10, 14), *range(20, 30)]), studies=studies)
    assert decisive(declared[0], verdicts)["F5-loss"].round == "more"


def test_a_repetition_that_disagrees_is_named_beside_the_round_that_counts():
    noisy = made_up(effect=0.0, noise=0.2, seeds=range(20, 30))
    for effect, word in ((-0.2, "reproduced"), (0.2, "opposite")):
        both = merged(noisy, made_up(effect=effect, seeds=range(10, 14)))
        declared, verdicts = judged(F5, summaries=both, studies=[study(first=range(20, 30), repeat=range(10, 14))])
        assert [verdict.round for verdict in dissent(declared[0], verdicts)] == ["repeat"]
        assert dissent_line(declared, verdicts) == f"Other seeds say otherwise: F5-loss on d {word} (repeat)."
    both = merged(made_up(effect=-0.2, seeds=range(20, 30)), made_up(effect=-0.2, seeds=range(10, 14)))
    declared, verdicts = judged(F5, summaries=both, studies=[study(first=range(20, 30), repeat=range(10, 14))])
    assert dissent(declared[0], verdicts) == []


def test_a_repetition_that_leaves_open_what_was_decided_is_named_unless_it_is_smaller():
    both = merged(made_up(effect=-0.2, seeds=range(20, 24)), made_up(effect=0.0, noise=0.2, seeds=range(10, 14)))
    declared, verdicts = judged(F5, summaries=both, studies=[study(first=range(20, 24), repeat=range(10, 14))])
    assert dissent_line(declared, verdicts) == "Other seeds say otherwise: F5-loss on d open (repeat)."
    more = merged(both, made_up(effect=-0.2, seeds=range(24, 25)))
    declared, verdicts = judged(F5, summaries=more, studies=[study(first=range(20, 25), repeat=range(10, 14))])
    assert dissent_line(declared, verdicts) == ""


def test_a_price_stands_behind_the_part_that_it_belongs_to():
    open_one = dataclasses.replace(F5, id="F5-a", smallest=0.001)
    table = answer_table(*judged(F5, open_one, summaries=made_up(effect=-0.01, noise=0.02)))
    assert re.fullmatch(r"loss absent, a open \(n=\d+, [\d.e+]+ h\)", table.iloc[0, -1])


def test_an_unresolved_finding_names_its_price():
    table = answer_table(*judged(F5, summaries=made_up(effect=0.0, noise=0.2, seconds=36.0)))
    cell = table.loc["F5", table.columns[-1]]
    assert re.fullmatch(r"open \(n=\d+, [\d.]+ h\)", cell)


def test_the_price_of_several_parts_is_the_seeds_of_the_one_that_needs_most_in_the_arms_of_all():
    claims = [dataclasses.replace(F5, id=f"F5-{name}", smallest=smallest) for name, smallest in (("a", 0.05), ("b", 0.04))]
    declared, verdicts = judged(*claims, summaries=made_up(effect=0.0, noise=0.2, seconds=36.0))
    most = max(each.price.seeds for each in verdicts)
    table = answer_table(declared, verdicts)
    assert table.loc["F5", table.columns[-1]] == f"open (n={most}, {most * 72 / 3600:.2g} h)"  # both parts have the same two arms


def test_of_many_parts_it_says_how_many():
    claims = [dataclasses.replace(LOSS, id=f"F9-{i}", direction="lower" if i else "higher") for i in range(4)]
    table = answer_table(*judged(*claims, summaries=made_up(effect=-0.2)))
    assert table.loc["F9", table.columns[-1]] == "1 opposite, 3 reproduced"


def test_points_are_in_order_with_the_size_that_matters():
    (((finding, _), parts),) = points(*judged(F5, ACCURACY, summaries=made_up(effect=-0.2))).items()
    assert finding == "F5"
    assert [(name, size) for name, _, size in parts] == [("loss", 0.05), ("accuracy", 0.05)]
