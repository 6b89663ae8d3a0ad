"""Sums in float64 on a device that has none, held to those of the host.

The device is a pretend one (tests/no_float64.py).
"""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import earlydrop
from earlydrop.classic import GaussianDropout, SharedMaskDropout, StandardDropout
from earlydrop.exact import HOST, brought_home, exact, exact_norm, has_float64, home
from earlydrop.sites.audit.extremes import extremes
from earlydrop.training import plan as plans
from earlydrop.training.fields import ConfigError
from earlydrop.training.plan import make_plan
from earlydrop.training.run import run
from tests.gradients.test_sums import brute_force
from tests.no_float64 import DEVICE, OnDevice, Pretended


@pytest.fixture(params=["with float64", "without float64"])
def device(request):
    if request.param == "with float64":
        yield HOST
        return
    with Pretended():
        yield DEVICE


def test_where_sums_are_carried():
    assert home(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert home(HOST) == HOST
    assert home(DEVICE) == HOST
    values = torch.randn(5)
    assert brought_home(values) is values
    assert exact(values).dtype == exact_norm(values).dtype == torch.float64


def test_a_device_of_an_unknown_kind_is_tried(monkeypatch):
    real = torch.ones
    device = torch.device("xpu", 7)
    monkeypatch.setattr(torch, "ones", lambda *size, device, **rest: real(*size, **rest))
    assert has_float64(device)
    has_float64.cache_clear()

    def refuse(*size, **rest):
        raise RuntimeError("Required aspect fp64 is not supported on the device")

    monkeypatch.setattr(torch, "ones", refuse)
    assert home(device) == HOST
    has_float64.cache_clear()


def test_the_pretend_device_refuses_what_a_real_one_does():
    with Pretended():
        values = torch.ones(3, device="mps")
        assert (type(values), values.device, values.cpu().device) == (OnDevice, DEVICE, HOST)
        with pytest.raises(TypeError, match="float64"):
            values.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, dtype=torch.float64, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            values + torch.ones(3)
        with pytest.raises(RuntimeError, match="range"):
            torch.empty(3, dtype=torch.int64, device=DEVICE).random_(-(2**63), None)
        assert values.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("spread", [0.01, 1.0])
@pytest.mark.parametrize("length", [50, 200_001])
def test_gradient_measures_against_float64_brute_force(device, spread, length):
    direction = torch.randn(length)
    gradients = [direction + spread * torch.randn(length) for _ in range(8)]
    dataset = direction + 0.05 * torch.randn(length)
    mean = earlydrop.MeanGradient()
    mean.add([dataset.to(device)], images=64)
    halves = [
        earlydrop.GradientSums(mean.value()),
        earlydrop.GradientSums(dataset.to(device, copy=True)),
    ]
    for i, gradient in enumerate(gradients):
        halves[i % 2].add([gradient[:7].view(7, 1).to(device), gradient[7:].to(device)], images=32)
    halves[0].merge(halves[1])
    report = halves[0].report()
    for name, expected in brute_force(gradients, dataset, [32] * 8).items():
        found = getattr(report, name)
        assert (found is None) == math.isnan(expected), name
        if found is not None:
            assert found == pytest.approx(expected.item(), rel=1e-5, abs=5e-8), (
                name
            )  # a bias is a difference from 1


def test_distance_against_float64_brute_force(device):
    before, after = nn.Linear(300, 200), nn.Linear(300, 200)
    after.load_state_dict(
        {
            name: value + 1e-4 * torch.randn_like(value)
            for name, value in before.state_dict().items()
        }
    )
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    expected = math.sqrt(
        sum(float((a.double() - b.double()).detach().square().sum()) for a, b in pairs)
    )
    wide = {name: value.double() for name, value in before.state_dict().items()}
    assert earlydrop.model_distance(after.to(device), before.to(device)) == pytest.approx(
        expected, rel=1e-5
    )
    assert earlydrop.model_distance(after, wide) == pytest.approx(expected, rel=1e-5)


def test_the_librarys_probe(device):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    data = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(6)]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    torch.manual_seed(2)
    gradients = []
    for batch in data[:3]:
        taken = torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
        gradients.append(torch.cat([each.flatten() for each in taken]))
    model.eval()
    whole = [torch.autograd.grad(loss_fn(model, batch), list(model.parameters())) for batch in data]
    dataset = torch.stack(
        [torch.cat([each.flatten().double() for each in taken]) for taken in whole]
    ).mean(0)
    model.train().to(device)
    there = [(x.to(device), y.to(device)) for x, y in data]

    class Seeded:
        def __iter__(self):
            torch.manual_seed(2)
            return iter(there[:3])

    report = earlydrop.probe(model, loss_fn, Seeded(), dataset=there)
    for name, expected in brute_force(gradients, dataset, [16] * 3).items():
        if not math.isnan(expected):
            assert getattr(report, name) == pytest.approx(expected.item(), rel=1e-5), name


