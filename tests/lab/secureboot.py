"""The last row: Secure Boot off. Nothing is put back, for the firmware's own variables are gone with it."""

from __future__ import annotations

import time

from tests.lab import image
from tests.lab.checks import Site, check
from tests.lab.strangers import named_cut, restarted

_NODES, _WINDOW_S = 3, 600.0
"""So many isolations within so long the controller makes by itself (docs/response.md); the rows before may have used them up."""


@check("Secure Boot off is found and named, and the node is isolated", smoke=False)
def _secure_boot_off(site: Site) -> str:
    site.guest.stop()
    if len(site.cuts) >= _NODES:
        time.sleep(max(0.0, site.cuts[-_NODES] + _WINDOW_S - time.time()))
    site.guest.secure_boot(False)
    since = restarted(site, image.menu())
    return named_cut(site, "boot.secure-boot", since)
