"""Classic dropout: layers that torch does not have, max-norm, and Monte Carlo dropout."""

from earlydrop.classic.layers import GaussianDropout as GaussianDropout
from earlydrop.classic.layers import SharedMaskDropout as SharedMaskDropout
from earlydrop.classic.layers import StandardDropout as StandardDropout
from earlydrop.classic.max_norm import max_norm_ as max_norm_
from earlydrop.classic.monte_carlo import MonteCarloPrediction as MonteCarloPrediction
from earlydrop.classic.monte_carlo import mc_dropout as mc_dropout
