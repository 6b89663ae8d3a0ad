"""A small model that notes its rate at each training forward, and the rates that early dropout gives it."""

import torch
from torch import nn

from earlydrop import early

DATA = [(torch.randn(4), i % 2) for i in range(32)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.seen = []

    def forward(self, x, labels=None):
        if self.training:
            self.seen.append(self.layers[1].p)
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else logits


EXPECTED = [early(0.5, 4)(step) for step in range(8)]
