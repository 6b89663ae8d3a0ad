"""Gradient measures: `sums` runs over the gradients, `measures` follow from the sums, `probe` collects the gradients of a model."""

from earlydrop.gradients.measures import MEASURES as MEASURES
from earlydrop.gradients.measures import GradientReport as GradientReport
from earlydrop.gradients.measures import Moments as Moments
from earlydrop.gradients.probe import probe as probe
from earlydrop.gradients.sums import GradientSums as GradientSums
from earlydrop.gradients.sums import MeanGradient as MeanGradient
