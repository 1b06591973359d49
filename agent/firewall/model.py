"""What `[firewall]` means under one posture: zones resolved to sets, services by zone, passages. Pure.

The second of three stages: section (what was written) -> model (what it means) -> nft (how nftables says it). Lists are
merged and sorted here, so that two spellings of one meaning make one model. Relies on the section's own checks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface
from typing import TypeVar

from agent.firewall import section as sections
from agent.firewall.section import ForwardRule, PortRange, Rule, Section
from agent.grants import OpenGrant
from contract.messages import Posture

N = TypeVar("N", ipaddress.IPv4Network, ipaddress.IPv6Network)
R = TypeVar("R", Rule, ForwardRule)


class Endpoint(Interface):
    """An address and a TCP port of the controller."""

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...


class Around(Interface):
    """What the model takes from `agent.probes.Surroundings`."""

    @property
    def controller(self) -> Sequence[Endpoint]: ...

    @property
    def fenced(self) -> Sequence[str]: ...

    @property
    def grants(self) -> tuple[OpenGrant, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Addresses of one family, as elements of a set."""

    elements: tuple[str, ...]
    interval: bool
    """Whether there are prefixes among them. Single addresses alone make a hash set, which is faster."""


@dataclass(frozen=True, kw_only=True)
class Zone:
    """Where a packet may come from or go to: interfaces and addresses; both must match where both are given."""

    name: str
    interfaces: tuple[str, ...]
    four: Addresses
    six: Addresses

    @property
    def anywhere(self) -> bool:
        """Whether interfaces alone decide."""
        return not (self.four.elements or self.six.elements)


@dataclass(frozen=True, kw_only=True)
class Service:
    """What may be asked for: of everything, or ports by protocol."""

    everything: bool
    tcp: tuple[PortRange, ...]
    udp: tuple[PortRange, ...]
    ping: bool

    def ports(self) -> tuple[tuple[str, tuple[PortRange, ...]], ...]:
        """Return (protocol, ports) for each protocol that has any."""
        return tuple((name, ports) for name, ports in (("tcp", self.tcp), ("udp", self.udp)) if ports)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a zone may begin with this node, or this node with a zone."""

    zone: Zone
    service: Service


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What may pass through this node."""

    source: Zone
    destination: Zone
    service: Service


@dataclass(frozen=True, kw_only=True)
class Model:
    """All of it."""

    posture: Posture
    controller: tuple[tuple[int, tuple[str, ...]], ...]
    """(4 or 6, "address . port" sorted)."""
    controller_interface: str | None
    fenced: tuple[tuple[int, tuple[str, ...]], ...]
    zones: tuple[Zone, ...]
    """Those that a rule of this posture names."""
    inbound: tuple[Peer, ...]
    outbound: tuple[Peer, ...]
    forward: tuple[Passage, ...]
    kept_inbound: tuple[Peer, ...]
    """What an isolated node still serves and asks for, rule by rule."""
    kept_outbound: tuple[Peer, ...]
    grants: tuple[OpenGrant, ...]
    """Open now; never in isolation."""


def model(section: Section, posture: Posture, around: Around) -> Model:
    """Return the model of one posture."""
    zones = {name: _zone(name, zone) for name, zone in section.zones.items()}
    inbound, outbound, forward = _rules(section, posture)
    peers_in, peers_out = _peers(inbound, zones), _peers(outbound, zones)
    passages = _passages(forward, zones)
    used = {peer.zone.name for peer in (*peers_in, *peers_out)}
    used |= {zone.name for each in passages for zone in (each.source, each.destination)}
    return Model(
        posture=posture,
        controller=_controller(around),
        controller_interface=section.controller.interface,
        fenced=fences(around),
        zones=tuple(zones[name] for name in sorted(used)),
        inbound=peers_in,
        outbound=peers_out,
        forward=passages,
        kept_inbound=tuple(_peer(zones[rule.zone], [rule]) for rule in section.isolated.inbound),
        kept_outbound=tuple(_peer(zones[rule.zone], [rule]) for rule in section.isolated.outbound),
        grants=() if posture == "isolated" else around.grants,
    )


