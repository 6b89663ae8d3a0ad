"""The networks that are our own: the MLP of the classic examples and a small residual ConvNet. timm builds all others."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from timm.layers import DropPath
from torch import Tensor, nn

from earlydrop.dropouts import GaussianDropout, SharedMaskDropout, StandardDropout

_BLOCK = 3  # side of DropBlock's squares

MLP_DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "inverted": nn.Dropout,
    "standard": StandardDropout,
    "shared": SharedMaskDropout,
    "gaussian": GaussianDropout,
}
CONVNET_DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "element": nn.Dropout,
    "channel": nn.Dropout2d,
    "block": lambda rate: torchvision.ops.DropBlock2d(rate, _BLOCK),
}


class MLP(nn.Sequential):
    """A plain network: flatten, then linear, ReLU and dropout for each hidden width, then the classifier.

    Args:
        inputs: Number of pixels times channels.
        hidden: Hidden widths.
        classes: Number of classes.
        rates: Dropout rate after each hidden layer.
        dropout: Makes a dropout layer from its rate.
    """

    def __init__(
        self, inputs: int, hidden: list[int], classes: int, rates: list[float], dropout: Callable[[float], nn.Module]
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width, rate in zip(hidden, rates, strict=True):
            layers += [nn.Linear(inputs, width), nn.ReLU(), dropout(rate)]  # also at 0: the layers keep their names
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


class _Residual(nn.Module):
    """Convolution, normalisation, ReLU, dropout, convolution, normalisation, stochastic depth; beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, drop: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.drop = drop
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.drop_path = DropPath(0.0)
        plain = inputs == width and stride == 1
        self.shortcut: nn.Module = nn.Identity() if plain else nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.act(self.norm1(self.conv1(x))))
        y = self.drop_path(self.norm2(self.conv2(y)))
        out: Tensor = self.act(self.shortcut(x) + y)
        return out


class ConvNet(nn.Module):
    """A small residual network for 28-pixel images: a stem of stride 2, three blocks of doubling width, mean over positions, classifier.

    Args:
        channels: Channels of the images.
        width: Channels of the first block.
        classes: Number of classes.
        rate: Rate of the dropout inside each block.
        dropout: Makes a dropout layer from its rate.
    """

    def __init__(self, channels: int, width: int, classes: int, rate: float, dropout: Callable[[float], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.blocks = nn.Sequential(*(_Residual(*size, dropout(rate)) for size in sizes))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class WithInputDropout(nn.Module):
    """A network behind a dropout of its inputs at a fixed rate, which no schedule drives (Srivastava et al. 2014, appendix A.4).

    Args:
        rate: Rate of the input dropout.
        network: The network.
    """

    def __init__(self, rate: float, network: nn.Module) -> None:
        super().__init__()
        self.input_dropout = nn.Dropout(rate)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.input_dropout(x))
        return logits

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay.

        Returns:
            The network's own, by their names here.
        """
        names: Callable[[], set[str]] = getattr(self.network, "no_weight_decay", set)
        return {f"network.{name}" for name in names()}
