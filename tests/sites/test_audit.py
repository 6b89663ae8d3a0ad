import random
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, audit, constant, late, none

X = torch.randn(2, 3, 32, 32)


class Functional(nn.Module):
    def __init__(self, function, rate=0.2):
        super().__init__()
        self.function, self.rate = function, rate

    def forward(self, x):
        return self.function(x, self.rate if self.training else 0.0)


def one(function, x=None, rate=0.2):
    """What the audit says of a module that calls one function."""
    report = audit(Functional(function, rate), torch.ones(64, 4) if x is None else x)
    return [(drop.operation, drop.rate) for drop in report.undriven]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x, p: nn.functional.dropout(x, p), [("dropout", 0.2)]),
        (lambda x, p: torch.dropout(x, p, True), [("bernoulli", 0.2)]),
        (lambda x, p: torch.ops.aten.native_dropout(x, p, True)[0], [("native_dropout", 0.2)]),
        (lambda x, p: nn.functional.alpha_dropout(x, p, True), [("alpha_dropout", 0.2)]),
        (
            lambda x, p: nn.functional.feature_alpha_dropout(x[..., None], p, True),
            [("feature_alpha_dropout", 0.2)],
        ),
        (lambda x, p: nn.functional.dropout2d(x[None, :, :, None], p), [("dropout2d", 0.2)]),
        (
            lambda x, p: nn.functional.scaled_dot_product_attention(
                x[None], x[None], x[None], dropout_p=p
            ),
            [("bernoulli", 0.2)],
        ),
        (lambda x, p: x * torch.bernoulli(torch.full_like(x, 1 - p)), [("bernoulli", None)]),
        (lambda x, p: x * torch.empty_like(x).bernoulli_(1 - p), [("bernoulli", 0.2)]),
        (lambda x, p: x * (torch.rand_like(x) >= p), [("rand_like", None)]),
        (lambda x, p: x * torch.floor(1 - p + torch.rand(len(x), 1)), [("rand", None)]),
        (lambda x, p: x * (torch.empty(64, 1).uniform_() > p), [("uniform", None)]),
        (lambda x, p: x * (torch.empty_like(x).random_(100) >= 100 * p), [("random", None)]),
        (lambda x, p: x * (torch.randint(0, 100, x.shape) >= 100 * p), [("randint", None)]),
        (lambda x, p: x[torch.randperm(64)[: int(64 * (1 - p))]], [("randperm", None)]),
        (lambda x, p: x[torch.argsort(torch.randn(64))[: int(64 * (1 - p))]], [("randn", None)]),
        (lambda x, p: x + torch.empty_like(x).normal_(), [("normal", None)]),
        (lambda x, p: x * torch.empty_like(x).exponential_(), [("exponential", None)]),
        (lambda x, p: x[torch.multinomial(torch.ones(64), 8)], [("multinomial", None)]),
        (lambda x, p: x if torch.rand([]) < p else 2 * x, [("rand", None)]),
        (lambda x, p: sum(x for draw in torch.rand(4) if draw > p), [("rand", None)]),
        (lambda x, p: x if torch.rand(1).item() < p else 2 * x, [("rand", None)]),
        (lambda x, p: x if random.random() < p else 2 * x, [("random.random", None)]),
        (lambda x, p: x if random.uniform(0, 1) < p else 2 * x, [("random.uniform", None)]),
        (
            lambda x, p: x if np.random.uniform(0, 1) < p else 2 * x,
            [("numpy.random.uniform", None)],
        ),
        (lambda x, p: x * float(np.random.rand(1).item() < p), [("numpy.random.rand", None)]),
        (lambda x, p: x[random.sample(range(64), 10)], [("random.sample", None)]),
        (lambda x, p: x * random.random(), [("random.random", None)]),
        (
            lambda x, p: x + torch.tensor([random.random(), 0.0, 0.0, 0.0]),
            [("random.random", None)],
        ),
        (lambda x, p: torch.lerp(x, 0 * x, random.random()), [("random.random", None)]),
        (lambda x, p: x if random.random() == p else 0 * x, [("random.random", None)]),
        (lambda x, p: x * torch.rand(1).item(), [("rand", None)]),
        (lambda x, p: x if random.uniform(-1, 1) < 0 else 0 * x, [("random.uniform", None)]),
        (lambda x, p: x if random.uniform(1, -1) < 0 else 0 * x, [("random.uniform", None)]),
        (lambda x, p: x if random.uniform(b=1, a=-1) < 0 else 0 * x, [("random.uniform", None)]),
        (
            lambda x, p: x if np.random.uniform(low=-1, high=1) < 0 else 0 * x,
            [("numpy.random.uniform", None)],
        ),
        (
            lambda x, p: x if np.random.uniform(-1) < 0 else 0 * x,
            [("numpy.random.uniform", None)],
        ),
        (
            lambda x, p: x * torch.empty(4, dtype=torch.bool).random_(0, 2),
            [("random", None)],
        ),
    ],
)
def test_whatever_drops_is_seen(function, found):
    assert one(function) == found


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p: nn.functional.dropout(x, p),
        lambda x, p: x * torch.empty_like(x).bernoulli_(1 - p),
        lambda x, p: x * (torch.rand_like(x) >= p),
        lambda x, p: x * (torch.rand_like(x) > p),
        lambda x, p: sum(x for draw in torch.rand(4) if draw > p),
        lambda x, p: x * torch.floor(1 - p + torch.rand(len(x), 1)),
        lambda x, p: x * torch.empty(64, 1).uniform_().gt_(p).add_(0) if p else x,
        lambda x, p: x if torch.rand([]) < p else 2 * x,
        lambda x, p: x if torch.rand(1).item() < p else 2 * x,
        lambda x, p: x if random.random() < p else 2 * x,
        lambda x, p: x if np.random.uniform(0, 1) < p else 2 * x,
        lambda x, p: nn.functional.scaled_dot_product_attention(
            x[None], x[None], x[None], dropout_p=p
        ),
        lambda x, p: nn.functional.rrelu(x, training=False),
    ],
)
def test_random_numbers_without_effect_do_not_count(function):
    assert one(function, rate=0.0) == []


