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


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_direction_is_the_update_that_adam_would_take_next(config, monkeypatch, clip):
    """Against a step of a copy of the optimizer, with the gradient of the measured part."""
    from earlydrop.training import curvature

    seen = []

    def spy(loss, parameters, direction, start):
        seen.append((loss, parameters, direction))
        copies = [p.detach().clone().requires_grad_() for p in parameters]
        settings = {name: optimizer.param_groups[0][name] for name in ("betas", "eps")}
        again = torch.optim.AdamW(copies, lr=1.0, weight_decay=0.0, **settings)
        for copy, parameter in zip(copies, parameters, strict=True):
            state = optimizer.state[parameter]
            again.state[copy] = {name: value.clone() for name, value in state.items()}
        gradients = torch.autograd.grad(loss(), parameters)
        for copy, gradient in zip(copies, gradients, strict=True):
            copy.grad = gradient
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip is not None:
            assert norm > clip
            torch.nn.utils.clip_grad_norm_(copies, clip)
        again.step()
        for copy, parameter, step in zip(copies, parameters, direction, strict=True):
            torch.testing.assert_close(parameter - copy, step, rtol=1e-3, atol=1e-4)
        return 1.0

    measure = curvature.probe_curvature

    def with_optimizer(model, used, objective, plan, step):
        nonlocal optimizer
        optimizer = used
        return measure(model, used, objective, plan=plan, step=step)

    optimizer = None
    monkeypatch.setattr(curvature, "critical_sharpness", spy)
    monkeypatch.setattr(curvature, "probe_curvature", with_optimizer)
    run(config(schedule__name="none", probe__curvature=True, probe__at=["100%"], optim__clip=clip))
    assert seen
