"""What may be written under `[firewall]` in a baseline, and its checks: what the agent enforces and the controller foretells. Pure.

Refuses everything that could widen a rule by accident: a zone of nothing (empty never means all), a rule without
a reason, ports where the protocol has none, host bits in a prefix. Nothing of the text gets into nftables
syntax as it stands: addresses become `ipaddress` objects, ports become integers, interface and zone names are
held to an alphabet that has no meaning to nftables (ATTACKS f10).
Relies on: msgspec for types and unknown keys.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from contract.baseline import SectionBase
from contract.messages import Name

Address = ipaddress.IPv4Network | ipaddress.IPv6Network
InterfaceName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}\Z")]
"""IFNAMSIZ is 16 with the final NUL. '*' and quotes, which nftables would read as syntax, are not in it."""
LinkPattern = Annotated[
    str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9_.-]{0,14}|[A-Za-z0-9][A-Za-z0-9_.-]{1,13}\*)\Z")
]
"""A name, or two characters or more that names begin with, and a star."""
Reason = Annotated[str, Meta(min_length=1, max_length=256)]
Protocol = Literal["tcp", "udp", "icmp", "any"]
PortRange = tuple[int, int]
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HostName = Annotated[str, Meta(pattern=rf"\A(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})+\Z")]
MacAddress = Annotated[str, Meta(pattern=r"\A[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")]
Rate = Annotated[str, Meta(pattern=r"\A[1-9][0-9]{0,6}/(second|minute|hour)\Z")]
UserName = Annotated[str, Meta(pattern=r"\A([a-z_][a-z0-9_-]{0,31}|[0-9]{1,10})\Z")]
UnitName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.@:-]{0,120}\.(service|slice|scope)\Z")]
TableName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_.-]{0,62}\Z")]

MAX_ADDRESSES = 131_072
MAX_ALL_ADDRESSES = 262_144
MAX_RULES = 4_096


class _Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything below the section."""


class Zone(_Strict, frozen=True, kw_only=True):
    """A named piece of the world: interfaces, addresses, names, MAC addresses.

    Addresses and names are one list: either may match. Interfaces and MAC addresses, where given, must match as well.
    """

    interfaces: Annotated[list[InterfaceName], Meta(max_length=256)] = []
    addresses: Annotated[list[str], Meta(max_length=MAX_ADDRESSES)] = []
    """IPv4 and IPv6 addresses and prefixes; with none of one family, that family is not in the zone."""
    names: Annotated[list[HostName], Meta(max_length=64)] = []
    """Resolved on the node. Whoever answers its DNS queries decides what these mean."""
    names_lifetime_s: Annotated[int, Meta(ge=30, le=3600)] = 300
    """An address leaves the zone so long after a name last led to it."""
    names_private: bool = False
    """Whether a name may lead to private addresses: for a name server of one's own only."""
    macs: Annotated[list[MacAddress], Meta(max_length=4096)] = []
    """Senders on the interfaces' own link."""

    def __post_init__(self) -> None:
        if not (self.interfaces or self.addresses or self.names):
            raise ValueError("expected interfaces, addresses or names; an empty zone never means everything")
        if self.macs and not self.interfaces:
            raise ValueError("expected interfaces where there are macs: a MAC address is of one link only")
        for text in self.addresses:
            checked_network(text)


class Rule(_Strict, frozen=True, kw_only=True):
    """Traffic between this node and a zone that may begin; answers come with it."""

    zone: Name
    protocol: Protocol
    ports: Annotated[list[int | str], Meta(max_length=1024)] = []
    """Destination ports: numbers 1 to 65535, or ranges as text, "30000-30100"."""
    reason: Reason

    def __post_init__(self) -> None:
        _check_ports(self.protocol, self.ports)


class InboundRule(Rule, frozen=True, kw_only=True):
    """A rule with limits for each client: the server's own protection at the enclave's edge."""

    rate: Rate | None = None
    """Connections that one client may begin: "50/second". For UDP, datagrams until the first answer."""
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many of them at once; absent: 5."""
    connections: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Connections that one client may have open at a time."""
    client: Literal["address", "network"] = "address"
    """Who counts as one client: an address, or its /24 (IPv6: /64)."""

    def __post_init__(self) -> None:
        _check_ports(self.protocol, self.ports)
        if self.burst is not None and self.rate is None:
            raise ValueError("expected a rate where there is a burst")
        if self.protocol == "any" and (self.rate or self.connections):
            raise ValueError("expected no limits for 'any': name the protocol and the ports that are limited")


class OutboundRule(Rule, frozen=True, kw_only=True):
    """A rule for everybody on the node, for one user, or for one systemd unit."""

    user: UserName | None = None
    """Name or number; resolved on the node when the rules are loaded."""
    unit: UnitName | None = None
    """Sockets of processes in this unit's cgroup, at the time the socket was made."""

    def __post_init__(self) -> None:
        _check_ports(self.protocol, self.ports)
        if self.user is not None and self.unit is not None:
            raise ValueError("expected user or unit, not both")


