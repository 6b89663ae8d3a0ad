"""A scheduler that follows torch's, timm's or a wrapped optimizer; two on one model."""

import pytest
import timm
import timm.optim
import torch
from torch import nn

import earlydrop
from earlydrop import DropoutScheduler, early, late


def small():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))


def rates_while(model, optimizer, steps, accumulate=1):
    """The rate of each forward of a loop that steps its optimizer only."""
    seen = []
    for i in range(steps * accumulate):
        seen.append(model[1].p)
        model(torch.randn(4, 8)).sum().backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return seen


EXPECTED = [early(0.5, 4)(step) for step in range(6)]


@pytest.mark.parametrize(
    "name", ["adamw", "sgd", "lamb", "muon", "lookahead_adamw", "lookahead_lamb"]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_attached_it_follows_the_optimizers_of_torch_and_timm(name, accumulate):
    model = small()
    optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=1e-3)
    DropoutScheduler(model, early(0.5, 4)).attach(optimizer)
    assert rates_while(model, optimizer, 6, accumulate) == [
        rate for rate in EXPECTED for _ in range(accumulate)
    ]


@pytest.mark.parametrize("name", ["adamw", "lookahead_adamw"])
def test_attached_it_is_saved_and_resumed_with_the_optimizer(name, tmp_path):
    def make():
        model = small()
        optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=1e-3)
        scheduler = DropoutScheduler(model, early(0.5, 4))
        scheduler.attach(optimizer)
        return model, optimizer, scheduler

    model, optimizer, scheduler = make()
    rates_while(model, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    kept = scheduler.state_dict()

    model, optimizer, scheduler = make()
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert scheduler.last_step == 2
    assert rates_while(model, optimizer, 4) == EXPECTED[2:]

    model, optimizer, scheduler = make()
    scheduler.load_state_dict(kept)
    assert rates_while(model, optimizer, 4) == EXPECTED[2:]

    wider = nn.Sequential(*small(), nn.Dropout(0.1))
    optimizer = timm.optim.create_optimizer_v2(wider, opt=name, lr=1e-3)
    DropoutScheduler(wider, early(0.5, 4)).attach(optimizer)
    with pytest.raises(ValueError, match="saved for another model or choice of sites: site '3'"):
        optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    plain = torch.optim.AdamW(wider.parameters()).state_dict()
    optimizer.load_state_dict(plain)  # of a loop without a scheduler: the weights' state alone


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_is_not_counted(fused):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scheduler = DropoutScheduler(model, early(0.5, 4))
    scheduler.attach(optimizer)
    counted = []
    for overflow in (False, True, True, False):
        before = model[0].weight.detach().clone()
        loss = model(torch.randn(4, 8)).sum() * (float("inf") if overflow else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, model[0].weight) == overflow
        counted.append(scheduler.last_step)
    assert counted == [1, 1, 1, 2]


def test_attached_it_counts_each_step_once_and_lets_go():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = DropoutScheduler(model, early(0.5, 4))
    scheduler.attach(optimizer)
    with pytest.raises(
        RuntimeError, match=r"attached to an optimizer, .* Remove the call of step\(\)"
    ):
        scheduler.step()
    with pytest.raises(RuntimeError, match="attached to an optimizer already"):
        scheduler.attach(torch.optim.SGD(model.parameters(), 0.1))
    scheduler.set_step(3)  # a loop that resumes by its own count
    optimizer.step()
    assert scheduler.last_step == 4
    scheduler.restore()
    optimizer.step()
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    with pytest.raises(RuntimeError, match="restored"):
        scheduler.attach(optimizer)

    scheduler = DropoutScheduler(model, early(0.5, 4))
    scheduler.attach(optimizer)
    earlydrop.restore(
        model
    )  # not by the scheduler: it drives nothing any more, and the loop goes on
    optimizer.step()
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    optimizer.load_state_dict(optimizer.state_dict())


def test_what_cannot_be_followed_is_refused():
    model = small()
    scheduler = DropoutScheduler(model, early(0.5, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"LambdaLR.*expected a torch.optim.Optimizer"):
        scheduler.attach(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    with pytest.raises(ValueError, match=r"optimizer is None: expected"):
        scheduler.attach(None)

    class Several(torch.optim.Optimizer):
        def __init__(self, *held):
            self.first, self.second = held

        def step(self, closure=None):
            self.first.step()
            self.second.step()

    with pytest.raises(ValueError, match=r"optimizer is Several: its step\(\) calls no hooks"):
        scheduler.attach(Several(optimizer, torch.optim.SGD(model.parameters(), 0.1)))
    scheduler.step()  # refused, and as it was


@pytest.mark.slow
def test_attached_it_follows_a_compiled_optimizer():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    DropoutScheduler(model, early(0.5, 4)).attach(optimizer)
    step = torch.compile(optimizer.step)
    seen = []
    for _ in range(6):
        seen.append(model[1].p)
        model(torch.randn(4, 8)).sum().backward()
        step()
        optimizer.zero_grad()
    assert seen == EXPECTED


def test_two_schedulers_give_a_model_two_peaks():
    model = timm.create_model("test_vit", num_classes=2, proj_drop_rate=0.1, drop_path_rate=0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    unit = DropoutScheduler(model, early(0.1, 2))
    path = DropoutScheduler(model, late(0.5, 1), kind="path")
    for scheduler in (unit, path):
        scheduler.attach(optimizer)
    seen = []
    for _ in range(3):
        largest = {
            kind: max(site.rate for site in earlydrop.find_sites(model) if site.kind == kind)
            for kind in ("unit", "path")
        }
        seen.append(largest)
        optimizer.step()
    assert seen == [
        {"unit": 0.1, "path": 0.0},
        {"unit": 0.0, "path": 0.5},
        {"unit": 0.0, "path": 0.5},
    ]
    state = optimizer.state_dict()
    unit.set_step(0)
    path.set_step(0)
    optimizer.load_state_dict(state)
    assert (unit.last_step, path.last_step) == (3, 3)
    unit.restore()
    assert path.rates
    path.restore()
    assert not any(site.driven for site in earlydrop.find_sites(model))
