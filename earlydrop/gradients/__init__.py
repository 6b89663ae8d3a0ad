"""Gradient measures of a model.

`probe` takes the gradients, `sums` adds them up, `measures` computes the measures from the sums.
"""

from earlydrop.gradients.measures import MEASURES as MEASURES
from earlydrop.gradients.measures import GradientReport as GradientReport
from earlydrop.gradients.measures import Moments as Moments
from earlydrop.gradients.probe import probe as probe
from earlydrop.gradients.sums import GradientSums as GradientSums
from earlydrop.gradients.sums import MeanGradient as MeanGradient
