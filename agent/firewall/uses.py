"""Names with two meanings, and keys that hold less than they seem to. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.firewall.names import Terms
from agent.firewall.section import Section
from agent.probes import Contradiction


def misused(section: Section) -> Iterator[Contradiction]:
    """Yield every name that two zones give other terms: one answer cannot have two lifetimes."""
    known: dict[str, Terms] = {}
    for zone_name, zone in section.zones.items():
        terms = Terms(zone.names_lifetime_s, zone.names_private)
        for place, name in enumerate(zone.names):
            if known.setdefault(name, terms) != terms:
                yield Contradiction(
                    ("firewall", "zones", zone_name, "names", place),
                    f"expected names_lifetime_s and names_private as in the other zone that has {name!r}",
                )


def weak(section: Section) -> Iterator[Contradiction]:
    """Yield warnings: what is allowed and yet less than it looks."""
    for name, zone in section.zones.items():
        if zone.names_private:
            text = "an answer may lead to neighbours inside (DNS rebinding): with your own name server only"
            yield Contradiction(("firewall", "zones", name, "names_private"), text)
    for way, rules in (("inbound", section.isolated.inbound), ("outbound", section.isolated.outbound)):
        for place, rule in enumerate(rules):
            if section.zones[rule.zone].names:
                text = f"zone {rule.zone!r} has names, which an isolated node cannot ask for: its addresses alone are kept"
                yield Contradiction(("firewall", "isolated", way, place, "zone"), text)
