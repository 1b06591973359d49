"""Where a zone may stand in a rule: what names and MAC addresses cannot decide is refused. Pure.

A name says where something goes; an answer of a name server must never say who may come in, nor what an isolated node may
still reach. A MAC address says who sends on the node's own link; nothing that goes out has one yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.firewall.names import Terms
from agent.firewall.section import ForwardRule, Rule, Section
from agent.probes import Contradiction

Place = tuple[str | int, ...]


def misused(section: Section) -> Iterator[Contradiction]:
    """Yield every rule whose zone cannot stand there, and every name that is given two meanings."""
    for at, name, incoming, isolated in _mentions(section):
        zone = section.zones[name]
        if zone.names and incoming:
            expected = "expected addresses where others begin; zone"
            yield Contradiction(at, f"{expected} {name!r} has names, which say only where something goes")
        elif zone.names and isolated:
            expected = "expected addresses for what an isolated node may reach; zone"
            yield Contradiction(at, f"{expected} {name!r} has names, which others decide about")
        if zone.macs and not incoming:
            expected = "expected no macs where this node begins; zone"
            yield Contradiction(at, f"{expected} {name!r} has some, and they say only who sends")
    known: dict[str, Terms] = {}
    for zone_name, zone in section.zones.items():
        terms = Terms(zone.names_lifetime_s, zone.names_private)
        for place, name in enumerate(zone.names):
            if known.setdefault(name, terms) != terms:
                yield Contradiction(
                    ("firewall", "zones", zone_name, "names", place),
                    f"expected names_lifetime_s and names_private as in the other zone that has {name!r}",
                )


def warnings(section: Section) -> Iterator[str]:
    """Yield what is allowed and yet less than it looks, one line each, for `ringfence-agent check`."""
    for name, zone in section.zones.items():
        if zone.names:
            yield (
                f"firewall.zones.{name}.names: whoever answers this node's DNS queries decides where these lead; "
                f"each answer holds {zone.names_lifetime_s} s, whatever its own time to live"
            )
        if zone.names_private:
            yield f"firewall.zones.{name}.names_private: an answer may lead to neighbours inside (DNS rebinding)"
        if zone.macs:
            yield f"firewall.zones.{name}.macs: whoever is on that link can claim any MAC address"


def _mentions(section: Section) -> Iterator[tuple[Place, str, bool, bool]]:
    """Yield (key, zone, whether traffic comes from it, whether it is for an isolated node) of every rule."""
    more, isolated = section.maintenance, section.isolated
    rules: list[tuple[Place, Sequence[Rule], bool, bool]] = [
        (("inbound",), section.inbound, True, False),
        (("outbound",), section.outbound, False, False),
        (("isolated", "inbound"), isolated.inbound, True, True),
        (("isolated", "outbound"), isolated.outbound, False, True),
        (("maintenance", "inbound"), more.inbound, True, False),
        (("maintenance", "outbound"), more.outbound, False, False),
    ]
    for at, listed, incoming, cut in rules:
        for number, rule in enumerate(listed):
            yield ("firewall", *at, number, "zone"), rule.zone, incoming, cut
    passages: list[tuple[Place, Sequence[ForwardRule]]] = [
        (("forward",), section.forward),
        (("maintenance", "forward"), more.forward),
    ]
    for at, passing in passages:
        for number, each in enumerate(passing):
            yield ("firewall", *at, number, "from"), each.source, True, False
            yield ("firewall", *at, number, "to"), each.destination, False, False
