"""What rules and cut say alike: names of our tables, sets of a zone and of the controller, matches, neighbours. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agent.firewall.model import Model, Zone
from agent.firewall.section import PortRange
from agent.firewall.tables import Chain, Set

TABLE = "ringfence"
CUT_TABLE = "ringfence_cut"
OWN_TABLES = (("inet", TABLE), ("inet", CUT_TABLE))
"""Every table that is ours, (family, name); all that asks "is it ours?" asks here."""

STATELESS = -310
"""Before raw (-300) and connection tracking (-200): nothing has classified the packet yet."""

NEIGHBOURS = Chain(
    name="neighbours",
    rules=(
        "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1 accept",
    ),
)


def controller_sets(meant: Model) -> list[Set]:
    """Return the sets of the controller's addresses and ports."""
    return [
        Set(name=f"controller{version}", kind=f"ipv{version}_addr . inet_service", elements=elements)
        for version, elements in meant.controller
    ]


def zone_sets(zone: Zone) -> list[Set]:
    """Return the sets of a zone's addresses, one for each family that it has."""
    return [
        Set(
            name=f"zone{version}_{zone.name}",
            kind=f"ipv{version}_addr",
            elements=addresses.elements,
            interval=addresses.interval,
        )
        for version, addresses in ((4, zone.four), (6, zone.six))
        if addresses.elements
    ]


def zone_matches(zone: Zone, interface_key: str, address_key: str) -> list[str]:
    """Return one match for each family of the zone; `address_key` holds a place for "ip" or "ip6"."""
    start = ""
    if zone.interfaces:
        names = ", ".join(f'"{each}"' for each in zone.interfaces)
        start = f"{interface_key} {{ {names} }} "
    if zone.anywhere:
        return [start]
    return [
        f"{start}{address_key.format(family)} @zone{version}_{zone.name} "
        for family, version, addresses in (("ip", 4, zone.four), ("ip6", 6, zone.six))
        if addresses.elements
    ]


def port_set(name: str, ports: Iterable[PortRange]) -> Set:
    """Return a set of ports."""
    listed = tuple(ports)
    interval = any(low != high for low, high in listed)
    return Set(name=name, kind="inet_service", elements=tuple(ranges(listed)), interval=interval)


def ranges(ports: Iterable[PortRange]) -> list[str]:
    """Return ports as nft writes them."""
    return [str(low) if low == high else f"{low}-{high}" for low, high in ports]
