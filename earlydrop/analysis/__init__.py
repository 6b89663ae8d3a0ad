"""Analysis: read runs, compare them, draw figures, write the report. Needs ``earlydrop[train]``."""

from earlydrop.analysis.runs import load_history as load_history
from earlydrop.analysis.runs import load_runs as load_runs