class ForwardRule(_Strict, frozen=True, kw_only=True):
    """Traffic through this node, from one zone to another; answers come with it."""

    source: Name = field(name="from")
    destination: Name = field(name="to")
    protocol: Protocol
    ports: Annotated[list[int | str], Meta(max_length=1024)] = []
    reason: Reason

    def __post_init__(self) -> None:
        _check_ports(self.protocol, self.ports)


class Extra(_Strict, frozen=True, kw_only=True):
    """Rules of one posture."""

    inbound: Annotated[list[InboundRule], Meta(max_length=MAX_RULES)] = []
    outbound: Annotated[list[OutboundRule], Meta(max_length=MAX_RULES)] = []
    forward: Annotated[list[ForwardRule], Meta(max_length=MAX_RULES)] = []


class IsolatedExtra(_Strict, frozen=True, kw_only=True):
    """What stays reachable while the node is isolated, besides the controller. Nothing is forwarded."""

    inbound: Annotated[list[Rule], Meta(max_length=64)] = []
    outbound: Annotated[list[Rule], Meta(max_length=64)] = []


class WayToController(_Strict, frozen=True, kw_only=True):
    """Narrows the way to the controller; its addresses and ports come from the agent's configuration."""

    interface: InterfaceName | None = None


class Contest(_Strict, frozen=True, kw_only=True):
    """When healing our tables becomes a fight, and the node isolates itself: so many bursts of changes within a time."""

    healings: Annotated[int, Meta(ge=2, le=1_000_000)] = 3
    within_s: Annotated[float, Meta(ge=10, le=86400)] = 120.0


class KnownTable(_Strict, frozen=True, kw_only=True):
    """A table of another program that may stand beside ours, whatever its chains do."""

    family: Literal["inet", "ip", "ip6", "arp", "bridge", "netdev"]
    table: TableName
    reason: Reason


class ContainerService(_Strict, frozen=True, kw_only=True):
    """Protocol and ports, by the port that the answering side really listens on."""

    protocol: Protocol
    ports: Annotated[list[int | str], Meta(max_length=1024)] = []
    reason: Reason

    def __post_init__(self) -> None:
        _check_ports(self.protocol, self.ports)


class Published(_Strict, frozen=True, kw_only=True):
    """Ports of containers that a zone may ask for at the node's own address, which the manager's DNAT leads on."""

    zone: Name
    protocol: Literal["tcp", "udp"]
    ports: Annotated[list[int | str], Meta(max_length=1024)]
    """As the client asks for them."""
    container_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """Where they must lead to; absent: any port of a container."""
    reason: Reason

    def __post_init__(self) -> None:
        _check_ports(self.protocol, self.ports)


class Neighbour(_Strict, frozen=True, kw_only=True):
    """A neighbour whose MAC address is known: the kernel keeps it, and nobody on the link can say otherwise."""

    interface: InterfaceName
    address: str
    mac: MacAddress
    reason: Reason

    def __post_init__(self) -> None:
        if not checked_network(self.address).num_addresses == 1:
            raise ValueError(f"address {self.address!r}: expected one address")
        if int(self.mac[1], 16) & 1:
            raise ValueError(f"mac {self.mac!r}: expected the address of one station, not of a group")


class KnownProgram(_Strict, frozen=True, kw_only=True):
    """XDP programs or tc filters of another program, which see packets before or after our rules."""

    interface: LinkPattern
    hook: Literal["xdp", "tc"]
    reason: Reason


class Containers(_Strict, frozen=True, kw_only=True):
    """Networks of containers on this node: what begins or ends there is decided by this alone."""

    manager: Literal["docker", "podman", "cni"]
    """Whose tables may stand beside ours, as far as they do what such a program does."""
    interfaces: Annotated[list[LinkPattern], Meta(min_length=1, max_length=64)]
    """The networks' bridges."""
    addresses: Annotated[list[str], Meta(min_length=1, max_length=256)]
    """What their containers have; with none of one family, that family is closed to them."""
    parents: Annotated[list[InterfaceName], Meta(max_length=64)] = []
    """Interfaces that containers may have a MACVLAN or IPVLAN of, which passes no rule of this node."""
    egress: Annotated[list[Rule], Meta(max_length=MAX_RULES)] = []
    published: Annotated[list[Published], Meta(max_length=MAX_RULES)] = []
    between: Annotated[list[ContainerService], Meta(max_length=256)] = []
    node: Annotated[list[ContainerService], Meta(max_length=256)] = []
    """What containers may ask of the node itself."""
    from_node: Annotated[list[ContainerService], Meta(max_length=256)] = []
    reason: Reason

    def __post_init__(self) -> None:
        for text in self.addresses:
            if not checked_network(text).prefixlen:
                raise ValueError(f"address {text!r}: expected the containers' own networks, not everything")

    def covers(self, interface: str) -> bool:
        """Tell whether an interface is one of the networks'."""
        return any(matches(each, interface) for each in self.interfaces)


