"""What one client may do at most, as nftables wants it: sets that packets fill, and the rules that ask them. Pure.

Counted is the side that asked (`ct original saddr`). Only a connection's beginning counts for the rate, and a flow that is
judged again after a change of rules does not. A client that the full set has no room for is turned away: when a
flood of made-up addresses fills it, those that are in it go on and nobody gets past the limit.
"""

from __future__ import annotations

from agent.firewall.match import ASKED_MARK
from agent.firewall.model import Limit
from agent.firewall.tables import Set

SEEN = "seen"
"""Every set that packets fill begins with this: what it holds is compared with nothing (`agent.firewall.compare`)."""
CLIENTS = 65_535
"""In one set. A client takes some 200 bytes of the kernel's memory."""
_FORGOTTEN_S = {"second": 60, "minute": 600, "hour": 7200}
"""A client that asks for nothing so long is no longer in the set: longer than its burst takes to fill up again."""


def limit_of(name: str, limit: Limit) -> tuple[list[Set], list[str]]:
    """Return the sets and the rules of the chain `name`, which ends in letting the packet in."""
    sets: list[Set] = []
    rules: list[str] = []
    for family, version, mask in (("ip", 4, "255.255.255.0"), ("ip6", 6, "ffff:ffff:ffff:ffff::")):
        client = f"ct original {family} saddr"
        start = f"meta nfproto ipv{version} "
        # A whole network counts by itself: the mask is part of the key.
        client = f"{client} & {mask}" if limit.network else client
        if limit.rate is not None:
            rate = f"{SEEN}{version}_{name}_rate"
            kept_s = _FORGOTTEN_S[limit.rate.partition("/")[2]]
            sets.append(_seen(rate, version, f"timeout {kept_s}s;", timeout=True))
            most = f"limit rate over {limit.rate} burst {limit.burst} packets"
            rules += _asked(f"{start}ct state new ", rate, client, most, f"{name}_over_rate")
        if limit.connections is not None:
            open_now = f"{SEEN}{version}_{name}_open"
            sets.append(_seen(open_now, version, "", timeout=False))
            most = f"ct count over {limit.connections}"
            rules += _asked(f"{start}ct state new ", open_now, client, most, f"{name}_over_connections")
    # Before it is answered it carries a mark of its own, for the guard: until then each datagram of a client counts.
    return sets, [
        *rules,
        f"ct state new ct mark set ct mark & 0x0000ffff | {ASKED_MARK:#010x} accept",
        "goto allow",
    ]


def _asked(start: str, where: str, client: str, most: str, counter: str) -> list[str]:
    return [
        f'{start}add @{where} {{ {client} {most} }} counter name "{counter}" drop',
        f'{start}{client} != @{where} counter name "{counter}" drop',
    ]


def _seen(name: str, version: int, more: str, *, timeout: bool) -> Set:
    kind = f"ipv{version}_addr"
    return Set(name=name, kind=kind, dynamic=f"size {CLIENTS}; {more}", timeout=timeout)
