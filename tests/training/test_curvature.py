"""The curvature that a run measures: it changes nothing, and is that of the library's functions."""

import pytest
import torch

from earlydrop.training.fields import ConfigError
from earlydrop.training.run import run
from tests.training.states import assert_same, final_state
from tests.training.test_probes import probes


def test_curvature_changes_no_weights_and_no_other_measure(config):
    plain = run(config(probe__compare=True))
    curved = run(config(probe__compare=True, probe__curvature=True))
    assert_same(final_state(plain["folder"])["model"], final_state(curved["folder"])["model"])
    assert_same(
        final_state(plain["folder"])["optimizer"], final_state(curved["folder"])["optimizer"]
    )
    names = {
        f"{state}/{name}"
        for state in ("probe", "probe_on", "probe_off")
        for name in ("critical_sharpness", "preconditioned_sharpness")
    }
    for without, both in zip(probes(plain), probes(curved), strict=True):
        assert without == {name: value for name, value in both.items() if name not in names}
        if both["step"] == 0:
            assert not names & set(both)  # Adam has no state yet
            continue
        assert both["probe/preconditioned_sharpness"] > 0
        state = "probe_on" if both["step"] < 9 else "probe_off"  # the cutoff, itself included
        for name in ("critical_sharpness", "preconditioned_sharpness"):
            assert both[f"probe/{name}"] == both[f"{state}/{name}"]
            assert both[f"probe_on/{name}"] != both[f"probe_off/{name}"]


def test_the_measured_sharpness_is_that_of_the_dense_problem(config, monkeypatch):
    """Against power iteration with autograd's Hessian-vector product, at the last probe."""
    from earlydrop.training import curvature

    seen = {}
    ours = curvature.preconditioned_sharpness

    def spy(loss, parameters, preconditioner, iterations, tolerance):
        value = ours(loss, parameters, preconditioner, iterations=400, tolerance=1e-7)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        vector = [torch.ones_like(p) for p in parameters]
        for _ in range(400):
            norm = sum(float(v.square().sum()) for v in vector) ** 0.5
            vector = [v / norm for v in vector]
            scaled = [v / p.sqrt() for v, p in zip(vector, preconditioner, strict=True)]
            image = torch.autograd.grad(slopes, parameters, scaled, retain_graph=True)
            image = [h / p.sqrt() for h, p in zip(image, preconditioner, strict=True)]
            quotient = sum(float((h * v).sum()) for h, v in zip(image, vector, strict=True))
            vector = image
        seen[len(seen)] = (value, quotient)
        return value

    monkeypatch.setattr(curvature, "preconditioned_sharpness", spy)
    run(config(schedule__name="none", probe__curvature=True, probe__at=["100%"]))
    ((value, quotient),) = seen.values()
    assert value == pytest.approx(quotient, rel=0.02)


def test_an_optimizer_without_adams_state_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"probe.curvature is true: optim.name is sgd, expected adamw"
    ):
        run(config(probe__curvature=True, optim__name="sgd"))
