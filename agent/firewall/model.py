"""What `[firewall]` means under one posture: zones resolved to sets, services by zone, passages. Pure.

The second of three stages: section (what was written) -> model (what it means) -> nft (how nftables says it). Lists are
merged and sorted here, so that two spellings of one meaning make one model. Relies on the section's own checks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol as Interface
from typing import TypeVar

from agent.firewall import section as sections
from agent.firewall.section import ForwardRule, InboundRule, OutboundRule, PortRange, Rule, Section
from agent.grants import OpenGrant
from contract.messages import Posture

N = TypeVar("N", ipaddress.IPv4Network, ipaddress.IPv6Network)
R = TypeVar("R", Rule, ForwardRule, sections.ContainerService)

DEFAULT_BURST = 5
"""As nftables has it."""


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
class Unit:
    """Where a systemd unit's processes are now."""

    path: str
    """Of its cgroup, below /sys/fs/cgroup."""
    level: int
    """How deep that is in the hierarchy."""
    number: int
    """The cgroup's own: another one when the cgroup was made anew."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """What only the node knows: numbers of users, cgroups of units. A rule for what is not here is left out: closed."""

    users: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, Unit] = field(default_factory=dict)
    names: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    """Addresses of each name, with the seconds for which they still hold."""
    gateways: tuple[tuple[str, str], ...] | None = None
    """(interface, address) of every gateway that the routes have; None: not known."""


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
    macs: tuple[str, ...] = ()
    """Of senders; empty: any."""
    named: bool = False
    """Whether there are names besides, so sets that come and go."""
    four_named: tuple[tuple[str, int], ...] = ()
    """Addresses of the names now, with the seconds for which they still hold."""
    six_named: tuple[tuple[str, int], ...] = ()

    @property
    def anywhere(self) -> bool:
        """Whether interfaces alone decide."""
        return not (self.four.elements or self.six.elements or self.named)


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
class Limit:
    """How much one client may do."""

    rate: str | None
    burst: int
    connections: int | None
    network: bool
    """Whether a client is a whole /24 (IPv6: /64)."""


@dataclass(frozen=True, kw_only=True)
class Special:
    """A service on terms: limited for each client, or for the sockets of one user or unit only."""

    service: Service
    limit: Limit | None = None
    uid: int | None = None
    unit: Unit | None = None


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a zone may begin with this node, or this node with a zone."""

    zone: Zone
    service: Service
    """On no terms."""
    special: tuple[Special, ...] = ()


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
    grants: tuple[OpenGrant, ...] = ()
    """Open now; never in isolation."""


NOWHERE = Local()


def model(section: Section, posture: Posture, around: Around, local: Local = NOWHERE) -> Model:
    """Return the model of one posture."""
    zones = {name: zone_now(name, zone, local) for name, zone in section.zones.items()}
    inbound, outbound, forward = _rules(section, posture)
    peers_in, peers_out = _peers(inbound, zones, local), _peers(outbound, zones, local)
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
        kept_inbound=tuple(
            Peer(zone=zones[rule.zone], service=service([rule])) for rule in section.isolated.inbound
        ),
        kept_outbound=tuple(
            Peer(zone=zones[rule.zone], service=service([rule])) for rule in section.isolated.outbound
        ),
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


def _rules(
    section: Section, posture: Posture
) -> tuple[Sequence[Rule], Sequence[Rule], Sequence[ForwardRule]]:
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


def zone_now(name: str, zone: sections.Zone, local: Local) -> Zone:
    """Return a zone with what the node knows of it."""
    still = _zone(name, tuple(zone.interfaces), tuple(zone.addresses))
    if not (zone.names or zone.macs):
        return still
    seconds: dict[str, int] = {}
    for each in zone.names:
        for address, left_s in local.names.get(each, ()):
            seconds[address] = max(left_s, seconds.get(address, 0))
    four = tuple((each, left_s) for each, left_s in sorted(seconds.items()) if ":" not in each)
    six = tuple((each, left_s) for each, left_s in sorted(seconds.items()) if ":" in each)
    macs = tuple(sorted(set(zone.macs)))
    return replace(still, macs=macs, named=bool(zone.names), four_named=four, six_named=six)


