import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, constant, early, late, none


def lstm():
    return nn.LSTM(4, 4, 2, dropout=0.3)


@pytest.mark.parametrize(
    "make", [lstm, lambda: nn.GRU(4, 4, 2, dropout=0.3), lambda: nn.RNN(4, 4, 2, dropout=0.3)]
)
def test_driven_recurrent_layers_are_copied_pickled_and_saved_like_others(make):
    model = nn.Sequential(make())
    x = torch.randn(3, 2, 4)
    expected = model.eval()(x)[0]
    DropoutScheduler(model, constant(0.2))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        torch.load(file, weights_only=False),
    ):
        assert type(copied[0]) is type(make())
        assert copied[0].dropout == 0.2
        assert torch.equal(copied(x)[0], expected)


def test_the_print_of_a_driven_module_shows_the_present_rate():
    model = lstm()
    scheduler = DropoutScheduler(model, constant(0.2))
    assert repr(model) == "LSTM(4, 4, num_layers=2, dropout=0.2)"
    scheduler.restore()
    assert repr(model) == "LSTM(4, 4, num_layers=2, dropout=0.3)"


def test_weight_norm_put_on_a_driven_module_outlives_restore():
    model = lstm()
    scheduler = DropoutScheduler(model, constant(0.2))
    nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    scheduler.restore()
    assert type(model).__name__ == "ParametrizedLSTM"
    assert model.dropout == 0.3
    model(torch.randn(3, 2, 4))[0].sum().backward()
    assert model.parametrizations.weight_hh_l0.original1.grad is not None
    nn.utils.parametrize.remove_parametrizations(model, "weight_hh_l0")
    assert type(model) is nn.LSTM


def test_a_parametrized_module_is_copied_free_of_the_scheduler():
    model = lstm()
    nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    scheduler = DropoutScheduler(model, constant(0.2))
    copied = copy.deepcopy(model)
    assert copied.dropout == 0.2
    DropoutScheduler(copied, constant(0.1))
    assert (model.dropout, copied.dropout) == (0.2, 0.1)
    scheduler.restore()


def test_fsdp_put_on_a_driven_module_outlives_restore(tmp_path):
    from torch.distributed.fsdp import FSDPModule, fully_shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(nn.Linear(4, 4), lstm())
        scheduler = DropoutScheduler(model, constant(0.2))
        fully_shard(model[1])
        scheduler.restore()
        assert isinstance(model[1], FSDPModule)
        assert isinstance(model[1], nn.LSTM)
        assert model[1].dropout == 0.3
        with pytest.raises(ValueError, match="sharded parameters"):
            earlydrop.model_distance(model, model.state_dict())
        with pytest.raises(ValueError, match="probe does not support sharded parameters"):
            earlydrop.probe(model, lambda m, b: m(b)[0].sum(), [torch.randn(3, 4)] * 2)
    finally:
        torch.distributed.destroy_process_group()


def test_a_class_that_was_replaced_since_stays():
    class Other(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.3))
    scheduler = DropoutScheduler(model, constant(0.2))
    model[0].__class__ = Other
    scheduler.restore()
    assert type(model[0]) is Other
    assert model[0].p == 0.3


def swin():
    return torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1], [1, 1], [4, 4], attention_dropout=0.2, dropout=0.1
    )


def test_two_schedulers_drive_two_rates_of_one_module():
    model = swin()
    first = DropoutScheduler(model, constant(0.3), sites="*.attention_dropout")
    second = DropoutScheduler(model, early(0.4, 3), sites="*.attn.dropout")
    attention = model.features[1][0].attn
    assert (attention.attention_dropout, attention.dropout) == (0.3, 0.4)
    second.step()
    assert (attention.attention_dropout, attention.dropout) == (0.3, 0.2)
    first.restore()
    assert (attention.attention_dropout, attention.dropout) == (0.2, 0.2)
    assert second.last_rate == 0.2
    with pytest.raises(RuntimeError, match="restored"):
        first.step()
    second.restore()
    assert type(attention) is torchvision.models.swin_transformer.ShiftedWindowAttention
    with pytest.raises(
        ValueError,
        match=r"'features.1.0.attn.dropout' is driven by a DropoutScheduler already.*sites=",
    ):
        DropoutScheduler(model, constant(0.3), sites="*.attn.dropout") and DropoutScheduler(
            model, none()
        )


def test_a_scheduler_whose_sites_another_one_took_over_is_restored():
    model = nn.Sequential(nn.Dropout(0.3))
    first = DropoutScheduler(model, constant(0.2))
    earlydrop.restore(model)
    DropoutScheduler(model, constant(0.1))
    with pytest.raises(RuntimeError, match="restored"):
        first.set_step(3)


