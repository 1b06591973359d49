"""What would become of open connections under another `[firewall]`: the rules applied to sockets. Pure.

The rules judge every flow anew when they are replaced, by who began it and what it asked for (`agent.firewall.nft`); so does this.
A test puts its answers beside what the kernel does to real packets. Where only the node could know (names, MAC addresses,
containers, a user or interface that it did not tell), the answer is `unsure` and says why, never `kept`.

Not looked at: traffic that passes through the node, containers' own sockets, limits for each client.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from contract.firewall import (
    InboundRule,
    OutboundRule,
    PortRange,
    Rule,
    Section,
    Zone,
    checked_network,
    port_range,
)
from contract.messages import Posture
from contract.sockets import Connection, Endpoint, Listening

Verdict = Literal["kept", "cut", "unsure"]
_Match = Literal["yes", "no", "maybe"]
_MAX_PORTS = 4096
"""Answers that are kept: a node may name any port."""


class Fate(NamedTuple):
    """What would become of one connection."""

    verdict: Verdict
    why: str


class Foretold:
    """One section under one posture."""

    def __init__(self, section: Section, posture: Posture) -> None:
        """Reads every address of every zone: half a second for 100,000 of them."""
        self._section = section
        self._zones = {name: _Held(zone) for name, zone in section.zones.items()}
        more_in: Sequence[Rule] = ()
        more_out: Sequence[Rule] = ()
        if posture == "maintenance":
            more_in, more_out = section.maintenance.inbound, section.maintenance.outbound
        isolated = posture == "isolated"
        inbound = [*(section.isolated.inbound if isolated else section.inbound), *more_in]
        outbound = [*(section.isolated.outbound if isolated else section.outbound), *more_out]
        self._inbound, self._outbound = list(map(_Placed.of, inbound)), list(map(_Placed.of, outbound))
        self._by_port: dict[tuple[str, str, int], list[Rule]] = {}
        inside = section.containers
        self._contained = [] if inside is None else list(map(checked_network, inside.addresses))

    def fate(self, one: Connection, controller: Sequence[Endpoint]) -> Fate:
        """Return what would become of a connection that is open now; `controller`: where the node knows it to be."""
        unsure = ""
        if one.begun == "here" and _is_controller(one, controller):
            way = self._way(one.interface)
            if way == "yes":
                return Fate("kept", "the way to the controller")
            unsure = "" if way == "no" else "the way to the controller: its interface is not known"
        if contained := self._of_containers(one):
            return Fate("unsure", contained)
        for rule in self._naming(one):
            match, why = self._matches(rule, one)
            if match == "yes":
                return Fate("kept", f"{rule.zone}: {rule.reason}")
            if match == "maybe":
                unsure = unsure or f"{rule.zone}: {why}"
        if unsure:
            return Fate("unsure", unsure)
        return Fate("cut", "no rule lets it in" if one.begun == "there" else "no rule lets it out")

    def loses_controller(self, controller: Iterable[Endpoint]) -> Verdict:
        """Return whether a node keeps its way to the controller; `cut` where none of the ways that it knows is left."""
        ways = {self._way(endpoint.interface) for endpoint in controller}
        if "yes" in ways:
            return "kept"
        return "cut" if ways == {"no"} else "unsure"

    def serves(self, one: Listening) -> bool:
        """Tell whether any rule lets anybody ask for it; networks of containers not looked at."""
        return any(placed.names(one.protocol, one.port) for placed in self._inbound)

    def _naming(self, one: Connection) -> Sequence[Rule]:
        """Return the rules that are about what it asked for."""
        asked = one.local_port if one.begun == "there" else one.peer_port
        key = (one.begun, one.protocol, asked)
        found = self._by_port.get(key)
        if found is None:
            if len(self._by_port) >= _MAX_PORTS:
                self._by_port.clear()
            placed = self._inbound if one.begun == "there" else self._outbound
            found = self._by_port[key] = [each.rule for each in placed if each.names(one.protocol, asked)]
        return found

    def _way(self, interface: str) -> _Match:
        wanted = self._section.controller.interface
        if wanted is None or wanted == interface:
            return "yes"
        return "no" if interface else "maybe"

    def _of_containers(self, one: Connection) -> str:
        inside = self._section.containers
        if inside is None:
            return ""
        address = ipaddress.ip_address(one.peer)
        if inside.covers(one.interface) or any(address in each for each in self._contained):
            return "a network of containers, which has rules of its own"
        return ""

    def _matches(self, rule: Rule, one: Connection) -> tuple[_Match, str]:
        """Whether a rule that names its port lets a connection be, and why that cannot be said."""
        found = [self._zones[rule.zone].matches(one)]
        if isinstance(rule, OutboundRule):
            found.append(_owned(rule, one))
        if any(match == "no" for match, _ in found):
            return "no", ""
        doubts = [why for match, why in found if match == "maybe"]
        if isinstance(rule, InboundRule) and rule.connections is not None and not doubts:
            doubts = ["its limit of connections for each client counts anew"]
        return ("maybe", doubts[0]) if doubts else ("yes", "")


class _Placed(NamedTuple):
    """A rule with its ports read."""

    rule: Rule
    ports: tuple[PortRange, ...]

    @classmethod
    def of(cls, rule: Rule) -> _Placed:
        """Read a rule's ports."""
        return cls(rule, tuple(map(port_range, rule.ports)))

    def names(self, protocol: str, port: int) -> bool:
        """Whether the rule is about a protocol and a port."""
        if self.rule.protocol == "any":
            return True
        return self.rule.protocol == protocol and any(low <= port <= high for low, high in self.ports)