def fences(around: Around) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the fenced addresses as (4, (...)) and (6, (...)), each in one spelling, sorted.

    The controller's own are left out: fencing them would take away the way to lift the fence.
    """
    fenced = {ipaddress.ip_address(text) for text in around.fenced}
    fenced -= {ipaddress.ip_address(endpoint.address) for endpoint in around.controller}
    return tuple(
        (version, tuple(sorted(str(each) for each in fenced if each.version == version)))
        for version in (4, 6)
    )


def _rules(section: Section, posture: Posture) -> tuple[list[Rule], list[Rule], list[ForwardRule]]:
    if posture == "isolated":
        return section.isolated.inbound, section.isolated.outbound, []
    more = section.maintenance if posture == "maintenance" else sections.Extra()
    return (
        [*section.inbound, *more.inbound],
        [*section.outbound, *more.outbound],
        [*section.forward, *more.forward],
    )


def _controller(around: Around) -> tuple[tuple[int, tuple[str, ...]], ...]:
    found: dict[int, set[str]] = {4: set(), 6: set()}
    for endpoint in around.controller:
        address = ipaddress.ip_address(endpoint.address)
        found[address.version].add(f"{address} . {int(endpoint.port)}")
    return tuple((version, tuple(sorted(each))) for version, each in found.items())


def _zone(name: str, zone: sections.Zone) -> Zone:
    four: list[ipaddress.IPv4Network] = []
    six: list[ipaddress.IPv6Network] = []
    for network in map(sections.checked_network, zone.addresses):
        if isinstance(network, ipaddress.IPv4Network):
            four.append(network)
        else:
            six.append(network)
    interfaces = tuple(sorted(set(zone.interfaces)))
    return Zone(name=name, interfaces=interfaces, four=_addresses(four), six=_addresses(six))


def _addresses(networks: list[N]) -> Addresses:
    if all(network.prefixlen == network.max_prefixlen for network in networks):
        single = sorted({str(network.network_address) for network in networks})
        return Addresses(elements=tuple(single), interval=False)
    # Collapsed, since nftables refuses intervals that overlap.
    merged = ipaddress.collapse_addresses(networks)
    elements = [str(net.network_address if net.prefixlen == net.max_prefixlen else net) for net in merged]
    return Addresses(elements=tuple(elements), interval=True)


def _peers(rules: Sequence[Rule], zones: dict[str, Zone]) -> tuple[Peer, ...]:
    named = sorted({rule.zone for rule in rules})
    return tuple(_peer(zones[name], [rule for rule in rules if rule.zone == name]) for name in named)


def _peer(zone: Zone, rules: Sequence[Rule]) -> Peer:
    return Peer(zone=zone, service=_service(rules))


def _passages(rules: Sequence[ForwardRule], zones: dict[str, Zone]) -> tuple[Passage, ...]:
    pairs = sorted({(rule.source, rule.destination) for rule in rules})
    return tuple(
        Passage(
            source=zones[source],
            destination=zones[destination],
            service=_service(
                [rule for rule in rules if (rule.source, rule.destination) == (source, destination)]
            ),
        )
        for source, destination in pairs
    )


def _service(rules: Sequence[R]) -> Service:
    return Service(
        everything=any(rule.protocol == "any" for rule in rules),
        tcp=_ports(rules, "tcp"),
        udp=_ports(rules, "udp"),
        ping=any(rule.protocol == "icmp" for rule in rules),
    )


def _ports(rules: Iterable[R], protocol: str) -> tuple[PortRange, ...]:
    ports = [sections.port_range(port) for rule in rules if rule.protocol == protocol for port in rule.ports]
    return tuple(sections.merged_ports(ports))
