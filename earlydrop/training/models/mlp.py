"""The MLP of the classic examples."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from earlydrop.classic.layers import GaussianDropout, SharedMaskDropout, StandardDropout
from earlydrop.training.fields import ConfigError
from earlydrop.training.models.build import Task, choose_dropout

DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "inverted": nn.Dropout,
    "standard": StandardDropout,
    "shared": SharedMaskDropout,
    "gaussian": GaussianDropout,
}


class MLP(nn.Sequential):
    """Flatten, then linear, ReLU and dropout for each hidden width, then the classifier."""

    def __init__(
        self,
        inputs: int,
        hidden: list[int],
        classes: int,
        rates: list[float],
        dropout: Callable[[float], nn.Module],
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width, rate in zip(hidden, rates, strict=True):
            # Dropout at rate 0 too: the layers keep their names.
            layers += [nn.Linear(inputs, width), nn.ReLU(), dropout(rate)]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


def mlp(
    task: Task, *, hidden: list[int] | None, profile: list[float] | None, dropout: str | None
) -> nn.Module:
    """Build an MLP, with hidden layers of 512, 256 and 128 unless ``model.hidden`` says otherwise.

    ``model.profile`` sets the proportions of its layers' rates.
    """
    widths = [512, 256, 128] if hidden is None else list(hidden)
    if not widths or min(widths) < 1:
        raise ConfigError(
            f"model.hidden is {widths}: expected the widths of one or more hidden layers, such as "
            "[512,256,128]"
        )
    proportions = [1.0] * len(widths) if profile is None else profile
    if len(proportions) != len(widths) or not all(0 < number < math.inf for number in proportions):
        raise ConfigError(
            f"model.profile is {profile}: expected {len(widths)} numbers above 0 (proportions of "
            "the rates), one for each hidden layer"
        )
    # The schedule gives the largest rate; the profile keeps its shape.
    largest = max(proportions)
    rates = [task.unit * (number / largest) for number in proportions]
    return MLP(
        inputs=task.channels * task.image_size**2,
        hidden=widths,
        classes=task.classes,
        rates=rates,
        dropout=choose_dropout(dropout, "mlp", DROPOUTS),
    )
