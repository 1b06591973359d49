"""Chains for containers' networks. Pure: the third stage, beside `agent.firewall.nft`.

Whoever manages containers rewrites packets on their way: DNAT before our forward chain, masquerading behind it. So the asking
side is known by `ct original saddr`, the answering side by `ct reply saddr` and `ct reply proto-src` (where the
packet really goes), and a published port by both `ct status dnat` and `ct original proto-dst` (what was asked for). That
another program's table accepts something opens nothing; where its DNAT leads to anything but a container, nothing
here lets it in.
What begins or ends at a container never reaches the rules of the zones: each chain here ends in a drop. Traffic
between two containers of one bridge is seen here only where bridged packets are filtered (net.bridge.bridge-nf-call-*).

Refuses what has a source address that no container has. Relies on the section's checks of patterns and zones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.firewall.containermodel import Contained, PublishedTo
from agent.firewall.match import (
    NEIGHBOURS,
    mixes_families,
    port_set,
    ranges,
    sender_match,
    service_rules,
    zone_matches,
    zone_sets,
)
from agent.firewall.model import Service
from agent.firewall.tables import Chain, Set

_REAL_PORT = "ct reply proto-src"
_DROP = 'counter name "drop_containers" drop'


@dataclass(frozen=True, kw_only=True)
class Early:
    """What containers add: sets, chains, and what base chains ask before anything else that may let a packet in."""

    sets: list[Set] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    input: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)


def container_chains(inside: Contained | None) -> Early:
    """Return all of it; nothing where there are no containers."""
    if inside is None:
        return Early()
    sets = zone_sets(inside.own)
    chains: list[Chain] = []
    for add, made in (
        _judged("ctr_between", inside.between, "reply", inside),
        _judged("ctr_from_node", inside.from_node, "reply", inside),
        _judged("ctr_node", inside.node, None, inside),
        _asking(inside),
        _asked(inside),
    ):
        sets += add
        chains += made
    return Early(
        sets=sets,
        chains=chains,
        input=[
            *_ways(inside, "iifname", "original", "ctr_node"),
            *_ways(inside, "iifname", "reply", "ctr_from_node"),
        ],
        output=[
            *_ways(inside, "oifname", "original", "ctr_from_node"),
            *_ways(inside, "oifname", "reply", "ctr_node"),
        ],
        forward=[
            # Bridged and not routed: a hop limit of 255 never comes through a router.
            f"jump {NEIGHBOURS.name}",
            *_ways(inside, "iifname", "original", "ctr_asking"),
            *_ways(inside, "oifname", "reply", "ctr_asking"),
            *_ways(inside, "oifname", "original", "ctr_asked"),
            *_ways(inside, "iifname", "reply", "ctr_asked"),
        ],
    )


def _ways(inside: Contained, key: str, direction: str, chain: str) -> list[str]:
    # One line for each pattern: a set would refuse those that overlap.
    return [f'ct direction {direction} {key} "{each}" goto {chain}' for each in inside.patterns]


def _elsewhere(inside: Contained, side: str) -> list[str]:
    """Return the rules that drop what has, on one side of the flow, no address of a container."""
    known = {4: inside.own.four, 6: inside.own.six}
    found = []
    for family, version in (("ip", 4), ("ip6", 6)):
        start = f"meta nfproto ipv{version} "
        own = (
            f"ct {side} {family} saddr != @zone{version}_{inside.own.name} "
            if known[version].elements
            else ""
        )
        found.append(f"{start}{own}{_DROP}")
    return found


def _judged(name: str, service: Service, far: str | None, inside: Contained) -> tuple[list[Set], list[Chain]]:
    """Return a chain that lets in a service; `far` "reply": only where a container answers."""
    sets, lines = service_rules(name, service, _REAL_PORT, "goto allow")
    first = (
        _elsewhere(inside, "reply") if far else [*_elsewhere(inside, "original"), f"ct status dnat {_DROP}"]
    )
    return sets, [Chain(name=name, rules=(*first, *lines, _DROP))]


def _asking(inside: Contained) -> tuple[list[Set], list[Chain]]:
    """Return the chains of flows that containers begin with somebody beyond the node."""
    sets: list[Set] = []
    chains: list[Chain] = []
    lines = [
        *_elsewhere(inside, "original"),
        *_ways(inside, "oifname", "original", "ctr_between"),
        *_ways(inside, "iifname", "reply", "ctr_between"),
    ]
    for zone, service in inside.egress:
        name = f"ctr_out_{zone.name}"
        more, asked = service_rules(name, service, _REAL_PORT, "goto allow")
        sets += more
        chains.append(Chain(name=name, rules=tuple(asked)))
        for direction, key in (("original", "oifname"), ("reply", "iifname")):
            lines += [
                f"ct direction {direction} {match}jump {name}"
                for match in zone_matches(zone, key, "ct reply {} saddr")
            ]
    return sets, [*chains, Chain(name="ctr_asking", rules=(*lines, _DROP))]


def _asked(inside: Contained) -> tuple[list[Set], list[Chain]]:
    """Return the chains of flows that others begin with containers."""
    sets: list[Set] = []
    chains: list[Chain] = []
    lines = [*_elsewhere(inside, "reply"), f"ct status ! dnat {_DROP}"]
    for each in inside.published:
        name = f"ctr_in_{each.zone.name}"
        more, asked = _published(name, each)
        sets += more
        chains.append(Chain(name=name, rules=tuple(asked)))
        sender = sender_match(each.zone)
        # What a MAC address decides, nobody can judge from an answer.
        for direction, key in (("original", "iifname"), ("reply", "oifname"))[: 1 if sender else 2]:
            lines += [
                f"ct direction {direction} {sender}{match}jump {name}"
                for match in zone_matches(each.zone, key, "ct original {} saddr")
                if not mixes_families(match)
            ]
    return sets, [*chains, Chain(name="ctr_asked", rules=(*lines, _DROP))]


def _published(name: str, each: PublishedTo) -> tuple[list[Set], list[str]]:
    sets, lines = [], []
    for protocol, ports in each.anywhere:
        sets.append(port_set(f"{name}_{protocol}", ports))
        lines.append(_let_in(name, protocol, f"ct original proto-dst @{name}_{protocol}"))
    for protocol, pairs in each.onto:
        sets.append(_pair_set(f"{name}_{protocol}_onto", pairs))
        pair = f"ct original proto-dst . {_REAL_PORT}"
        lines.append(_let_in(name, protocol, f"{pair} @{name}_{protocol}_onto"))
    return sets, lines


def _let_in(name: str, protocol: str, match: str) -> str:
    return f'meta l4proto {protocol} {match} counter name "{name}_{protocol}" goto allow'


def _pair_set(name: str, pairs: Iterable[tuple[tuple[int, int], int]]) -> Set:
    listed = tuple(pairs)
    elements = tuple(f"{text} . {port}" for each, port in listed for text in ranges([each]))
    interval = any(low != high for (low, high), _ in listed)
    return Set(name=name, kind="inet_service . inet_service", elements=elements, interval=interval)
