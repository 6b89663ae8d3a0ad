"""The known classes of drop layers: kind of rate, attributes of the rate, and driver of each.

Layers of timm, torchvision, transformers and `earlydrop.classic` are recognised by name, so those
libraries are not imported.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from earlydrop.sites import layers
from earlydrop.sites.driven import original_class


class Family(NamedTuple):
    """A class of drop layers.

    Attributes:
        kind: ``"unit"`` or ``"path"``.
        attributes: The attributes that hold rates.
        driver: The mixin that drives such a layer.
        by_name: Whether only the name of the class says that it drops.
    """

    kind: str
    attributes: tuple[str, ...]
    driver: type
    by_name: bool = False


_TORCHVISION_ATTENTION = ("attention_dropout", "dropout")
FAMILIES: dict[tuple[str, str], Family] = {
    ("torch", "Dropout"): Family("unit", ("p",), layers.DropoutDriver),
    ("torch", "Dropout1d"): Family("unit", ("p",), layers.FeatureDropoutDriver),
    ("torch", "Dropout2d"): Family("unit", ("p",), layers.FeatureDropoutDriver),
    ("torch", "Dropout3d"): Family("unit", ("p",), layers.FeatureDropoutDriver),
    ("torch", "AlphaDropout"): Family("unit", ("p",), layers.AlphaDropoutDriver),
    ("torch", "FeatureAlphaDropout"): Family("unit", ("p",), layers.FeatureAlphaDropoutDriver),
    ("torch", "MultiheadAttention"): Family("unit", ("dropout",), layers.EagerOnlyDriver),
    ("torch", "RNNBase"): Family("unit", ("dropout",), layers.RecurrentDriver),
    ("timm", "DropPath"): Family("path", ("drop_prob",), layers.DropPathDriver),
    ("timm", "DropBlock2d"): Family("unit", ("drop_prob",), layers.TimmDropBlockDriver),
    ("timm", "PatchDropout"): Family("unit", ("prob",), layers.EagerOnlyDriver),
    ("timm", "PatchDropoutWithIndices"): Family("unit", ("prob",), layers.EagerOnlyDriver),
    ("timm", "ResidualDrop"): Family("path", ("drop",), layers.EagerOnlyDriver),
    ("torchvision", "StochasticDepth"): Family("path", ("p",), layers.StochasticDepthDriver),
    ("torchvision", "DropBlock2d"): Family("unit", ("p",), layers.TorchvisionDropBlockDriver),
    ("torchvision", "DropBlock3d"): Family("unit", ("p",), layers.TorchvisionDropBlockDriver),
    ("torchvision", "ShiftedWindowAttention"): Family(
        "unit", _TORCHVISION_ATTENTION, layers.EagerOnlyDriver
    ),
    ("earlydrop", "StandardDropout"): Family("unit", ("p",), layers.StandardDropoutDriver),
    ("earlydrop", "SharedMaskDropout"): Family("unit", ("p",), layers.SharedMaskDropoutDriver),
    ("earlydrop", "GaussianDropout"): Family("unit", ("p",), layers.GaussianDropoutDriver),
}

# Libraries whose plain float rates are sites.
PLAIN_LIBRARIES = ("transformers", "transformers_modules", "timm", "torchvision")
# Names of the rate in a class that is known by its name only.
RATE_NAMES = ("p", "prob", "rate", "drop_prob", "drop_rate")
# Parts of names of classes and rates that drop whole layers.
_PATH_NAMES = ("path", "layerdrop", "layer_drop", "stochastic_depth", "stochasticdepth")


def family_of(module: nn.Module) -> Family | None:
    """The family of a module's own class, or of a class that it extends; None if it has none."""
    own = original_class(module)
    for cls in own.__mro__:
        family = FAMILIES.get((_library(cls), cls.__name__)) or _copied_path_layer(module, cls)
        if family is not None:
            own_forward = getattr(own, "forward", None) is not getattr(cls, "forward", None)
            if own_forward and family.driver is not layers.RecurrentDriver:
                # A subclass with arithmetic of its own.
                return family._replace(driver=layers.EagerOnlyDriver)
            return family
    return _by_name(module, own)


def _library(cls: type) -> str:
    """The top-level package of a class."""
    return cls.__module__.partition(".")[0]


def _copied_path_layer(module: nn.Module, cls: type) -> Family | None:
    """The family of a copy of timm's DropPath or of torchvision's StochasticDepth, by its name.

    The copies in transformers compute the same as timm's. Other copies may compute something else,
    so they get the driver for eager mode.
    """
    if not cls.__name__.endswith(("DropPath", "StochasticDepth")) or not issubclass(cls, nn.Module):
        return None
    for attribute in ("drop_prob", "p"):
        if is_rate(module.__dict__.get(attribute)):
            known = _library(cls) == "transformers"
            driver = layers.DropPathDriver if known else layers.EagerOnlyDriver
            return Family("path", (attribute,), driver)
    return None


def _by_name(module: nn.Module, own: type[nn.Module]) -> Family | None:
    """The family of an unknown class: its name says that it drops, and it holds a float rate."""
    if in_known_library(own):  # its drop layers are listed, or hold plain rates
        return None
    own_classes = own.__mro__[: own.__mro__.index(nn.Module)]
    names = [cls.__name__ for cls in own_classes if not cls.__module__.startswith("torch.")]
    dropping = [
        name for name in names if any(part in name for part in ("Drop", "dropout", "drop_"))
    ]
    attributes = tuple(a for a in RATE_NAMES if isinstance(module.__dict__.get(a), float))
    if not dropping or not attributes:
        return None
    kind = "path" if any(drops_paths(name) for name in dropping) else "unit"
    return Family(kind, attributes, layers.EagerOnlyDriver, by_name=True)


def in_known_library(own: type[nn.Module]) -> bool:
    """Whether a class, or a class that it extends, is of a library whose plain rates are sites."""
    return any(_library(cls) in PLAIN_LIBRARIES for cls in own.__mro__)


def drops_paths(name: str) -> bool:
    """Whether the name of a class or of a rate says that it drops whole layers."""
    return any(part in name.lower() for part in _PATH_NAMES)


def is_rate(value: object) -> bool:
    """Whether a value is a number in [0, 1]."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
