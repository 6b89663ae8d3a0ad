import types
import warnings

import pytest
import timm
import torch
from torch import nn

import earlydrop
from earlydrop.sites import choose_sites


def vit(**rates):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=4, **rates)


def test_default_drives_what_was_built_above_zero():
    names = [site.name for site in choose_sites(vit(proj_drop_rate=0.1))]
    assert names == [
        f"blocks.{i}.{part}"
        for i in range(3)
        for part in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    ]
    assert [s.name for s in choose_sites(vit(drop_path_rate=0.2), "path")] == [
        f"blocks.{i}.drop_path{j}" for i in (1, 2) for j in (1, 2)
    ]


def test_names_globs_and_predicates():
    model = vit(proj_drop_rate=0.1)
    assert [s.name for s in choose_sites(model, sites="blocks.0.mlp.*")] == [
        "blocks.0.mlp.drop1",
        "blocks.0.mlp.drop2",
    ]
    assert len(choose_sites(model, sites=["blocks.1.mlp.drop1", "blocks.2.*.proj_drop"])) == 2
    assert len(choose_sites(model, sites=lambda name, module: "drop2" in name)) == 3


def test_sites_of_find_sites_are_a_choice():
    model = vit(proj_drop_rate=0.1)
    sites = earlydrop.find_sites(model)
    chosen = [site for site in sites if site.kind == "unit" and site.base_rate > 0]
    for choice in (chosen[1:3], tuple(chosen[1:3]), (site for site in chosen[1:3])):
        scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.2), sites=choice)
        assert [site.name for site in scheduler.sites] == [site.name for site in chosen[1:3]]
        scheduler.restore()
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.2), sites=chosen[0])
    assert [site.name for site in scheduler.sites] == [chosen[0].name]


@pytest.mark.parametrize("make", [lambda m: 5, lambda m: [m[0]], lambda m: m[0], lambda m: [None]])
def test_what_is_no_choice_of_sites_is_named(make):
    model = nn.Sequential(nn.Dropout(0.1))
    with pytest.raises(ValueError, match=r"sites is .*: expected names, globs, sites of"):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.2), sites=make(model))


def test_a_depth_profile_keeps_its_shape():
    model = vit(drop_path_rate=0.2)
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.5), kind="path")
    assert model.blocks[2].drop_path1.drop_prob == 0.5
    assert model.blocks[1].drop_path1.drop_prob == 0.5 * (0.10000000149011612 / 0.20000000298023224)
    scheduler.restore()
    assert model.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)


def test_all_chosen_at_zero_count_as_equal():
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2), nn.Dropout(0.0))
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.3), sites="*")
    assert scheduler.rates == {"0": 0.3, "2": 0.3}


class FunctionalDropout(nn.Module):
    """As in transformers: a plain float attribute."""

    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.1

    def forward(self, x):
        return nn.functional.dropout(x, self.attention_dropout, self.training)


def test_plain_attributes_only_when_named():
    model = nn.Sequential(FunctionalDropout(), nn.Dropout(0.1))
    assert [s.name for s in choose_sites(model)] == ["1"]
    assert [s.name for s in choose_sites(model, sites="*")] == ["1"]
    scheduler = earlydrop.DropoutScheduler(
        model, earlydrop.constant(0.5), sites=["*.attention_dropout", "1"]
    )
    assert scheduler.rates == {"0.attention_dropout": 0.5, "1": 0.5}
    assert (model(torch.ones(4_000)) == 0).float().mean() > 0.6
    scheduler.restore()
    assert model[0].attention_dropout == 0.1
    assert repr(choose_sites(model)[0]) == "Site(name='1', attribute='p', kind='unit')"


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (nn.Linear(2, 2), {}, "no unit site.*proj_drop_rate"),
        (
            nn.Linear(2, 2),
            {"kind": "all"},
            r"Linear has no site to drive .*proj_drop_rate.*drop_path_rate",
        ),
        (
            nn.Sequential(nn.Dropout(0.0)),
            {"kind": "all"},
            "all 1 sites of Sequential were built with rate 0",
        ),
        (
            nn.Sequential(nn.Dropout(0.1)),
            {"kind": "all", "sites": "x"},
            "'x' matches none of the 1 sites: 0",
        ),
        (
            nn.Sequential(nn.Dropout(0.1)),
            {"kind": "all", "sites": lambda n, m: False},
            "none of the 1 sites: 0",
        ),
        (FunctionalDropout(), {}, "attention_dropout=0.1: sites='attention_dropout' drives it"),
        (nn.Sequential(nn.Dropout(0.1)), {"kind": "path"}, "no path site.*kind='unit'"),
        (nn.Sequential(nn.Dropout(0.0)), {}, r"built with rate 0.*sites='\*'"),
        (nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.1)), {"sites": "*"}, "mixes rates of 0"),
        (nn.Sequential(nn.Dropout(0.1)), {"kind": "units"}, "kind is 'units'"),
        (nn.Sequential(nn.Dropout(0.1)), {"sites": "blocks.*"}, "'blocks.*' matches none.*: 0"),
        (nn.Sequential(nn.Dropout(0.1)), {"sites": []}, "sites is empty"),
        (nn.Sequential(nn.Dropout(0.1)), {"sites": lambda n, m: False}, "predicate chose none"),
        (nn.Sequential(nn.Dropout(0.1)), {"masks": "quick"}, "masks is 'quick'"),
    ],
)
def test_bad_choices_name_the_remedy_and_leave_the_model_alone(model, options, says):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=says):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), **options)
    assert [type(module) for module in model.modules()] == before


