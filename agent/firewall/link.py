"""The cut below IP, in posture `isolated`: every interface, both ways, and nothing from port to port of a bridge. Pure.

`inet ringfence_cut` sees what passes the IP stack. Packet sockets (also with PACKET_QDISC_BYPASS), ARP, tagged frames,
guests on a bridge, MACVLANs and the near ends of containers do not pass it; the first and last thing that an
interface does with a frame is `netdev ringfence_cut`: ingress at the lowest priority there is, egress at the highest, so
that an address which somebody rewrites in between (NAT, another table) is seen as it leaves.

What passes: the controller and what the signed posture names, by address and port; on the interfaces that lead there
also what reaching them needs: ARP and neighbour solicitations for their next hops, a bounded number of answers, and
DHCP, since an isolated node that loses its lease would lose its controller.

Refuses a name of an interface that could be read as syntax (`cannot_be_written`): the caller must tell of it.
Does not see: XDP programs, AF_XDP sockets, frames that a tc filter of another interface has redirected (docs/adr).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.firewall.match import CUT_TABLE, LOOPBACK, controller_sets, ranges, zone_sets
from agent.firewall.model import Model, Peer, Zone
from agent.firewall.routes import Hop, Link, beneath
from agent.firewall.tables import Chain, Set, Table, replacing

LINK_TABLES = (("netdev", CUT_TABLE), ("bridge", CUT_TABLE))
FIRST, LAST = -(2**31), 2**31 - 1
_DEVICES_PER_CHAIN = 200
"""The kernel takes 256 (NFT_NETDEVICE_MAX)."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}")
_DEVICES = re.compile(r"devices = \{ ([^}]*) \}")
_FLOWTABLES = re.compile(r"devices = \{\"[^}]*\};")
_SOLICITED = int(ipaddress.IPv6Address("ff02::1:ff00:0"))
_ANSWERS = "limit rate 20/second burst 40 packets accept"


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The interfaces of the moment, and those that lead to whom an isolated node may talk to."""

    devices: tuple[str, ...] = ()
    """Every interface but the loopback."""
    toward: tuple[str, ...] = ()
    """Those that carry a way to the controller or to what is kept."""
    hops: tuple[tuple[int, tuple[str, ...]], ...] = ((4, ()), (6, ()))
    """(4 or 6, addresses): the next hops there."""
    carriers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By interface: itself and what carries it, such as the ports of a bridge."""


def ways(links: Sequence[Link], hops: Iterable[Hop], named: Iterable[str]) -> Ways:
    """Return the ways; `named` are interfaces that the signed posture names.

    Where no hop is known (no route yet), every interface counts as one that leads there: the controller comes first.
    """
    real = [each for each in links if each.number != LOOPBACK]
    names = {each.number: each.name for each in real if not cannot_be_written(each.name)}
    indexes = {name: index for index, name in names.items()}
    carriers = {
        name: tuple(sorted(names[each] for each in beneath(real, [indexes[name]]) if each in names))
        for name in names.values()
    }
    found = list(hops)
    lead = {hop.interface for hop in found} | {indexes[name] for name in named if name in indexes}
    toward = beneath(real, lead) if found else set(names)
    addresses = sorted(
        {ipaddress.ip_address(hop.address) for hop in found}, key=lambda a: (a.version, int(a))
    )
    return Ways(
        devices=tuple(sorted(names.values())),
        toward=tuple(sorted(names[index] for index in toward if index in names)),
        hops=tuple((v, tuple(str(a) for a in addresses if a.version == v)) for v in (4, 6)),
        carriers=carriers,
    )


def cannot_be_written(name: str) -> bool:
    """Tell whether an interface's name could mean something to nftables: it is not put into any text."""
    return _PLAIN.fullmatch(name) is None


def link_tables(meant: Model, ways: Ways, *, bridge: bool = True) -> tuple[Table, ...]:
    """Return the tables. `bridge`: the kernel knows that family."""
    found = [_netdev(meant, ways)]
    if bridge:
        head = "type filter hook forward priority -310; policy drop;"
        rules = ("counter drop",)
        chains = (Chain(name="cut_forward", rules=rules, head=head),)
        found.append(Table(name=CUT_TABLE, sets=(), chains=chains, family="bridge"))
    return tuple(found)


def render_links(meant: Model, ways: Ways, *, bridge: bool = True) -> str:
    """Return the batch that makes them anew."""
    tables = link_tables(meant, ways, bridge=bridge)
    return replacing([(each.family, each.name) for each in tables]) + "".join(each.text() for each in tables)


def on_loopback(text: str) -> str:
    """Return the same batch for a namespace that has no interface but its loopback: for the dry run."""
    return _FLOWTABLES.sub("devices = {lo};", _DEVICES.sub('device "lo"', text))


def devices_of(text: str) -> frozenset[str]:
    """Return the interfaces that a batch names for its chains."""
    return frozenset(name.strip(' "') for listed in _DEVICES.findall(text) for name in listed.split(","))


def kept_addresses(meant: Model) -> list[str]:
    """Return an address of each network that the signed posture keeps, at most 64: their next hops are wanted."""
    networks = [
        element
        for peer in (*meant.kept_inbound, *meant.kept_outbound)
        for addresses in (peer.zone.four, peer.zone.six)
        for element in addresses.elements
    ]
    return [str(_host_of(each)) for each in sorted(set(networks))[:64]]