class DropsSamplesInALoop(nn.Module):
    """Stochastic depth written as a loop over the samples, into a mask."""

    def __init__(self, rate):
        super().__init__()
        self.linear, self.drop, self.amount = nn.Linear(4, 2), nn.Dropout(0.1), rate

    def forward(self, x):
        x = self.drop(self.linear(x))
        mask = torch.ones(len(x))
        for i in range(len(x)):
            mask[i] = torch.rand(1) > self.amount
        return x * mask[:, None]


def test_a_mask_written_entry_by_entry_is_seen_and_refused_by_the_probe():
    report = audit(DropsSamplesInALoop(0.5), torch.ones(8, 4))
    assert {drop.operation for drop in report.undriven} == {"rand"}
    assert audit(DropsSamplesInALoop(0.0), torch.ones(8, 4)).undriven == ()
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(RuntimeError, match="rand"):
        earlydrop.probe(DropsSamplesInALoop(0.5), loss, data, dataset=data)


@pytest.mark.parametrize(
    "write",
    [
        lambda numbers: numbers.copy_(torch.randn(4, 4)),
        lambda numbers: numbers[:2].add_(torch.rand(2, 4)),
        lambda numbers: torch.rand(4, 4, out=numbers),
    ],
)
def test_the_audit_leaves_the_numbers_of_the_forward_as_they_are(write):
    seen = []

    class Writes(nn.Module):
        def forward(self, x):
            numbers = torch.zeros(4, 4)
            write(numbers)
            seen.append(numbers.clone())
            return x + numbers

    torch.manual_seed(0)
    Writes()(torch.ones(4, 4))
    torch.manual_seed(0)
    (drop,) = audit(Writes(), torch.ones(4, 4)).undriven
    assert drop.calls == 1
    assert all(torch.equal(seen[0], numbers) for numbers in seen[1:])


def test_a_model_that_is_a_drop_layer_has_a_name_in_the_table():
    assert "a scheduler would: (model)" in str(audit(nn.Dropout(0.3), torch.ones(4)))


