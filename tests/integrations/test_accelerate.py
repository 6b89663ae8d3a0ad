import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from earlydrop import DropoutScheduler, early
from tests.integrations.watched import DATA, EXPECTED, Net


@pytest.mark.parametrize("attached", ["not", "before", "after"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(accumulate, attached):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scheduler = DropoutScheduler(net, early(0.5, 4))
    if attached == "before":
        scheduler.attach(optimizer)
    model, optimizer, loader = accelerator.prepare(
        net, optimizer, DataLoader(DATA * 2, batch_size=8 // accumulate)
    )
    if attached == "after":
        scheduler.attach(optimizer)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            if attached == "not" and accelerator.sync_gradients:
                scheduler.step()
    assert net.seen == [rate for rate in EXPECTED for _ in range(accumulate)]
    scheduler.set_step(3)
    state = optimizer.state_dict()
    scheduler.set_step(0)
    optimizer.load_state_dict(state)
    assert scheduler.last_step == (3 if attached != "not" else 0)