def _host_of(element: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    network = ipaddress.ip_network(element.partition("-")[0])
    return network.network_address + (1 if network.num_addresses > 2 else 0)


def kept_interfaces(meant: Model) -> list[str]:
    """Return the interfaces that the signed posture names by themselves."""
    kept = (*meant.kept_inbound, *meant.kept_outbound)
    return sorted({name for peer in kept if peer.zone.anywhere for name in peer.zone.interfaces})


def _netdev(meant: Model, ways: Ways) -> Table:
    zones = {peer.zone.name: peer.zone for peer in (*meant.kept_inbound, *meant.kept_outbound)}
    asked = {
        version: tuple(addresses) + tuple(_solicited_node(each) for each in addresses if version == 6)
        for version, addresses in ways.hops
    }
    sets = [
        *controller_sets(meant),
        *(Set(name=f"hops{v}", kind=f"ipv{v}_addr", elements=tuple(sorted(set(asked[v])))) for v in (4, 6)),
        *(part for name in sorted(zones) for part in zone_sets(zones[name])),
    ]
    chains = [
        Chain(name="asked", rules=tuple(_neighbours_in(zones.values()))),
        Chain(name="asking", rules=tuple(_neighbours_out(zones.values()))),
    ]
    for hook, key, peer, remote, local, neighbours, priority in (
        ("ingress", "iifname", "saddr", "sport", "dport", "asked", FIRST),
        ("egress", "oifname", "daddr", "dport", "sport", "asking", LAST),
    ):
        rules = [
            f"{family} {peer} . tcp {remote} @controller{version} accept"
            for family, version in (("ip", 4), ("ip6", 6))
        ]
        for kept, port in ((meant.kept_inbound, local), (meant.kept_outbound, remote)):
            rules += [rule for each in kept for rule in _kept(each, ways, key, peer, port)]
        if ways.toward:
            names = ", ".join(f'"{each}"' for each in ways.toward)
            rules.append(f"{key} {{ {names} }} jump {neighbours}")
        chains += on_every(hook, priority, ways.devices, (*rules, "counter drop"))
    return Table(name=CUT_TABLE, sets=tuple(sets), chains=tuple(chains), family="netdev")


def on_every(hook: str, priority: int, devices: Sequence[str], rules: tuple[str, ...]) -> list[Chain]:
    """Return the base chains that hold these interfaces."""
    chains = []
    for number, start in enumerate(range(0, len(devices), _DEVICES_PER_CHAIN), start=1):
        listed = ", ".join(f'"{each}"' for each in devices[start : start + _DEVICES_PER_CHAIN])
        head = f"type filter hook {hook} devices = {{ {listed} }} priority {priority}; policy drop;"
        chains.append(Chain(name=f"cut_{hook}_{number}", rules=rules, head=head))
    return chains


def _kept(each: Peer, ways: Ways, key: str, peer: str, port: str) -> list[str]:
    """Match by address where the zone has one: below a bridge or VLAN the interface has another name."""
    zone = each.zone
    if zone.anywhere:
        carriers = sorted({name for one in zone.interfaces for name in ways.carriers.get(one, (one,))})
        names = ", ".join(f'"{name}"' for name in carriers)
        matches = [("", f"{key} {{ {names} }} ")]
    else:
        matches = [
            (family, f"{family} {peer} @zone{version}_{zone.name} ")
            for family, version, addresses in (("ip", 4, zone.four), ("ip6", 6, zone.six))
            if addresses.elements
        ]
    return [f"{match}{tail}accept" for family, match in matches for tail in _tails(each, port, family)]


def _tails(each: Peer, port: str, family: str) -> list[str]:
    service = each.service
    if service.everything:
        return [""]
    if service.ping:
        kinds = "type { echo-reply, echo-request } "
        named = [(f, f"{p} {kinds}") for f, p in (("ip", "icmp"), ("ip6", "icmpv6"))]
        return [text for f, text in named if family in ("", f)]
    return [f"{protocol} {port} {{ {', '.join(ranges(ports))} }} " for protocol, ports in service.ports()]


def _neighbours_in(zones: Iterable[Zone]) -> list[str]:
    return [
        "arp operation request accept",
        "arp operation reply arp saddr ip @hops4 accept",
        *(f"arp operation reply arp saddr ip @zone4_{z.name} accept" for z in zones if z.four.elements),
        "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        "icmpv6 type mld-listener-query ip6 hoplimit 1 accept",
        "udp sport 67 udp dport 68 accept",
    ]


def _neighbours_out(zones: Iterable[Zone]) -> list[str]:
    zones = list(zones)
    others = "nd-neighbor-solicit, " if any(z.six.elements or z.anywhere for z in zones) else ""
    return [
        "arp operation request arp daddr ip @hops4 accept",
        *(f"arp operation request arp daddr ip @zone4_{z.name} accept" for z in zones if z.four.elements),
        f"arp operation reply {_ANSWERS}",
        "icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 ip6 daddr @hops6 accept",
        f"icmpv6 type {{ {others}nd-router-solicit, nd-neighbor-advert }} ip6 hoplimit 255 {_ANSWERS}",
        f"icmpv6 type {{ mld-listener-report, mld-listener-done, mld2-listener-report }} ip6 hoplimit 1 {_ANSWERS}",
        "udp sport 68 udp dport 67 limit rate 2/second accept",
    ]


def _solicited_node(address: str) -> str:
    """Return the group that a host with this address listens to (RFC 4291, clause 2.7.1)."""
    return str(ipaddress.IPv6Address(_SOLICITED | int(ipaddress.IPv6Address(address)) & 0xFFFFFF))
