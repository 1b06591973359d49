"""What a machine does not come back without: the system's disks and the way to the controller. Not a probe.

A device section may take unknown devices away. Without these the node could neither report nor be given a better baseline,
and taking a baseline back would not bring routes back: so they are reported, whatever a section says.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.netlinks import Link
from agent.probes import Surroundings


class Vital(NamedTuple):
    """Names and numbers of what stays."""

    disks: frozenset[str]
    links: frozenset[int]
    """Empty while there is no way to the controller."""
    pci: frozenset[str]

    def keeps(self, link: Link) -> bool:
        """True if an interface must stay up: also any hardware, while nobody knows which of it leads to the controller."""
        return link.number in self.links or not (self.links or link.kind)


def vital_parts(around: Surroundings) -> Vital:
    """Return what must stay. Raises OSError where it cannot be found out: nothing is taken away then."""
    host = around.host
    links = host.links.towards(each.address for each in around.controller)
    disks = host.disks.carrying(host.system_devices())
    places = [host.interface_place(each.name) for each in host.links.all() if each.number in links]
    return Vital(frozenset(disks), links, frozenset(host.pci.above([*places, *disks.values()])))
