"""A small residual ConvNet with BatchNorm."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from timm.layers import DropPath
from torch import Tensor, nn

from earlydrop.training.models.build import Task, choose_dropout, set_path_profile

_BLOCK = 3  # side of DropBlock's squares

DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "element": nn.Dropout,
    "channel": nn.Dropout2d,
    "block": lambda rate: torchvision.ops.DropBlock2d(rate, _BLOCK),
}


class _Residual(nn.Module):
    """A residual block: two convolutions with dropout between them, then stochastic depth."""

    def __init__(self, inputs: int, width: int, stride: int, drop: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.drop = drop
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=1, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.drop_path = DropPath(0.0)  # `set_path_profile` sets its rate
        plain = inputs == width and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if plain else nn.Conv2d(inputs, width, 1, stride, bias=False)
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.act(self.norm1(self.conv1(x))))
        y = self.drop_path(self.norm2(self.conv2(y)))
        out: Tensor = self.act(self.shortcut(x) + y)
        return out


class ConvNet(nn.Module):
    """A stem of stride 2, three blocks of doubling width, mean over positions, classifier."""

    def __init__(
        self,
        channels: int,
        width: int,
        classes: int,
        rate: float,
        dropout: Callable[[float], nn.Module],
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.blocks = nn.Sequential(*(_Residual(*size, dropout(rate)) for size in sizes))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def convnet_micro(task: Task, *, width: int | None, dropout: str | None) -> nn.Module:
    """Build a `ConvNet`. Its first block has ``model.width`` channels, by default 32."""
    make = choose_dropout(dropout, "convnet_micro", DROPOUTS)
    model = ConvNet(
        channels=task.channels,
        width=width or 32,
        classes=task.classes,
        rate=task.unit,
        dropout=make,
    )
    set_path_profile(list(model.blocks), task.path)
    return model