def test_layerdrop_of_omniasr_draws_at_rate_0_and_drops_nothing():
    """``torch.rand([]) < layerdrop``: torch's numbers are followed (sites/audit/watch.py)."""
    pytest.importorskip("transformers.models.omniasr")  # not in older versions
    from transformers.models.omniasr.configuration_omniasr import OmniASRAudioConfig
    from transformers.models.omniasr.modeling_omniasr import OmniASRAudioModel

    config = OmniASRAudioConfig(
        hidden_size=16,
        conv_dim=(8,),
        conv_kernel=(4,),
        conv_stride=(4,),
        num_attention_heads=1,
        num_hidden_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=4,
        intermediate_size=16,
        hidden_dropout=0.0,
        layerdrop=0.0,
        activation_dropout=0.0,
    )
    model = OmniASRAudioModel(config)
    inputs = {"input_values": torch.randn(1, 1, 64)}
    before = torch.get_rng_state()
    model.train()(**inputs)
    assert not torch.equal(torch.get_rng_state(), before)  # it draws
    assert audit(model, inputs).drops == ()


def test_layerdrop_of_the_text_encoder_of_vits_draws_at_rate_0_and_drops_nothing():
    """``np.random.uniform(0, 1) < layerdrop``: NumPy's numbers are followed.

    See sites/audit/python_draws.py.
    """
    transformers = pytest.importorskip("transformers")
    from transformers.models.vits.modeling_vits import VitsEncoder

    config = transformers.VitsConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        ffn_dim=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
    )
    model = VitsEncoder(config)
    inputs = {"hidden_states": torch.randn(1, 3, 8), "padding_mask": torch.ones(1, 3, 1)}
    before = np.random.get_state()[2]
    model.train()(**inputs)
    assert np.random.get_state()[2] != before  # it draws
    assert audit(model, inputs).drops == ()


def test_a_drop_that_has_no_effect_today_counts_all_the_same():
    """Branches often start as zero."""
    assert one(lambda x, p: x + 0.0 * x * (torch.rand_like(x) >= p)) == [("rand_like", None)]


def test_recurrent_layers_and_attention():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(8, 8, 2, dropout=0.2),
            "attention": nn.MultiheadAttention(8, 2, dropout=0.3),
        }
    )
    model.forward = lambda x: model["attention"](*(model["lstm"](x)[0],) * 3)[0]
    report = audit(model, torch.randn(5, 3, 8))
    assert [(drop.module, drop.rate, drop.site, drop.status) for drop in report.drops] == [
        ("lstm", 0.2, "lstm", "drivable"),
        ("attention", 0.3, "attention", "drivable"),
    ]


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=2,
        num_classes=4,
        proj_drop_rate=0.1,
        attn_drop_rate=0.2,
        drop_path_rate=0.3,
    )


def test_before_a_scheduler_after_it_and_by_kind():
    model = vit()
    before = audit(model, X)
    assert not before.undriven
    assert {drop.status for drop in before.drops} == {"drivable"}
    assert {drop.status for drop in audit(model, X, kind="unit").drops} == {
        "drivable",
        "other kind",
    }
    scheduler = DropoutScheduler(model, late(0.1, 5))
    after = audit(model, X, kind="unit")
    assert not after.undriven
    assert {(drop.operation, drop.status) for drop in after.drops} == {
        ("dropout", "driven"),
        ("bernoulli", "driven"),
        ("bernoulli", "other kind"),
    }
    assert {drop.site for drop in audit(model, X).undriven} == {
        "blocks.1.drop_path1",
        "blocks.1.drop_path2",
    }
    assert scheduler.last_rate == 0.0
    scheduler.restore()
    some = DropoutScheduler(model, constant(0.1), sites="blocks.0.*")
    assert all(drop.module.startswith("blocks.1") for drop in audit(model, X, kind="unit").undriven)
    assert some.last_rate == 0.1