def test_scripting_a_driven_model_says_what_to_do():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    scheduler = DropoutScheduler(model, constant(0.2))
    with pytest.raises(
        RuntimeError, match=r"driven by a DropoutScheduler.*restore\(\) before torch.jit.script"
    ):
        torch.jit.script(model)
    assert (
        "p=0.2" in str(torch.jit.script(copy.deepcopy(model)).code)
        or torch.jit.script(copy.deepcopy(model)) is not None
    )
    scheduler.restore()
    torch.jit.script(model)


def test_scripted_modules_inside_are_left_alone():
    model = nn.Sequential(torch.jit.script(nn.Dropout(0.3)), nn.Dropout(0.3))
    scheduler = DropoutScheduler(model, constant(0.2))
    assert scheduler.rates == {"1": 0.2}
    scheduler.restore()


def test_driving_that_fails_leaves_nothing_driven(monkeypatch):
    from earlydrop.sites import drive as module

    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2), nn.LSTM(4, 4, 2, dropout=0.3))
    real = module.drive_module

    def failing(target, *args, **kwargs):
        if isinstance(target, nn.LSTM):
            raise OSError("no room")
        real(target, *args, **kwargs)

    monkeypatch.setattr(module, "drive_module", failing)
    with pytest.raises(OSError, match="no room"):
        DropoutScheduler(model, constant(0.3))
    assert [type(m) for m in model] == [nn.Dropout, nn.Dropout, nn.LSTM]
    assert [model[0].p, model[1].p, model[2].dropout] == [0.1, 0.2, 0.3]
    monkeypatch.undo()
    DropoutScheduler(model, constant(0.3))


class Slotted(nn.Dropout):
    """A class that no driver can be put on."""

    __slots__ = ("extra",)


def test_a_class_that_cannot_be_swapped_is_refused_as_a_whole():
    model = nn.Sequential(nn.Dropout(0.1), Slotted(0.2))
    try:
        DropoutScheduler(model, constant(0.3))
    except TypeError:
        assert [type(m) for m in model] == [nn.Dropout, Slotted]
        assert model[0].p == 0.1
    else:
        earlydrop.restore(model)
        assert [type(m) for m in model] == [nn.Dropout, Slotted]


def test_disabling_the_compiler_on_a_driven_module_outlives_restore():
    torch._dynamo.reset()
    model = nn.MultiheadAttention(8, 2, dropout=0.1)
    x = torch.randn(5, 2, 8)
    scheduler = DropoutScheduler(model, constant(0.2))
    model.forward = torch.compiler.disable(model.forward)  # what the error advises
    model(x, x, x)
    scheduler.restore()
    torch.manual_seed(1)
    after = model(x, x, x)[0]
    torch.manual_seed(1)
    assert torch.equal(after, nn.MultiheadAttention.forward(model, x, x, x)[0])
    again = DropoutScheduler(model, none())
    assert torch.equal(model(x, x, x)[0], model(x, x, x)[0])
    again.restore()
    layers = nn.ModuleList([nn.Dropout(0.1), lstm(), earlydrop.StandardDropout(0.1)])
    scheduler = DropoutScheduler(layers, constant(0.2))
    for layer in layers:
        layer.forward = torch.compiler.disable(layer.forward)
    scheduler.restore()
    for layer in layers:
        layer(torch.randn(3, 2, 4))


def test_a_config_is_seen_with_the_rates_and_never_written():
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Encoder

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        layerdrop=0.4,
    )
    encoder = Wav2Vec2Encoder(config)
    scheduler = DropoutScheduler(encoder, late(0.3, 1), kind="path")
    assert scheduler.rates == {"config.layerdrop": 0.0}
    scheduler.step()
    seen = encoder.config
    assert (seen.layerdrop, config.layerdrop) == (0.3, 0.4)
    assert isinstance(seen, Wav2Vec2Config)
    assert seen.to_dict()["layerdrop"] == 0.4
    seen.layer_norm_eps = 0.5
    assert config.layer_norm_eps == 0.5
    assert seen == config
    copied = copy.deepcopy(encoder)
    assert type(copied.config) is Wav2Vec2Config
    assert copied.config.layerdrop == 0.3  # the rate of the moment, in a config of its own
    again = DropoutScheduler(copied, constant(0.2), kind="path")
    assert (copied.config.layerdrop, config.layerdrop, encoder.config.layerdrop) == (0.2, 0.4, 0.3)
    again.restore()
    assert copied.config.layerdrop == 0.4
    assert (
        type(copy.copy(seen))
        is type(copy.deepcopy(seen))
        is type(pickle.loads(pickle.dumps(seen)))
        is Wav2Vec2Config
    )
    scheduler.restore()
    assert encoder.config is config
