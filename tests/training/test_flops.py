"""Model FLOP utilisation: operations against a closed form, peaks by the GPU's name."""

import pytest
import torch

from earlydrop.training import flops
from earlydrop.training import trainer as trainer_module
from earlydrop.training.flops import bf16_peak, training_flops
from earlydrop.training.plan import make_plan
from earlydrop.training.prepare import scheduled_model
from earlydrop.training.trainer import Trainer


def test_the_operations_of_an_mlp_are_those_of_its_products(config):
    plan = make_plan(config(model__hidden=[16, 12]))
    model, _ = scheduled_model(plan)
    sizes = [(784, 16), (16, 12), (12, 10)]
    forward = sum(2 * inputs * outputs for inputs, outputs in sizes)
    weights = forward
    inputs = sum(2 * a * b for a, b in sizes[1:])  # the images need no gradient
    assert training_flops(model, plan) == forward + weights + inputs


def test_counting_leaves_no_trace(config):
    plan = make_plan(config(model__name="convnet_micro", model__hidden=None, model__width=8))
    model, _ = scheduled_model(plan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert training_flops(model.eval(), plan) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_go_by_the_name_of_the_gpu(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert bf16_peak(torch.device("cuda")) == peak
    assert bf16_peak(torch.device("cpu")) is None


@pytest.mark.parametrize(("precision", "counted"), [("bf16", True), ("float32", False)])
def test_a_run_in_bf16_on_a_known_gpu_has_its_utilisation(config, monkeypatch, precision, counted):
    plan = make_plan(config(trainer__precision=precision))
    trainer = Trainer(plan, *scheduled_model(plan), None, track=lambda step, metrics: None)
    paces = []
    monkeypatch.setattr(flops, "bf16_peak", lambda device: 1e9)
    monkeypatch.setattr(trainer_module, "Pace", lambda *arguments: paces.append(arguments))
    trainer.pace()
    ((_, _, batch_size, utilisation),) = paces
    assert batch_size == plan.config.trainer.batch_size
    if counted:
        assert utilisation == pytest.approx(training_flops(trainer.model, plan) / 1e9)
    else:
        assert utilisation is None
