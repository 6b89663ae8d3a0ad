"""Reading and comparing runs: arms, statistics, tables, plots and pages.

Needs ``earlydrop[train]``.
"""

from earlydrop.analysis.runs import load_history as load_history
from earlydrop.analysis.runs import load_runs as load_runs