def test_a_layer_that_computes_what_it_draws_from_its_rate_is_listed_with_its_rate():
    """DropBlock draws the centres of its blocks with a smaller probability."""
    model = nn.Sequential(nn.Identity(), timm.layers.DropBlock2d(0.1, 3))
    (before,) = audit(model, X).drops
    DropoutScheduler(model, constant(0.05), kind="all")
    (after,) = audit(model, X).drops
    assert (before.rate, before.site, before.status) == (0.1, "1", "drivable")
    assert (after.rate, after.site, after.status) == (0.1, "1", "driven")


def test_a_model_may_import_numpy_while_it_is_audited(monkeypatch):
    random_numbers = sys.modules["numpy.random"]
    monkeypatch.delitem(sys.modules, "numpy.random")

    def imports(x, rate):
        sys.modules["numpy.random"] = random_numbers
        return nn.functional.dropout(x, rate)

    assert one(imports) == [("dropout", 0.2)]


class Plain(nn.Module):
    """Unit dropout that no scheduler drives by default, beside a drop path."""

    def __init__(self, by_hand=False):
        super().__init__()
        self.hidden_dropout, self.by_hand = 0.2, by_hand
        self.path = timm.layers.DropPath(0.3)

    def forward(self, x):
        if self.by_hand:
            x = x * x.new_empty(len(x), *(1,) * (x.dim() - 1)).bernoulli_(0.6)
        x = nn.functional.dropout(
            nn.functional.dropout(x, self.hidden_dropout, self.training), 0.4, self.training
        )
        x = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.15)
        return self.path(x)


def test_unit_dropout_is_listed_apart_when_paths_are_asked_for():
    model, x = Plain(), torch.randn(8, 5, 6)
    report = audit(model, x, kind="path")
    assert not report.undriven
    assert [(drop.rate, drop.status) for drop in report.drops] == [
        (0.2, "other kind"), (0.4, "other kind"), (0.15, "other kind"), (0.3, "drivable"),
    ]  # fmt: skip
    assert "nothing" not in str(report)
    assert [drop.rate for drop in audit(model, x, kind="unit").undriven] == [0.2, 0.4, 0.15]
    assert [drop.rate for drop in audit(Plain(by_hand=True), x, kind="path").undriven] == [
        0.4
    ]  # one number a sample: a path
    DropoutScheduler(model, none(), sites="hidden_dropout")
    assert [drop.rate for drop in audit(model, x, kind="unit").undriven] == [0.4, 0.15]


def test_it_leaves_no_trace():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Dropout(0.1)
    ).train()
    model[3].eval()
    scheduler = DropoutScheduler(model, constant(0.4))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    classes, vectors = [type(m) for m in model.modules()], scheduler.rates
    numbers = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    functions = random.random, np.random.rand
    audit(model, X)
    assert (random.random, np.random.rand) == functions
    assert (random.random(), np.random.rand(), torch.rand(1)) == numbers
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [type(m) for m in model.modules()] == classes
    assert scheduler.rates == vectors
    assert [m.training for m in model] == [True, True, True, False]
    torch.manual_seed(2)
    expected = model(X)
    audit(model, X)
    torch.manual_seed(2)
    assert torch.equal(model(X), expected)
    with pytest.raises(RuntimeError, match="conv2d"):
        audit(model, torch.randn(2, 5))
    assert scheduler.rates == vectors
    assert random.random.__name__ == "random"


def test_a_model_in_evaluation_mode_is_audited_as_in_training():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Dropout(0.0)).eval()
    assert [drop.rate for drop in audit(model, torch.ones(8, 4)).drops] == [0.3]
    assert not model.training
    with torch.inference_mode():
        assert [drop.rate for drop in audit(model, torch.ones(8, 4)).drops] == [0.3]