class _Held:
    """A zone whose addresses are looked up quickly."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        networks = [checked_network(text) for text in zone.addresses]
        four = [each for each in networks if isinstance(each, ipaddress.IPv4Network)]
        six = [each for each in networks if isinstance(each, ipaddress.IPv6Network)]
        self._four = [(int(each[0]), int(each[-1])) for each in sorted(ipaddress.collapse_addresses(four))]
        self._six = [(int(each[0]), int(each[-1])) for each in sorted(ipaddress.collapse_addresses(six))]

    def matches(self, one: Connection) -> tuple[_Match, str]:
        """Whether the peer is of the zone."""
        zone = self._zone
        if zone.interfaces and one.interface and one.interface not in zone.interfaces:
            return "no", ""
        doubts = []
        if (zone.addresses or zone.names) and not self._holds(one.peer):
            if not zone.names:
                return "no", ""
            doubts.append("its names are resolved on the node")
        if zone.interfaces and not one.interface:
            doubts.append("the node did not tell the interface")
        if zone.macs:
            doubts.append("MAC addresses are seen on the node alone")
        return ("maybe", doubts[0]) if doubts else ("yes", "")

    def _holds(self, peer: str) -> bool:
        address = ipaddress.ip_address(peer)
        spans = self._four if address.version == 4 else self._six
        at = bisect_right(spans, int(address), key=lambda span: span[0]) - 1
        return at >= 0 and int(address) <= spans[at][1]


def _is_controller(one: Connection, controller: Iterable[Endpoint]) -> bool:
    return one.protocol == "tcp" and (one.peer, one.peer_port) in {(e.address, e.port) for e in controller}


def _owned(rule: OutboundRule, one: Connection) -> tuple[_Match, str]:
    """Whether the socket is of the user or the unit that a rule is for."""
    if rule.user is not None:
        if not one.user and one.uid < 0:
            return "maybe", "the node did not tell whose it is"
        return ("yes" if rule.user in (one.user, str(one.uid)) else "no"), ""
    if rule.unit is not None:
        if not one.cgroup:
            return "maybe", "the node did not tell of which unit it is"
        return ("yes" if rule.unit in one.cgroup.split("/") else "no"), ""
    return "yes", ""
