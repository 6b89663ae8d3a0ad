import pytest

from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model


def test_a_profile_keeps_its_shape(config):
    plan = make_plan(
        config(
            model__hidden=[16, 16],
            model__profile=[0.5, 0.3],
            schedule__name="constant",
            schedule__rate=0.5,
        )
    )
    _, scheduler = scheduled_model(plan)
    assert [site.rate for site in scheduler.sites] == pytest.approx([0.5, 0.3])
    with pytest.raises(ConfigError, match=r"model\.profile is \[0.5\]: expected 2 numbers above 0"):
        scheduled_model(make_plan(config(model__hidden=[16, 16], model__profile=[0.5])))
    with pytest.raises(ConfigError, match=r"model\.profile is \[\]: expected 2 numbers above 0"):
        scheduled_model(make_plan(config(model__hidden=[16, 16], model__profile=[])))


@pytest.mark.parametrize("hidden", [[], [-5], [0]])
def test_hidden_layers_that_are_none_are_refused(config, hidden):
    with pytest.raises(ConfigError, match=r"model\.hidden is .*: expected the widths"):
        scheduled_model(make_plan(config(model__hidden=hidden)))
