"""What rules and cut say alike: names of our tables, sets of a zone and of the controller, matches, neighbours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from agent.firewall.model import Model, Service, Zone
from agent.firewall.section import PortRange
from agent.firewall.tables import Chain, Set

TABLE = "ringfence"
CUT_TABLE = "ringfence_cut"
ASKED_MARK = 0xFFFE_0000
"""Upper half of the connection mark of what a limited rule let in and nobody has answered; no rules' own number."""
GUARD_TABLE = "ringfence_guard"
FAST_TABLE = "ringfence_fast"
OWN_TABLES = (("inet", TABLE), ("inet", CUT_TABLE))
"""The tables that a batch of rules replaces, (family, name)."""
_OURS = re.compile(r"ringfence(_[A-Za-z0-9_.-]*)?")

LOOPBACK = 1
"""Its index in every network namespace. Its name is anybody's choice, and a card may take it."""

STATELESS = -310
"""Before raw (-300) and connection tracking (-200): nothing has classified the packet yet."""

_FOUR, _SIX = re.compile(r"@(zone|name)4_"), re.compile(r"@(zone|name)6_")

NEIGHBOURS = Chain(
    name="neighbours",
    rules=(
        "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1 accept",
    ),
)


def is_ours(name: str) -> bool:
    """Tell whether a table is ours: these names are kept for us in every family, also those of earlier versions."""
    return _OURS.fullmatch(name) is not None


def controller_sets(meant: Model) -> list[Set]:
    """Return the sets of the controller's addresses and ports."""
    return [
        Set(name=f"controller{version}", kind=f"ipv{version}_addr . inet_service", elements=elements)
        for version, elements in meant.controller
    ]


def zone_sets(zone: Zone) -> list[Set]:
    """Return the sets of a zone's addresses, one for each family that it has, and of its names and MAC addresses."""
    found = [
        Set(
            name=f"zone{version}_{zone.name}",
            kind=f"ipv{version}_addr",
            elements=addresses.elements,
            interval=addresses.interval,
        )
        for version, addresses in ((4, zone.four), (6, zone.six))
        if addresses.elements
    ]
    if zone.named:
        found += [
            Set(
                name=f"name{version}_{zone.name}",
                kind=f"ipv{version}_addr",
                elements=tuple(each for each, _ in addresses),
                seconds=tuple(left_s for _, left_s in addresses),
                live=True,
                timeout=True,
            )
            for version, addresses in ((4, zone.four_named), (6, zone.six_named))
        ]
    if zone.macs:
        found.append(Set(name=f"mac_{zone.name}", kind="ether_addr", elements=zone.macs))
    return found


def zone_matches(zone: Zone, interface_key: str, address_key: str) -> list[str]:
    """Return one match for each set of addresses of the zone; `address_key` holds a place for "ip" or "ip6"."""
    return [interface_match(zone, interface_key) + match for match in address_matches(zone, address_key)]


def address_matches(zone: Zone, address_key: str) -> list[str]:
    """Return the same without the zone's interfaces; "" alone where these decide."""
    if zone.anywhere:
        return [""]
    found = [("ip", 4, "zone", bool(zone.four.elements)), ("ip6", 6, "zone", bool(zone.six.elements))]
    found += [(family, version, "name", zone.named) for family, version in (("ip", 4), ("ip6", 6))]
    return [
        f"{address_key.format(family)} @{kind}{version}_{zone.name} "
        for family, version, kind, there in found
        if there
    ]


def interface_match(zone: Zone, interface_key: str) -> str:
    """Return the match of a zone's interfaces; "" for any."""
    if not zone.interfaces:
        return ""
    names = ", ".join(f'"{each}"' for each in zone.interfaces)
    return f"{interface_key} {{ {names} }} "


def mixes_families(match: str) -> bool:
    """Tell whether a match asks for both IPv4 and IPv6, which no packet is."""
    return bool(_FOUR.search(match) and _SIX.search(match))


def port_set(name: str, ports: Iterable[PortRange]) -> Set:
    """Return a set of ports."""
    listed = tuple(ports)
    interval = any(low != high for low, high in listed)
    return Set(name=name, kind="inet_service", elements=tuple(ranges(listed)), interval=interval)


def ranges(ports: Iterable[PortRange]) -> list[str]:
    """Return ports as nft writes them."""
    return [str(low) if low == high else f"{low}-{high}" for low, high in ports]


def service_rules(name: str, service: Service, port_key: str, verdict: str) -> tuple[list[Set], list[str]]:
    """Return the port sets and the rules that give `verdict` to what the service names, each with its counter."""
    if service.everything:
        return [], [f'counter name "{name}_any" {verdict}']
    sets, lines = [], []
    for protocol, ports in service.ports():
        sets.append(port_set(f"{name}_{protocol}", ports))
        asked = f"meta l4proto {protocol} {port_key} @{name}_{protocol}"
        lines.append(f'{asked} counter name "{name}_{protocol}" {verdict}')
    if service.ping:
        for family in ("icmp", "icmpv6"):
            lines.append(f'{family} type {{ echo-reply, echo-request }} counter name "{name}_ping" {verdict}')
    return sets, lines


def ranges_of(first: int, last: int) -> str:
    """Return two IPv6 addresses as nft writes a range of raw bytes."""
    return f"0x{first:032x}" if first == last else f"0x{first:032x}-0x{last:032x}"


def sender_match(zone: Zone) -> str:
    """Return the match of a zone's MAC addresses; "" for any."""
    return f"ether saddr @mac_{zone.name} " if zone.macs else ""
