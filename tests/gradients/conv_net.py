"""A small model with BatchNorm and two sorts of dropout, and its loss."""

import torch
from torch import nn


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.Dropout(0.4),
        nn.Linear(16, 3),
    )


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