def layers():
    yield nn.Dropout(0.3), (6, 8)
    yield nn.Dropout2d(0.3), (6, 8, 4, 4)
    yield nn.AlphaDropout(0.3), (6, 8)
    yield nn.FeatureAlphaDropout(0.3), (6, 8, 4)
    yield StandardDropout(0.3), (6, 8)
    yield SharedMaskDropout(0.3), (6, 8)
    yield GaussianDropout(0.3), (6, 8)
    yield nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True), (6, 5, 8)


@pytest.mark.parametrize("masks", ["native", "fast"])
@pytest.mark.parametrize(("layer", "shape"), list(layers()), ids=lambda value: type(value).__name__)
def test_masks_and_classic_layers(layer, shape, masks):
    with Pretended():
        model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), copy.deepcopy(layer)).to(DEVICE)
        inputs = torch.randn(shape, device=DEVICE)
        scheduler = earlydrop.DropoutScheduler(model, earlydrop.early(0.3, 10), masks=masks)
        model(inputs).sum().backward()
        assert not earlydrop.audit(model, inputs).undriven
        scheduler.set_step(10)
        torch.testing.assert_close(model(inputs).cpu(), model(inputs).cpu())
        earlydrop.max_norm_(model, 0.5)
        assert len(extremes("normal_", {}, torch.randn(4, device=DEVICE))) == 4
        assert [
            each.tolist()[0]
            for each in extremes("randint", {"high": 5}, torch.tensor([0, 1], device=DEVICE))
        ] == [0, 4, 0, 4]


def test_sixteen_bit_masks_of_every_device_have_their_rate():
    with Pretended():
        model = nn.Sequential(nn.Dropout(0.25)).to(DEVICE)
        earlydrop.DropoutScheduler(model, earlydrop.early(0.25, 10), masks="fast")
        out = model(torch.ones(100_000, device=DEVICE)).cpu()
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert out.max() == pytest.approx(4 / 3)


def test_a_run(config, tmp_path):
    """The trainer, its evaluations, its probes with dropout on and off, Monte Carlo dropout.

    The run stops nowhere and is evaluated again.
    """
    more = {
        "model__name": "vit_micro",
        "model__hidden": None,
        "model__width": 16,
        "model__depth": 1,
        "model__heads": 2,
        "trainer__masks": "native",
        "schedule__name": "constant",
        "trainer__mc_passes": 2,
        "probe__compare": True,
        "data__train_images": 128,
        "trainer__epochs": 1,
        "optim__clip": 1.0,
        "optim__l1": 1e-5,
        "augment__mixup": 0.8,
    }
    expected = run(config(**more))
    with Pretended() as pretended:
        elsewhere = {"device": "mps", "out": str(tmp_path / "elsewhere")}
        found = run(config(**more, **elsewhere))
        assert pretended.calls > 1_000
        assert run(config(**more, **elsewhere, mode="eval"))["test/loss"] == found["test/loss"]
    environment = json.loads((Path(found["folder"]) / "provenance.json").read_text())["environment"]
    assert environment["device"].startswith("mps ")
    assert {name for name in expected if name.startswith(("probe_on/", "test_mc/"))}
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_a_run_stays_on_its_kind_of_device(config):
    settings = config(trainer__epochs=1)
    run(settings)
    folder = make_plan(settings).folder
    (folder / "status.json").unlink()
    for file in sorted((folder / "checkpoints").glob("step-*"))[2:]:
        file.unlink()
    with (
        Pretended(),
        pytest.raises(
            ConfigError, match=r"another environment \(device cpu .* there, mps .* here\)"
        ),
    ):
        run(config(trainer__epochs=1, device="mps"))


def test_several_workers_need_a_device_that_reduces(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        Pretended(),
        pytest.raises(
            ConfigError,
            match="device=mps is mps here, on which 2 workers cannot reduce their gradients",
        ),
    ):
        run(config(device="mps", trainer__accumulate=2))


@pytest.mark.parametrize(
    ("found", "chosen"), [(DEVICE, "mps"), (None, "cpu"), (torch.device("cuda"), "cuda")]
)
def test_auto_takes_the_accelerator_that_torch_finds(monkeypatch, found, chosen):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(plans.torch, "empty", lambda *size, device: None)
    assert plans.choose_device("auto").type == chosen
