"""What stands beneath and around the rules: the guard, the cut of every interface, and remains of earlier versions.

The firewall probe asks it in every look and repair. The guard and the cut of the interfaces are not part of the batch
of rules: swapping rules does not touch them.

In a repair the guard comes first (a tiny batch, under a millisecond): what follows may be a hundred milliseconds of
rules, and until they are there nothing new passes. What is left over goes last, when all that replaces it stands. None waits for
another: one that fails stops nothing. Refuses nothing. Relies on: `agent.netfilter`; one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from agent.firewall import compare, guard, link, neighbours, pins
from agent.firewall.apart import Apart
from agent.firewall.compare import ABSENT, Change
from agent.firewall.fast import FAST
from agent.firewall.holds import is_hold
from agent.firewall.match import CUT_TABLE, GUARD_TABLE, OWN_TABLES, is_ours
from agent.firewall.model import Local, model
from agent.firewall.section import Section

if TYPE_CHECKING:
    from agent.netfilter import Netfilter, Standing
    from agent.probes import Surroundings

_GUARD = ("inet", GUARD_TABLE)
_INTERFACES = f"netdev {CUT_TABLE} interfaces"
_REMAINS = " remains"
"""Of one of our own names, where ours stands under a spare one (`agent.firewall.spare`)."""


class _Look(NamedTuple):
    generation: int
    links: str
    isolated: bool
    arp: str


class Beneath:
    """Keeps guard and interface cut of one section. Remembers its last look for as long as nothing was committed."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._seen: tuple[_Look, list[Change]] | None = None
        self._wanted: set[tuple[str, str]] = set()
        self._made: tuple[object, str] | None = None
        self._unpinned = False
        self._arp: tuple[object, str] | None = None
        self._arp_made: tuple[object, str] | None = None
        self.unwritable: tuple[str, ...] = ()

    def links(self, netfilter: Netfilter, around: Surroundings, here: Local) -> str:
        """Return the batch that cuts every interface of this moment. Raises OSError."""
        meant = model(self._section, "isolated", around, here)
        ways, bridge = netfilter.ways(meant), netfilter.knows("bridge")
        key = (meant, ways.devices, ways.toward, ways.hops, tuple(sorted(ways.carriers.items())), bridge)
        if self._made is None or self._made[0] != key:
            self._made = (key, link.render_links(meant, ways, bridge=bridge) if ways.devices else "")
        return self._made[1]

    def renew(self, netfilter: Netfilter, around: Surroundings, here: Local) -> None:
        """Follow interfaces and routes: our own daily work, no repair. Raises OSError."""
        arp, known = self._arp_text(around, here), self._arp
        self._arp = (here.gateways, arp)
        if (
            known
            and arp
            and known[1]
            and known[0] != here.gateways
            and known[1] != arp
            and netfilter.knows("arp")
        ):
            netfilter.load(arp)
        before = None if self._made is None else self._made[1]
        text = self.links(netfilter, around, here)
        if around.posture == "isolated" and before is not None and text != before:
            netfilter.load(text)

    def differences(
        self, netfilter: Netfilter, around: Surroundings, here: Local, standing: Standing
    ) -> list[Change]:
        """Return what differs; `standing` is of this moment. Raises OSError, Rejected, ValueError."""
        isolated = around.posture == "isolated"
        links = self.links(netfilter, around, here) if isolated else ""
        arp = self._arp_text(around, here)
        below = {pair for pair in link.LINK_TABLES if f"table {pair[0]} " in links}
        self._wanted = {_GUARD, FAST, *OWN_TABLES, *below, *([neighbours.ARP] if arp else ())}
        # No event tells that a table is owned by nobody any more, so these are looked at every time.
        around_them = [*self._left_over(standing), *self._pinned(netfilter)]
        look = _Look(netfilter.generation(), links, isolated, arp)
        if self._seen is not None and self._seen[0] == look:
            return [*self._seen[1], *around_them]
        found = compare.changes(
            netfilter.canonical(guard.render_guard(), (_GUARD,)), netfilter.listing(GUARD_TABLE)
        )
        found += _arp(netfilter, arp)
        if links:
            wanted = tuple(sorted(below))
            there = {k: v for family, name in wanted for k, v in netfilter.listing(name, family).items()}
            found += compare.changes(netfilter.canonical(links, wanted), there)
            missing = link.devices_of(links) - netfilter.cut_devices()
            if missing and not any(each.key.startswith("netdev ") for each in found):
                found.append(Change(_INTERFACES, ", ".join(sorted(missing)), "not cut"))
        self._seen = (look, found) if netfilter.generation() == look.generation else None
        return [*found, *around_them]

    def _left_over(self, standing: Standing) -> list[Change]:
        """Return a change for each table under a name of ours that nobody wants any more and nobody holds."""
        unwanted = [f"{family} {name} table {name}" for family, name in standing.ours.keys() - self._wanted]
        for each in standing.remains:
            own = (each.family, each.name) in self._wanted
            unwanted.append(f"{each.family} {each.name}{_REMAINS if own else f' table {each.name}'}")
        return [Change(key, ABSENT, "present") for key in sorted(unwanted)]

    def _arp_text(self, around: Surroundings, here: Local) -> str:
        key = (here.gateways, around.controller, around.grants)
        if self._arp_made is None or self._arp_made[0] != key:
            self._arp_made = (key, neighbours.render_arp(self._section, around, here))
        return self._arp_made[1]

    def _pinned(self, netfilter: Netfilter) -> list[Change]:
        """Return what differs of the pinned neighbours; asked once more after a baseline that had some."""
        if self._unpinned:
            return []
        found = [Change(*each[:3]) for each in netfilter.neighbours(self._section.neighbours)]
        self._unpinned = not found and not self._section.neighbours
        return found

    def repair(self, netfilter: Netfilter, around: Surroundings, here: Local, keys: Iterable[str]) -> None:
        """Mend what differs of `keys`; before a repair of the rules. Raises OSError, when everything was tried."""
        self._seen = None
        keys = list(keys)
        places = {tuple(key.split(" ")[:2]) for key in keys if not (is_hold(key) or key.endswith(_REMAINS))}
        parts = Apart()
        with parts.each():
            if _GUARD in places:
                netfilter.load(guard.render_guard())
        with parts.each():
            links = self.links(netfilter, around, here) if around.posture == "isolated" else ""
            if links and any(pair in places for pair in link.LINK_TABLES):
                netfilter.load(links)
        with parts.each():
            arp = self._arp_text(around, here)
            if arp and neighbours.ARP in places and netfilter.knows("arp"):
                netfilter.load(arp)
        with parts.each():
            netfilter.pin(self._section.neighbours, [key for key in keys if key.startswith(pins.PREFIX)])
        parts.end()

    def clear(self, netfilter: Netfilter, keys: Iterable[str]) -> None:
        """Take out what nobody wants any more; after a repair of the rules, so that nothing is open in between. Raises OSError."""
        standing = netfilter.tables()
        if not {each.key for each in self._left_over(standing)}.isdisjoint(keys):
            unwanted = [table for place, table in standing.ours.items() if place not in self._wanted]
            netfilter.remove_tables([*unwanted, *standing.remains])


def _arp(netfilter: Netfilter, text: str) -> list[Change]:
    """Return what differs of the table that holds ARP. A kernel that cannot filter it is told of, and no more."""
    if not text:
        return []
    if not netfilter.knows("arp"):
        return [Change("arp family", "a kernel that filters ARP (CONFIG_NF_TABLES_ARP)", "none")]
    standing = netfilter.listing(neighbours.ARP[1], neighbours.ARP[0])
    return compare.changes(netfilter.canonical(text, (neighbours.ARP,)), standing)


def is_table(key: str) -> bool:
    """Tell whether a drift's key names (something in) a table of ours, and no interface that has only just appeared."""
    return is_ours(key.partition(" ")[2].partition(" ")[0]) and key != _INTERFACES


def is_beneath(key: str) -> bool:
    """Tell whether a drift's key is one of these: `repair` mends it, the rules need not be loaded for it."""
    if key.startswith(pins.PREFIX) or is_hold(key):
        return True
    family, _, rest = key.partition(" ")
    name, _, what = rest.partition(" ")
    return is_ours(name) and ((family, name) not in OWN_TABLES or f" {what}" == _REMAINS)
