"""The last row of its guest: Secure Boot off. Nothing is put back, for the firmware's own variables are gone with it.

It comes in a guest whose controller has isolated few: more than three in ten minutes it leaves to a person (docs/response.md).
"""

from __future__ import annotations

from tests.lab import image
from tests.lab.checks import Site, check
from tests.lab.otherboots import named_cut, restarted


@check("Secure Boot off is found and named, and the node is isolated")
def _secure_boot_off(site: Site) -> str:
    site.guest.stop()
    site.guest.secure_boot(False)
    since = restarted(site, image.menu())
    return named_cut(site, "boot.secure-boot", since)
