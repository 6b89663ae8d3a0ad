"""Sites: the drop rates of a model. Find them, read them, drive them, and put them back.

The path of a rate from the schedule to a mask, file by file:

1. `earlydrop.scheduler`: ``DropoutScheduler(model, early(0.1, cutoff=1_000))`` chooses sites
   (`choose`, from those that `find` knows by `families` or by `plain`) and calls ``drive``.
2. `drive`: puts the rates of all chosen sites into one ``RateBank``, and calls ``drive_module`` for
   each of their modules.
3. `driven`: puts a driver from `layers` in front of the module's class, and a ``Link`` (its banks
   and its places in them) into the module's ``__dict__``.
4. `earlydrop.scheduler`: ``step()`` calls ``schedule(step)`` (`earlydrop.schedules`), say 0.0999,
   and hands that to ``RateBank.set``.
5. `bank`: multiplies it by the share of each site, and writes the list ``rates`` and the float32
   vector that compiled graphs read.
6. `layers`: ``model(x)`` reaches the driver's forward, ``DropoutDriver`` of an ``nn.Dropout``.
   It finds the rate by its ``Link``, checks it (`guards`), and returns ``x`` if the bank is off.
7. `masks`: with the rate as a tensor (compiled), or from 16-bit numbers, the mask is drawn here. In
   eager mode with native masks, the module's own forward draws it: ``p`` reads the bank.

`audit` lists the drops of a model. `traceless` restores the state that a measurement changes.
`unwrap` looks through wrappers.
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
