"""Who may say who he is on a link: ARP and neighbour discovery by zone. Pure.

`table arp ringfence` and chain `neighbours_in` of the rules let in only what comes by an interface that a zone or the
way to the controller names and, where zones name addresses, speaks for an address of a zone on that interface, for a
gateway that the node's routes have there, or for the controller. So a station of one zone cannot speak for another's
address. It still can for its neighbours in its own zone: `[[firewall.neighbours]]` pins those that matter.

Refuses to narrow anything where a zone or the way to the controller names no interface (`by_zone`): then any sender is
heard on any interface, and `check` says so. Interfaces are narrowed by address only once the routes are known.
Relies on: the guard and the cut letting neighbours through to these; docs/adr/0017-neighbours-by-zone.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from agent.firewall.match import NEIGHBOURS, TABLE, ranges_of
from agent.firewall.model import Around, Local
from agent.firewall.section import Address, Section, checked_network
from agent.firewall.tables import Chain, Set, Table, replacing

ARP = ("arp", TABLE)
IN = "neighbours_in"
MAX_NETWORKS = 1024
"""Of one interface: more are not held to their addresses, since each neighbour would be looked up among them all."""
_TARGET = "@th,64,128"
"""The address that a solicitation asks for and an advertisement speaks for (RFC 4861, clauses 4.3 and 4.4)."""
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")
_UNSPECIFIED = ipaddress.IPv6Network("::/128")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Who is heard on one interface; None: everybody."""

    interface: str
    four: tuple[ipaddress.IPv4Network, ...] | None
    six: tuple[ipaddress.IPv6Network, ...] | None


def by_zone(section: Section) -> bool:
    """Tell whether every zone and the way to the controller name an interface."""
    named = all(zone.interfaces for zone in section.zones.values())
    return bool(section.zones) and named and section.controller.interface is not None


def heard(section: Section, around: Around, local: Local) -> tuple[Heard, ...]:
    """Return who is heard where, by interface; empty where `by_zone` does not hold."""
    if not by_zone(section):
        return ()
    zones = section.zones.values()
    names = {name for zone in zones for name in zone.interfaces} | {str(section.controller.interface)}
    return tuple(_on(name, section, around, local) for name in sorted(names))


def _on(interface: str, section: Section, around: Around, local: Local) -> Heard:
    found = [zone for zone in section.zones.values() if interface in zone.interfaces]
    texts = [text for zone in found for text in zone.addresses]
    open_ended = any(zone.names or not zone.addresses for zone in found)
    if local.gateways is None or open_ended or len(texts) > MAX_NETWORKS:
        return Heard(interface=interface, four=None, six=None)
    texts += [address for where, address in local.gateways if where == interface]
    texts += [pin.address for pin in section.neighbours if pin.interface == interface]
    if interface == section.controller.interface:
        texts += [endpoint.address for endpoint in around.controller]
    openings = [port for grant in around.grants for port in grant.ports]
    texts += [
        peer
        for port in openings
        for peer in port.peers
        if not port.interfaces or interface in port.interfaces
    ]
    return _narrowed(interface, [checked_network(text) for text in texts])


def _narrowed(interface: str, networks: Iterable[Address]) -> Heard:
    listed = list(networks)
    four = tuple(
        ipaddress.collapse_addresses([each for each in listed if isinstance(each, ipaddress.IPv4Network)])
    )
    six = tuple(
        ipaddress.collapse_addresses([each for each in listed if isinstance(each, ipaddress.IPv6Network)])
    )
    return Heard(
        interface=interface,
        four=None if any(not each.prefixlen for each in four) else four,
        six=None if any(not each.prefixlen for each in six) else six,
    )


def arp_table(section: Section, around: Around, local: Local) -> Table | None:
    """Return the table that holds ARP; None where nothing is narrowed."""
    found = heard(section, around, local)
    if not found:
        return None
    anybody = [f'"{each.interface}"' for each in found if each.four is None]
    some = [each for each in found if each.four is not None]
    patterns = section.containers.interfaces if section.containers else []
    elements = [f'"{each.interface}" . {_text(net)}' for each in some for net in each.four or ()]
    rules = [f"iifname {{ {', '.join(anybody)} }} accept"] if anybody else []
    rules += [f'iifname "{pattern}" accept' for pattern in patterns]
    rules += ["iifname . arp saddr ip @senders accept"] if elements else []
    if some:
        # RFC 5227, clause 1.1: a probe has no sender, so that it enters nobody's table.
        probed = ", ".join(f'"{each.interface}"' for each in some)
        rules.append(f"iifname {{ {probed} }} arp operation request arp saddr ip 0.0.0.0 accept")
    head = "type filter hook input priority 0; policy drop;"
    chain = Chain(name="input", rules=(*rules, 'counter name "drop_arp" drop'), head=head)
    senders = Set(name="senders", kind="ifname . ipv4_addr", elements=tuple(elements), interval=True)
    return Table(
        name=TABLE,
        family="arp",
        sets=(senders,) if elements else (),
        chains=(chain,),
        counters=("drop_arp",),
    )


def render_arp(section: Section, around: Around, local: Local) -> str:
    """Return the batch that makes it anew; "" where nothing is narrowed."""
    table = arp_table(section, around, local)
    return "" if table is None else replacing([ARP]) + table.text()


def discovery(section: Section, around: Around, local: Local) -> Chain | None:
    """Return the chain that holds neighbour discovery; None where nothing is narrowed."""
    found = heard(section, around, local)
    if not found:
        return None
    patterns = section.containers.interfaces if section.containers else []
    rules = [f'iifname "{pattern}" goto {NEIGHBOURS.name}' for pattern in patterns]
    anybody = [f'"{each.interface}"' for each in found if each.six is None]
    rules += [f"iifname {{ {', '.join(anybody)} }} goto {NEIGHBOURS.name}"] if anybody else []
    for each in found:
        if each.six is None:
            continue
        known = [*ipaddress.collapse_addresses([*each.six, _LINK_LOCAL])]
        senders = [*ipaddress.collapse_addresses([*known, _UNSPECIFIED])]
        start = f'iifname "{each.interface}" '
        speaking = f"icmpv6 type nd-neighbor-advert {_TARGET} != {{ {', '.join(map(_hex, known))} }}"
        rules += [
            f"{start}{speaking} return",
            f"{start}ip6 saddr {{ {', '.join(map(_text, senders))} }} goto {NEIGHBOURS.name}",
        ]
    return Chain(name=IN, rules=tuple(rules))


def _text(network: Address) -> str:
    """Return a network as nft writes it: a single address without its length."""
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _hex(network: ipaddress.IPv6Network) -> str:
    return ranges_of(int(network.network_address), int(network.broadcast_address))
