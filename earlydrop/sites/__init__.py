"""Sites: where a model drops. Find them, read their rates, drive them, and put them back.

- `find`: what a site is, and all of a model's; `families`: which class drops how; `choose`: which of them a schedule drives.
- `drive`: on, silent, restored; `bank`: the rates; `link`: what a driven module carries; `layers`, `attention`: the drivers; `masks`.
- `reads`: which attributes a class's code reads; `unwrap`: the module inside wrappers; `traceless`: measuring without leaving a trace.
- `audit`: what a model really drops, seen at torch's dispatcher by `watch`, with `extremes` in the place of random numbers.
"""

from earlydrop.sites.audit import Audit as Audit
from earlydrop.sites.audit import Drop as Drop
from earlydrop.sites.audit import audit as audit
from earlydrop.sites.choose import KINDS as KINDS
from earlydrop.sites.choose import Kind as Kind
from earlydrop.sites.choose import SiteChoice as SiteChoice
from earlydrop.sites.choose import choose_sites as choose_sites
from earlydrop.sites.drive import restore as restore
from earlydrop.sites.drive import sites_off as sites_off
from earlydrop.sites.find import Site as Site
from earlydrop.sites.find import find_sites as find_sites
from earlydrop.sites.unwrap import unwrap as unwrap