@lru_cache(maxsize=256)
def _zone(name: str, interfaces: tuple[str, ...], addresses: tuple[str, ...]) -> Zone:
    # Kept: 100,000 addresses take half a second, and are asked for in each posture.
    four: list[ipaddress.IPv4Network] = []
    six: list[ipaddress.IPv6Network] = []
    for network in map(sections.checked_network, addresses):
        if isinstance(network, ipaddress.IPv4Network):
            four.append(network)
        else:
            six.append(network)
    return Zone(
        name=name, interfaces=tuple(sorted(set(interfaces))), four=_addresses(four), six=_addresses(six)
    )


def _addresses(networks: list[N]) -> Addresses:
    if all(network.prefixlen == network.max_prefixlen for network in networks):
        single = sorted({str(network.network_address) for network in networks})
        return Addresses(elements=tuple(single), interval=False)
    # Collapsed, since nftables refuses intervals that overlap.
    merged = ipaddress.collapse_addresses(networks)
    elements = [str(net.network_address if net.prefixlen == net.max_prefixlen else net) for net in merged]
    return Addresses(elements=tuple(elements), interval=True)


def _peers(rules: Sequence[Rule], zones: dict[str, Zone], local: Local) -> tuple[Peer, ...]:
    named = sorted({rule.zone for rule in rules})
    return tuple(_peer(zones[name], [rule for rule in rules if rule.zone == name], local) for name in named)


def _peer(zone: Zone, rules: Sequence[Rule], local: Local) -> Peer:
    plain: list[Rule] = []
    by_terms: dict[Terms, list[Rule]] = {}
    for rule in rules:
        terms = _terms(rule)
        if terms is None:
            plain.append(rule)
        else:
            by_terms.setdefault(terms, []).append(rule)
    special = [_special(terms, service(under), local) for terms, under in by_terms.items()]
    return Peer(zone=zone, service=service(plain), special=tuple(each for each in special if each))


Terms = tuple[str, str] | Limit
"""("user" or "unit", name), or a limit."""


def _terms(rule: Rule) -> Terms | None:
    if isinstance(rule, InboundRule) and (rule.rate or rule.connections):
        burst = rule.burst or DEFAULT_BURST
        return Limit(
            rate=rule.rate, burst=burst, connections=rule.connections, network=rule.client == "network"
        )
    if isinstance(rule, OutboundRule) and rule.user is not None:
        return "user", rule.user
    if isinstance(rule, OutboundRule) and rule.unit is not None:
        return "unit", rule.unit
    return None


def _special(terms: Terms, service: Service, local: Local) -> Special | None:
    if isinstance(terms, Limit):
        return Special(service=service, limit=terms)
    kind, name = terms
    if kind == "user":
        uid = local.users.get(name)
        return None if uid is None else Special(service=service, uid=uid)
    unit = local.units.get(name)
    return None if unit is None else Special(service=service, unit=unit)


def _passages(rules: Sequence[ForwardRule], zones: dict[str, Zone]) -> tuple[Passage, ...]:
    pairs = sorted({(rule.source, rule.destination) for rule in rules})
    return tuple(
        Passage(
            source=zones[source],
            destination=zones[destination],
            service=service(
                [rule for rule in rules if (rule.source, rule.destination) == (source, destination)]
            ),
        )
        for source, destination in pairs
    )


def service(rules: Sequence[R]) -> Service:
    """Return what the rules name together."""
    return Service(
        everything=any(rule.protocol == "any" for rule in rules),
        tcp=_ports(rules, "tcp"),
        udp=_ports(rules, "udp"),
        ping=any(rule.protocol == "icmp" for rule in rules),
    )


def _ports(rules: Iterable[R], protocol: str) -> tuple[PortRange, ...]:
    ports = [sections.port_range(port) for rule in rules if rule.protocol == protocol for port in rule.ports]
    return tuple(sections.merged_ports(ports))
