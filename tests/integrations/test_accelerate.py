import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from earlydrop import DropoutScheduler, early
from tests.integrations.watched import DATA, EXPECTED, Net


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(accumulate):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    net = Net()
    loader = DataLoader(DATA * 2, batch_size=8 // accumulate)
    model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1), loader)
    scheduler = DropoutScheduler(model, early(0.5, 4))
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                scheduler.step()
    assert net.seen == [rate for rate in EXPECTED for _ in range(accumulate)]
