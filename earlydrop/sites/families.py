"""Which class of drop layer drops how: the kind of its rate, the attributes that hold it, and its driver.

Layers of timm, torchvision, transformers and `earlydrop.classic` are recognised by name, without importing those libraries.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from earlydrop.sites import layers
from earlydrop.sites.link import original_class


class Family(NamedTuple):
    """How one class of drop layer is recognised and driven."""

    kind: str
    attributes: tuple[str, ...]
    driver: type  # the mixin that drives it
    by_name: bool = False  # nothing is known but the class's name, which says that it drops


FAMILIES: dict[tuple[str, str], Family] = {
    ("torch", "Dropout"): Family("unit", ("p",), layers.ElementDropout),
    ("torch", "Dropout1d"): Family("unit", ("p",), layers.FeatureDropout),
    ("torch", "Dropout2d"): Family("unit", ("p",), layers.FeatureDropout),
    ("torch", "Dropout3d"): Family("unit", ("p",), layers.FeatureDropout),
    ("torch", "AlphaDropout"): Family("unit", ("p",), layers.AlphaDropout),
    ("torch", "FeatureAlphaDropout"): Family("unit", ("p",), layers.FeatureAlphaDropout),
    ("torch", "MultiheadAttention"): Family("unit", ("dropout",), layers.EagerOnly),
    ("torch", "RNNBase"): Family("unit", ("dropout",), layers.Recurrent),
    ("timm", "DropPath"): Family("path", ("drop_prob",), layers.DropPath),
    ("timm", "DropBlock2d"): Family("unit", ("drop_prob",), layers.TimmDropBlock),
    ("timm", "PatchDropout"): Family("unit", ("prob",), layers.EagerOnly),
    ("timm", "PatchDropoutWithIndices"): Family("unit", ("prob",), layers.EagerOnly),
    ("timm", "ResidualDrop"): Family("path", ("drop",), layers.EagerOnly),
    ("torchvision", "StochasticDepth"): Family("path", ("p",), layers.StochasticDepth),
    ("torchvision", "DropBlock2d"): Family("unit", ("p",), layers.TorchvisionDropBlock),
    ("torchvision", "DropBlock3d"): Family("unit", ("p",), layers.TorchvisionDropBlock),
    ("torchvision", "ShiftedWindowAttention"): Family("unit", ("attention_dropout", "dropout"), layers.EagerOnly),
}
FAMILIES |= {
    ("earlydrop", name): Family("unit", ("p",), driver)
    for name, driver in (
        ("StandardDropout", layers.StandardDropout),
        ("SharedMaskDropout", layers.SharedMaskDropout),
        ("GaussianDropout", layers.GaussianDropout),
    )
}


PLAIN_LIBRARIES = ("transformers", "transformers_modules", "timm", "torchvision")  # their plain float rates are sites
RATE_NAMES = ("p", "prob", "rate", "drop_prob", "drop_rate")  # of the rate in a class that is known by its name only
_PATH_NAMES = ("path", "layerdrop", "layer_drop", "stochastic_depth", "stochasticdepth")  # in names of what drops whole layers


def family_of(module: nn.Module) -> Family | None:
    own = original_class(module)
    for cls in own.__mro__:
        library = cls.__module__.partition(".")[0]
        family = FAMILIES.get((library, cls.__name__))
        if family is None and cls.__name__.endswith(("DropPath", "StochasticDepth")) and issubclass(cls, nn.Module):
            attribute = next((a for a in ("drop_prob", "p") if is_rate(module.__dict__.get(a))), None)
            if attribute is not None:  # transformers' copies of timm's layer compute the same; of others nothing is known
                driver = layers.DropPath if library == "transformers" else layers.EagerOnly
                family = Family("path", (attribute,), driver)
        if family is not None:
            own_forward = getattr(own, "forward", None) is not getattr(cls, "forward", None)
            if own_forward and family.driver is not layers.Recurrent:
                return family._replace(driver=layers.EagerOnly)  # a subclass with arithmetic of its own
            return family
    return _by_name(module, own)


def _by_name(module: nn.Module, own: type[nn.Module]) -> Family | None:
    """The family of a class of somebody's own: its name says that it drops, and a float in it is called like a rate."""
    names = [cls.__name__ for cls in own.__mro__[: own.__mro__.index(nn.Module)] if not cls.__module__.startswith("torch.")]
    said = [name for name in names if "Drop" in name or "dropout" in name or "drop_" in name]
    attributes = tuple(a for a in RATE_NAMES if isinstance(module.__dict__.get(a), float))
    if not said or not attributes or in_known_library(own):  # a known library's own classes are listed, or hold plain rates
        return None
    kind = "path" if any(drops_paths(name) for name in said) else "unit"
    return Family(kind, attributes, layers.EagerOnly, by_name=True)


def in_known_library(own: type[nn.Module]) -> bool:
    """Whether a class, or one that it extends, is of a library whose plain rates are sites without being named."""
    return any(cls.__module__.partition(".")[0] in PLAIN_LIBRARIES for cls in own.__mro__)


def drops_paths(name: str) -> bool:
    """Whether the name of a class or of a rate says that it drops whole layers."""
    return any(part in name.lower() for part in _PATH_NAMES)


def covered(module: nn.Module, attribute: str) -> bool:
    """Whether a plain rate is a copy of one inside that `earlydrop.sites.attention` keeps live."""
    return attribute == "attn_drop_p" and "attn_drop" in module._modules


def is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