def test_a_plain_rate_of_another_library_is_named_in_one_warning():
    model = nn.Sequential(
        FunctionalDropout(), FunctionalDropout(), nn.Dropout(0.1), nn.Dropout(0.0)
    )
    with pytest.warns(
        UserWarning,
        match=r"0.attention_dropout=0.1, 1.attention_dropout=0.1.*\['\*.attention_dropout'\]",
    ) as warned:
        scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.5))
    assert len(warned) == 1
    scheduler.restore()
    names = [s.name for s in earlydrop.find_sites(model) if s.base_rate > 0] + [
        "*.attention_dropout"
    ]  # what it says
    assert len(earlydrop.DropoutScheduler(model, earlydrop.constant(0.5), sites=names).rates) == 3
    earlydrop.restore(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        earlydrop.DropoutScheduler(
            nn.Sequential(OnlyKept(), nn.Dropout(0.1)), earlydrop.constant(0.5)
        )
        earlydrop.DropoutScheduler(
            nn.Sequential(FunctionalDropout(), nn.Dropout(0.1)), earlydrop.constant(0.5), sites="1"
        )


class OnlyKept(nn.Module):
    """A rate that is passed on when the module is built, and never read again."""

    def __init__(self):
        super().__init__()
        self.drop_rate = 0.4
        self.drop = nn.Dropout(self.drop_rate)

    def forward(self, x):
        return self.drop(x)


def test_the_second_use_of_a_shared_module_is_explained():
    drop = nn.Dropout(0.1)
    model = nn.ModuleDict({"first": drop, "second": drop})
    with pytest.raises(
        ValueError, match=r"'second' is the same module as 'first'.*so name it 'first'"
    ):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), sites="second")


def bart(**rates):
    from transformers import BartConfig, BartModel

    options = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    torch.manual_seed(0)
    return BartModel(
        BartConfig(vocab_size=60, encoder_ffn_dim=16, decoder_ffn_dim=16, **options, **rates)
    )


def test_plain_rates_of_the_three_libraries_are_sites():
    model = bart(dropout=0.1, attention_dropout=0.2, encoder_layerdrop=0.3)
    kinds = {site.name: site.kind for site in choose_sites(model, "all")}
    assert kinds["encoder.layerdrop"] == "path"
    assert (
        kinds["decoder.layers.0.encoder_attn.dropout"]
        == kinds["encoder.layers.0.dropout"]
        == "unit"
    )
    assert "decoder.layerdrop" not in kinds
    assert "encoder.layers.0.activation_dropout" not in kinds
    scheduler = earlydrop.DropoutScheduler(model, earlydrop.constant(0.4))
    assert model.encoder.layers[0].self_attn.dropout == 0.4
    assert model.encoder.dropout == 0.2
    earlydrop.DropoutScheduler(
        model, earlydrop.constant(0.5), kind="path"
    )  # of the same module as a unit rate
    assert (model.encoder.layerdrop, model.encoder.dropout) == (0.5, 0.2)
    scheduler.restore()
    assert (model.encoder.layerdrop, model.encoder.dropout) == (0.5, 0.1)


def test_plain_rates_of_zero_do_not_stop_a_glob():
    model = bart(dropout=0.1, attention_dropout=0.0)
    chosen = {site.name for site in choose_sites(model, sites="*")}
    assert "encoder.layers.0.dropout" in chosen
    assert "encoder.layers.0.self_attn.dropout" not in chosen
    with pytest.raises(ValueError, match="mixes rates of 0"):
        choose_sites(model, sites=["encoder.dropout", "*.self_attn.dropout"])
    zeros = choose_sites(bart(dropout=0.0, attention_dropout=0.0), sites="*")
    assert "encoder.layers.0.self_attn.dropout" in {site.name for site in zeros}


@pytest.mark.parametrize(("count", "listed"), [(6, "4, 5$"), (7, r"4, 5, \.\.\.$")])
def test_at_most_six_sites_are_listed(count, listed):
    model = nn.Sequential(*(nn.Dropout(0.1) for _ in range(count)))
    with pytest.raises(ValueError, match=listed):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), sites="another")


class ReadsConfig(nn.Module):
    """Drops at the rate of a config."""

    def __init__(self, rate):
        super().__init__()
        self.config = types.SimpleNamespace(dropout=rate)

    def forward(self, x):
        return nn.functional.dropout(x, self.config.dropout, self.training)


def test_the_name_that_an_error_advises_is_a_choice():
    model = nn.Sequential(ReadsConfig(0.2))
    with pytest.raises(ValueError, match=r"sites='0.config.dropout' drives it"):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1))
    (site,) = earlydrop.DropoutScheduler(
        model, earlydrop.constant(0.1), sites="0.config.dropout"
    ).sites
    assert site.name == "0.config.dropout"


def test_a_rate_of_zero_in_a_config_stays_if_it_is_named():
    model = nn.Sequential(ReadsConfig(0.0), nn.Dropout(0.1))
    with pytest.raises(ValueError, match=r"mixes rates of 0 \('0.config.dropout'\)"):
        earlydrop.DropoutScheduler(model, earlydrop.constant(0.1), sites=["0.config.dropout", "1"])
