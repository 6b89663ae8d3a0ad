"""earlydrop: schedule any dropout in any PyTorch model, and measure what it does to the gradients.

>>> import earlydrop
>>> earlydrop.early(rate=0.1, cutoff=1_000)
early(rate=0.1, cutoff=1000, shape='linear')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from earlydrop.schedules import MAKERS

__version__ = "0.1.0"

_HOME = {  # public name: the module that holds it; every schedule of `MAKERS` is public too
    "Schedule": "schedules",
    "DropoutScheduler": "scheduler",
    "Audit": "sites",
    "Drop": "sites",
    "Site": "sites",
    "audit": "sites",
    "find_sites": "sites",
    "restore": "sites",
    "GradientReport": "gradients",
    "GradientSums": "gradients",
    "MeanGradient": "gradients",
    "probe": "gradients",
    "model_distance": "distance",
    "StandardDropout": "classic",
    "SharedMaskDropout": "classic",
    "GaussianDropout": "classic",
    "max_norm_": "classic",
    "mc_dropout": "classic",
    "MonteCarloPrediction": "classic",
} | dict.fromkeys(MAKERS, "schedules")
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from earlydrop import experiment as experiment
    from earlydrop.classic import GaussianDropout as GaussianDropout
    from earlydrop.classic import MonteCarloPrediction as MonteCarloPrediction
    from earlydrop.classic import SharedMaskDropout as SharedMaskDropout
    from earlydrop.classic import StandardDropout as StandardDropout
    from earlydrop.classic import max_norm_ as max_norm_
    from earlydrop.classic import mc_dropout as mc_dropout
    from earlydrop.distance import model_distance as model_distance
    from earlydrop.gradients import GradientReport as GradientReport
    from earlydrop.gradients import GradientSums as GradientSums
    from earlydrop.gradients import MeanGradient as MeanGradient
    from earlydrop.gradients import probe as probe
    from earlydrop.scheduler import DropoutScheduler as DropoutScheduler
    from earlydrop.schedules import Schedule as Schedule
    from earlydrop.schedules import annealed as annealed
    from earlydrop.schedules import constant as constant
    from earlydrop.schedules import curriculum as curriculum
    from earlydrop.schedules import early as early
    from earlydrop.schedules import late as late
    from earlydrop.schedules import none as none
    from earlydrop.schedules import piecewise as piecewise
    from earlydrop.schedules import ramp as ramp
    from earlydrop.sites import Audit as Audit
    from earlydrop.sites import Drop as Drop
    from earlydrop.sites import Site as Site
    from earlydrop.sites import audit as audit
    from earlydrop.sites import find_sites as find_sites
    from earlydrop.sites import restore as restore


def __getattr__(name: str) -> Any:
    if name == "experiment":  # this one needs earlydrop[train]
        return importlib.import_module("earlydrop.experiment")
    if name not in _HOME:
        names = ", ".join(__dir__())
        raise AttributeError(f"module 'earlydrop' has no attribute {name!r}; it has {names}")
    home = importlib.import_module(f"earlydrop.{_HOME[name]}")
    value = MAKERS[name] if name in MAKERS else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "experiment"])
