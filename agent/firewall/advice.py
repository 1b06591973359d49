"""What is wrong, or looks wrong, in a `[firewall]` that can be read: told before anybody signs it. Pure.

`contradictions` refuse the baseline: two rules that cannot both be meant, and keys that could not do what they promise.
`advice` is for the author's eyes: it refuses nothing, since for each there is a site that means it so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from agent.firewall.match import OWN_TABLES
from agent.firewall.neighbours import by_zone
from agent.firewall.section import (
    ForwardRule,
    InboundRule,
    OutboundRule,
    Rule,
    Section,
    checked_network,
    port_range,
)
from agent.probes import Contradiction
from contract.toml import dotted

MAX_NAMED = 8
"""Overlaps of one zone that are named; more are counted."""
_DNS, _TIME = 53, 123
At = tuple[str | int, ...]
Placed = tuple[At, Rule]


class _Claim(NamedTuple):
    """One range of ports of one rule; `terms` is empty where it is for everybody without limits."""

    first: int
    last: int
    at: At
    terms: str


def contradictions(section: Section) -> Iterator[Contradiction]:
    """Yield what cannot stand: it refuses the baseline."""
    for number, known in enumerate(section.known):
        if (known.family, known.table) in OWN_TABLES:
            yield Contradiction(
                ("firewall", "known", number, "table"), "expected a table of another program, not our own"
            )
    for rules in (_inbound(section), _outbound(section)):
        yield from _disagreeing(rules)
    yield from _misplaced_zones(section)


def advice(section: Section, *, interfaces: Collection[str] | None = None) -> Iterator[Contradiction]:
    """Yield warnings. `interfaces` are those of this machine, where it is a node."""
    yield from _overlaps(section)
    if section.zones and not by_zone(section):
        yield Contradiction(
            ("firewall", "zones"),
            "a zone or firewall.controller names no interface, so ARP and neighbour discovery are heard on every"
            " interface and not by zone",
        )
    outbound = [rule for _, rule in _outbound(section)]
    if not _lets(outbound, "udp", _DNS):
        named = [name for name, zone in section.zones.items() if zone.names]
        why = f"so the names of zone {named[0]!r} lead nowhere" if named else "so no name can be resolved"
        yield Contradiction(("firewall", "outbound"), f"no rule lets name service (udp {_DNS}) out, {why}")
    if not _lets(outbound, "udp", _TIME):
        yield Contradiction(
            ("firewall", "outbound"),
            f"no rule lets time (udp {_TIME}) out: certificates and directives expire by the node's clock",
        )
    used = {rule.zone for _, rule in (*_inbound(section), *_outbound(section), *_isolated(section))}
    for _, passing in _forward(section):
        used |= {passing.source, passing.destination}
    for name, zone in section.zones.items():
        if name not in used:
            yield Contradiction(("firewall", "zones", name), "no rule names this zone")
        if zone.names:
            yield Contradiction(
                ("firewall", "zones", name, "names"),
                "whoever answers the node's DNS queries decides where these lead: prefer addresses",
            )
    if section.offload is not None and not (_forward(section) or section.containers):
        yield Contradiction(
            ("firewall", "offload"), "nothing passes through this node, so there is nothing to offload"
        )
    yield from _whole_world(section)
    if interfaces is not None:
        yield from _absent(section, interfaces)


def _inbound(section: Section) -> list[Placed]:
    return _placed(("firewall", "inbound"), section.inbound) + _placed(
        ("firewall", "maintenance", "inbound"), section.maintenance.inbound
    )


def _outbound(section: Section) -> list[Placed]:
    return _placed(("firewall", "outbound"), section.outbound) + _placed(
        ("firewall", "maintenance", "outbound"), section.maintenance.outbound
    )


def _isolated(section: Section) -> list[Placed]:
    return _placed(("firewall", "isolated", "inbound"), section.isolated.inbound) + _placed(
        ("firewall", "isolated", "outbound"), section.isolated.outbound
    )


def _placed(at: At, rules: Sequence[Rule]) -> list[Placed]:
    return [((*at, number), rule) for number, rule in enumerate(rules)]


def _forward(section: Section) -> list[tuple[At, ForwardRule]]:
    found: list[tuple[At, ForwardRule]] = []
    for at, rules in (
        (("firewall", "forward"), section.forward),
        (("firewall", "maintenance", "forward"), section.maintenance.forward),
    ):
        found += [((*at, number), rule) for number, rule in enumerate(rules)]
    return found


def _disagreeing(rules: Iterable[Placed]) -> Iterator[Contradiction]:
    """Yield each rule that gives a port other terms than a rule before it.

    Two owners of one port are no contradiction: each of them may.
    """
    claims: dict[tuple[str, str], list[_Claim]] = {}
    everything: dict[str, tuple[At, str]] = {}
    for at, rule in rules:
        terms = _terms(rule)
        if rule.protocol == "any":
            everything.setdefault(rule.zone, (at, terms))
        ports = [port_range(port) for port in rule.ports] or ([(0, 0)] if rule.protocol == "icmp" else [])
        claims.setdefault((rule.zone, rule.protocol), []).extend(
            _Claim(first, last, at, terms) for first, last in ports
        )
    for (zone, protocol), claimed in claims.items():
        yield from _overlapping_claims(zone, protocol, claimed)
        for each in claimed:
            if zone in everything and not everything[zone][1] and each.terms:
                where = dotted(everything[zone][0])
                yield Contradiction(
                    each.at, f"expected no {each.terms}: {where} allows zone {zone!r} everything"
                )


def _overlapping_claims(zone: str, protocol: str, claimed: list[_Claim]) -> Iterator[Contradiction]:
    furthest: dict[str, _Claim] = {}
    for claim in sorted(claimed):
        for terms, before in furthest.items():
            owners = terms.startswith(_OWNER) and claim.terms.startswith(_OWNER)
            if terms != claim.terms and not owners and before.last >= claim.first:
                first, second = sorted((before, claim), key=lambda each: (len(each.at), each.at[-1]))
                port = "" if protocol == "icmp" else f" port {claim.first}"
                said = second.terms or "it without limits, for everybody"
                other = first.terms or "it without limits, for everybody"
                yield Contradiction(
                    second.at,
                    f"expected one meaning of {protocol}{port} of zone {zone!r}: "
                    f"here {said}, in {dotted(first.at)} {other}",
                )
        held = furthest.get(claim.terms)
        if held is None or held.last < claim.last:
            furthest[claim.terms] = claim


_OWNER = "owner "


def _terms(rule: Rule) -> str:
    if isinstance(rule, InboundRule) and (rule.rate or rule.connections):
        parts = [f"rate {rule.rate}" if rule.rate else "", f"burst {rule.burst}" if rule.burst else ""]
        parts += [f"{rule.connections} connections" if rule.connections else "", f"by {rule.client}"]
        return "limit " + ", ".join(part for part in parts if part)
    if isinstance(rule, OutboundRule) and (rule.user or rule.unit):
        return _OWNER + str(rule.user or rule.unit)
    return ""


def _misplaced_zones(section: Section) -> Iterator[Contradiction]:
    """Yield rules whose zone says something that cannot be asked of these packets."""
    incoming = [(at, rule.zone, "zone") for at, rule in _inbound(section)]
    incoming += [(at, rule.source, "from") for at, rule in _forward(section)]
    outgoing = [(at, rule.zone, "zone") for at, rule in _outbound(section)]
    outgoing += [(at, rule.destination, "to") for at, rule in _forward(section)]
    for at, zone, key in incoming:
        if section.zones[zone].names:
            yield Contradiction(
                (*at, key), f"expected a zone without names: {zone!r} may only be where traffic goes to"
            )
    for at, zone, key in outgoing:
        if section.zones[zone].macs:
            yield Contradiction(
                (*at, key), f"expected a zone without macs: {zone!r} may only be where traffic comes from"
            )
    for at, rule in _isolated(section):
        if section.zones[rule.zone].names or section.zones[rule.zone].macs:
            yield Contradiction(
                (*at, "zone"),
                f"expected a zone of addresses and interfaces: in isolation the names and macs of {rule.zone!r} say nothing",
            )


def _lets(rules: Iterable[Rule], protocol: str, port: int) -> bool:
    for rule in rules:
        if rule.protocol == "any":
            return True
        if rule.protocol == protocol:
            for first, last in map(port_range, rule.ports):
                if first <= port <= last:
                    return True
    return False


def _overlaps(section: Section) -> Iterator[Contradiction]:
    for name, zone in section.zones.items():
        found = 0
        last: dict[int, tuple[int, str]] = {}
        placed = sorted(
            (each.version, int(each.network_address), each.prefixlen, number)
            for number, each in enumerate(map(checked_network, zone.addresses))
        )
        for version, first, prefix, number in placed:
            bits = 32 if version == 4 else 128
            ends = first + (1 << (bits - prefix)) - 1
            covering = last.get(version)
            if covering is not None and first <= covering[0]:
                found += 1
                if found <= MAX_NAMED:
                    said = zone.addresses[number]
                    why = "is listed twice" if said == covering[1] else f"lies in {covering[1]}"
                    yield Contradiction(
                        ("firewall", "zones", name, "addresses", number), f"{said} {why}: merged into one"
                    )
            else:
                last[version] = (ends, zone.addresses[number])
        if found > MAX_NAMED:
            yield Contradiction(
                ("firewall", "zones", name, "addresses"), f"{found - MAX_NAMED} more that overlap others"
            )


def _whole_world(section: Section) -> Iterator[Contradiction]:
    for at, rule in _inbound(section):
        everywhere = [
            text for text in section.zones[rule.zone].addresses if ipaddress.ip_network(text).prefixlen == 0
        ]
        if everywhere and not _terms(rule):
            yield Contradiction(
                (*at, "zone"), f"lets in everybody ({everywhere[0]}) without a limit for each client"
            )


def _absent(section: Section, interfaces: Collection[str]) -> Iterator[Contradiction]:
    way = section.controller.interface
    if way is not None and way not in interfaces:
        yield Contradiction(
            ("firewall", "controller", "interface"),
            f"{way!r} is not here (yet): without it the controller cannot be reached",
        )
    for name, zone in section.zones.items():
        for number, interface in enumerate(zone.interfaces):
            if interface not in interfaces:
                yield Contradiction(
                    ("firewall", "zones", name, "interfaces", number), f"{interface!r} is not here (yet)"
                )