def test_a_driven_model_is_audited_at_its_base_rates():
    """At the rate of the moment, 0, its dropout would not be seen."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3))
    scheduler = DropoutScheduler(model, none())
    (drop,) = audit(model, torch.ones(8, 4)).drops
    assert (drop.site, drop.rate, drop.status) == ("1", 0.3, "driven")
    assert scheduler.rates == {"1": 0.0}


def test_scripted_modules_are_named_and_what_they_drop_is_undriven():
    model = nn.Sequential(
        nn.Dropout(0.1), torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)))
    )
    scheduler = DropoutScheduler(model, none())
    assert list(scheduler.rates) == ["0"]
    report = audit(model, torch.ones(8, 4))
    assert report.scripted == ("1",)
    assert [drop.rate for drop in report.undriven] == [0.3]
    assert "scripted, so not driven" in str(report)


def test_it_prints_as_a_table_with_repeated_blocks_as_one_row():
    text = str(audit(vit(), X))
    assert (
        text.splitlines()[0]
        == "VisionTransformer, kind 'all': 10 calls drop, none of them undriven"
    )
    assert "blocks.*.mlp.drop1" in text
    assert "timm/layers/mlp.py" in text
    assert (
        repr(audit(nn.Linear(2, 2), torch.ones(2)))
        == "Linear, kind 'all': 0 calls drop, none of them undriven"
    )


def test_a_row_of_repeated_blocks_has_its_lowest_and_highest_rate():
    model = vit()
    for name, module in model.named_modules():
        if name.endswith("mlp.drop1"):
            module.p = 0.2 if name.startswith("blocks.0") else 0.3
    (row,) = [line for line in str(audit(model, X)).splitlines() if "blocks.*.mlp.drop1" in line]
    assert "0.2 to 0.3" in row


def test_a_drop_of_the_other_kind_is_named_with_its_site():
    text = str(audit(vit(), X, kind="path"))
    assert "other kind: blocks.*.mlp.drop1" in text
    assert text.count("nothing") == 0


def test_inputs_and_wrappers():
    class Two(nn.Module):
        def forward(self, x, y):
            return nn.functional.dropout(x + y, 0.5, self.training)

    x = torch.ones(3)
    for inputs in ((x, x), {"x": x, "y": x}):
        assert len(audit(Two(), inputs).undriven) == 1
    compiled = torch.compile(nn.Sequential(nn.Dropout(0.5)))
    assert audit(compiled, x).drops[0].module == "0"
    with pytest.raises(ValueError, match="kind is 'units'"):
        audit(Two(), x, kind="units")
    with pytest.raises(ValueError, match="model is str"):
        audit("model", x)


def test_a_copy_of_a_driven_model_is_audited_at_the_rates_it_was_built_with():
    import copy

    model = nn.Sequential(nn.Dropout(0.3))
    DropoutScheduler(model, none())
    assert [drop.rate for drop in audit(copy.deepcopy(model), torch.ones(8)).drops] == [0.3]


def test_a_model_on_the_meta_device_costs_nothing():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16(dropout=0.1, attention_dropout=0.1)
    report = audit(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert len(report.drops) > 12
    assert not report.undriven


def test_it_imports_nothing_heavy():
    code = (
        "import sys, torch, earlydrop; earlydrop.audit(torch.nn.Dropout(0.5), torch.ones(3)); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public():
    assert earlydrop.audit is audit
    assert {drop.status for drop in audit(nn.Dropout(0.5), torch.ones(3)).drops} == {"drivable"}


class TwiceTheRate(nn.Module):
    """Drops at a rate that follows an attribute, and is not its value."""

    def __init__(self):
        super().__init__()
        self.drop, self.dropout = nn.Dropout(0.1), 0.1

    def forward(self, x):
        return nn.functional.dropout(self.drop(x), 2 * self.dropout, self.training)


def test_without_a_scheduler_nothing_is_driven():
    model = TwiceTheRate()
    assert {drop.status for drop in audit(model, torch.ones(64)).drops} == {"drivable"}
    DropoutScheduler(model, constant(0.3))
    assert {drop.status for drop in audit(model, torch.ones(64)).drops} == {"driven"}


def test_the_line_is_outside_torch_and_not_outside_torchvision():
    block = torchvision.models.vision_transformer.EncoderBlock(2, 4, 8, 0.1, 0.1)
    places = {drop.where for drop in audit(block, torch.randn(2, 3, 4)).drops}
    assert any(place.startswith("torchvision/models/vision_transformer.py:") for place in places)
