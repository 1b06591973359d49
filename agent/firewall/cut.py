"""The table that stands only in posture `isolated`, as nftables wants it. Pure.

It drops, without looking at connection tracking, everything but the controller and what the signed posture names,
so that flows which were open before die at commit.
"""

from __future__ import annotations

from agent.firewall.match import (
    CUT_TABLE,
    LOOPBACK,
    NEIGHBOURS,
    STATELESS,
    controller_sets,
    ranges,
    zone_matches,
    zone_sets,
)
from agent.firewall.model import Model, Service
from agent.firewall.tables import Chain, Table


def cut_table(meant: Model) -> Table:
    """Return the cut table."""
    chains = [NEIGHBOURS]
    zones = {peer.zone.name: peer.zone for peer in (*meant.kept_inbound, *meant.kept_outbound)}
    for hook, interface_key, peer, remote, local in (
        ("prerouting", "iif", "saddr", "sport", "dport"),
        ("output", "oif", "daddr", "dport", "sport"),
    ):
        way = meant.controller_interface
        start = f'{interface_key}name "{way}" ' if way else ""
        lines = [f"{interface_key} {LOOPBACK} accept", "jump neighbours"]
        lines += [
            f"{start}{family} {peer} . tcp {remote} @controller{version} accept"
            for family, version in (("ip", 4), ("ip6", 6))
        ]
        for kept, port in ((meant.kept_inbound, local), (meant.kept_outbound, remote)):
            for each in kept:
                matches = zone_matches(each.zone, f"{interface_key}name", f"{{}} {peer}")
                lines += [
                    f"{match}{tail} accept"
                    for match in matches
                    for tail in _stateless(each.service, port)
                    if not (" ip saddr" in match or " ip daddr" in match) or "icmpv6" not in tail
                ]
        head = f"type filter hook {hook} priority {STATELESS}; policy drop;"
        chains.append(Chain(name=f"cut_{hook}", rules=(*lines, "counter drop"), head=head))
    sets = [*controller_sets(meant), *(part for name in sorted(zones) for part in zone_sets(zones[name]))]
    return Table(name=CUT_TABLE, sets=tuple(sets), chains=tuple(chains))


def _stateless(service: Service, port_key: str) -> list[str]:
    if service.everything:
        return ["counter"]
    if service.ping:
        kinds = "type { echo-reply, echo-request }"
        return [f"icmp {kinds}", f"icmpv6 {kinds}"]
    return [f"{protocol} {port_key} {{ {', '.join(ranges(ports))} }}" for protocol, ports in service.ports()]