class Offload(_Strict, frozen=True, kw_only=True):
    """Interfaces between which established flows go past the rules, where the kernel has flowtables."""

    interfaces: Annotated[list[LinkPattern], Meta(min_length=1, max_length=64)]
    """At least two that are there; for containers, their networks' bridges and the way in."""
    reason: Reason


class Section(SectionBase, frozen=True, kw_only=True):
    """`[firewall]`."""

    foreign: Literal["report", "remove"] = "report"
    """What is done about other tables that accept, drop or rewrite: tell, or delete them. Rules that can lead packets past
    ours are deleted either way (`agent.firewall.foreigners`)."""
    controller: WayToController = WayToController()
    zones: Annotated[dict[Name, Zone], Meta(max_length=256)] = field(default_factory=dict)
    inbound: Annotated[list[InboundRule], Meta(max_length=MAX_RULES)] = field(default_factory=list)
    outbound: Annotated[list[OutboundRule], Meta(max_length=MAX_RULES)] = field(default_factory=list)
    forward: Annotated[list[ForwardRule], Meta(max_length=MAX_RULES)] = field(default_factory=list)
    isolated: IsolatedExtra = IsolatedExtra()
    maintenance: Extra = Extra()
    known: Annotated[list[KnownTable], Meta(max_length=256)] = field(default_factory=list)
    programs: Annotated[list[KnownProgram], Meta(max_length=256)] = field(default_factory=list)
    neighbours: Annotated[list[Neighbour], Meta(max_length=256)] = field(default_factory=list)
    containers: Containers | None = None
    offload: Offload | None = None
    contest: Contest = Contest()

    def __post_init__(self) -> None:
        rules: list[Rule] = [*self.inbound, *self.outbound, *self.isolated.inbound, *self.isolated.outbound]
        rules += [*self.maintenance.inbound, *self.maintenance.outbound]
        named = [rule.zone for rule in rules]
        for passing in (*self.forward, *self.maintenance.forward):
            named += [passing.source, passing.destination]
        if self.containers is not None:
            named += [rule.zone for rule in self.containers.egress]
            named += [rule.zone for rule in self.containers.published]
            _check_apart(self.containers, self.zones, self.controller.interface)
        for zone in named:
            if zone not in self.zones:
                known = ", ".join(sorted(self.zones)) or "none is defined"
                raise ValueError(f"zone {zone!r} is not defined; expected one of: {known}")
        pinned = [(pin.interface, checked_network(pin.address)) for pin in self.neighbours]
        if len(set(pinned)) != len(pinned):
            raise ValueError("neighbours: expected each address once on an interface")
        if sum(len(zone.addresses) for zone in self.zones.values()) > MAX_ALL_ADDRESSES:
            raise ValueError(f"expected at most {MAX_ALL_ADDRESSES} addresses in all zones together")


def matches(pattern: str, interface: str) -> bool:
    """Tell whether a `LinkPattern` means an interface."""
    return interface.startswith(pattern[:-1]) if pattern.endswith("*") else interface == pattern


def checked_network(text: str) -> Address:
    """Return the address or prefix. Raises ValueError for anything else, also for host bits and zone ids."""
    if "%" in text:
        raise ValueError(f"address {text!r}: expected no zone id; name the interface instead")
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        raise ValueError(
            f"address {text!r}: expected an IP address or prefix without host bits ({error})"
        ) from None


def port_range(untrusted: int | str) -> PortRange:
    """Return (first, last) of a port or "first-last". Raises ValueError."""
    first, dash, last = str(untrusted).partition("-")
    if isinstance(untrusted, str) and not dash:
        raise ValueError(f"port {untrusted!r}: expected a number, or a range as text")
    if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
        raise ValueError(f"port {untrusted!r}: expected 1 to 65535, or a range such as '30000-30100'")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"port {untrusted!r}: expected 1 to 65535, the lower first")
    return low, high


def merged_ports(ports: list[PortRange]) -> list[PortRange]:
    """Return the ranges sorted, overlapping and adjoining ones joined: what an interval set wants."""
    out: list[PortRange] = []
    for low, high in sorted(ports):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def _check_apart(containers: Containers, zones: dict[str, Zone], controller: str | None) -> None:
    taken = [(f"zone {name!r}", each) for name, zone in zones.items() for each in zone.interfaces]
    for what, interface in [*taken, *([("the way to the controller", controller)] if controller else [])]:
        if containers.covers(interface):
            raise ValueError(
                f"{what} names interface {interface!r}, which is a network of containers: expected its rules"
                " under firewall.containers alone"
            )


def _check_ports(protocol: Protocol, ports: list[int | str]) -> None:
    if protocol in {"tcp", "udp"} and not ports:
        raise ValueError(f"expected ports for {protocol}; an empty list never means all")
    if protocol in {"icmp", "any"} and ports:
        raise ValueError(f"expected no ports for {protocol}")
    for port in ports:
        port_range(port)
