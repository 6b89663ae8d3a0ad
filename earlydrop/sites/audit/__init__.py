"""Find what a model drops by running it.

- `report`: `audit` runs a model twice and lists its drops; `Audit` and `Drop` are the result.
- `watch`: note the random draws of torch's dispatcher, and follow the drawn numbers.
- `python_draws`: note the random draws of Python and NumPy.
- `extremes`: extreme values in the place of drawn numbers.
- `first_forward`: warn of drops in the first training forward that no scheduler drives.
"""

from earlydrop.sites.audit.report import Audit as Audit
from earlydrop.sites.audit.report import Drop as Drop
from earlydrop.sites.audit.report import audit as audit
from earlydrop.sites.audit.report import call as call
