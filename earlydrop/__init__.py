"""earlydrop: schedule any dropout in any PyTorch model, and measure what it does to the gradients.

>>> import earlydrop
>>> earlydrop.early(rate=0.1, cutoff=1_000)
early(rate=0.1, cutoff=1000, shape='linear')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Schedule": "schedules",
    "none": "schedules",
    "constant": "schedules",
    "early": "schedules",
    "late": "schedules",
    "piecewise": "schedules",
    "annealed": "schedules",
    "curriculum": "schedules",
    "ramp": "schedules",
    "DropoutScheduler": "scheduler",
    "Site": "sites",
    "find_sites": "sites",
    "restore": "sites",
    "GradientReport": "gradients",
    "GradientSums": "gradients",
    "MeanGradient": "gradients",
    "probe": "probing",
    "model_distance": "distance",
    "StandardDropout": "dropouts",
    "SharedMaskDropout": "dropouts",
    "GaussianDropout": "dropouts",
    "max_norm_": "max_norm",
    "mc_dropout": "montecarlo",
    "MonteCarloPrediction": "montecarlo",
}
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from earlydrop.distance import model_distance as model_distance
    from earlydrop.dropouts import GaussianDropout as GaussianDropout
    from earlydrop.dropouts import SharedMaskDropout as SharedMaskDropout
    from earlydrop.dropouts import StandardDropout as StandardDropout
    from earlydrop.gradients import GradientReport as GradientReport
    from earlydrop.gradients import GradientSums as GradientSums
    from earlydrop.gradients import MeanGradient as MeanGradient
    from earlydrop.max_norm import max_norm_ as max_norm_
    from earlydrop.montecarlo import MonteCarloPrediction as MonteCarloPrediction
    from earlydrop.montecarlo import mc_dropout as mc_dropout
    from earlydrop.probing import probe as probe
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
    from earlydrop.sites import Site as Site
    from earlydrop.sites import find_sites as find_sites
    from earlydrop.sites import restore as restore


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'earlydrop' has no attribute {name!r}; it has {', '.join(_HOME)}")
    value = getattr(importlib.import_module(f"earlydrop.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
