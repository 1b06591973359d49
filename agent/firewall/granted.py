"""What open grants add to the rules: sets whose elements the kernel itself takes out when the time is over. Pure.

A grant's flows get a mark of their own, never the one that makes flows "established": each of their packets, both ways, is looked up
anew by its original tuple. So a connection that a grant let in dies with the set's element, also when the agent is dead.
One chain for each grant counts it and remembers who came; a full list of comers stops nobody.

Relies on: `agent.grants` having resolved names; at most `contract.grant.MAX_GRANTS` of them.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from agent.firewall.limit import SEEN
from agent.firewall.tables import Chain, Set
from agent.grants import OpenGrant, OpenPort

GRANTED = "0xffff0000"
"""The upper half of a granted flow's mark: no number of any rules, so never "established"; but seen to be let in by ours."""
MAX_SEEN = 64
"""Addresses that a grant's use is told of."""


class Granted(NamedTuple):
    """What open grants put into our table."""

    sets: list[Set]
    chains: list[Chain]
    to_input: list[str]
    to_output: list[str]


def granted(grants: tuple[OpenGrant, ...]) -> Granted:
    """Return sets, chains and the rules of the base chains, in the grants' order."""
    out = Granted([], [], [], [])
    for grant in grants:
        if not grant.ports:
            continue
        out.sets.extend(seen_set(grant.id, version) for version in (4, 6))
        side = {port.inbound for port in grant.ports}
        out.chains.extend(_counting(grant.id, inbound) for inbound in sorted(side))
        for number, port in enumerate(grant.ports):
            _add(out, grant, number, port)
    return out


def seen_set(grant: int, version: int) -> Set:
    """Return the set in which the kernel notes who used a grant, with packets and bytes."""
    return Set(
        name=f"{SEEN}{version}_grant{grant}",
        kind=f"ipv{version}_addr",
        dynamic=f"size {MAX_SEEN}; counter;",
    )


def _counting(grant: int, inbound: bool) -> Chain:
    side = "saddr" if inbound else "daddr"
    rules = tuple(
        f"update @{seen_set(grant, version).name} {{ ct original {family} {side} }}"
        for version, family in ((4, "ip"), (6, "ip6"))
    )
    return Chain(
        name=f"grant{grant}_{'in' if inbound else 'out'}",
        rules=(*rules, f"ct mark set ct mark & 0x0000ffff | {GRANTED} counter accept"),
    )


def _add(out: Granted, grant: OpenGrant, number: int, port: OpenPort) -> None:
    name = f"grant{grant.id}_{number}"
    out.sets.append(Set(name=f"{name}_ports", kind="inet_service", elements=tuple(map(str, port.ports))))
    names = ", ".join(f'"{each}"' for each in port.interfaces)
    chain = f"grant{grant.id}_{'in' if port.inbound else 'out'}"
    side = "saddr" if port.inbound else "daddr"
    for version, family in ((4, "ip"), (6, "ip6")):
        networks = [net for net in map(ipaddress.ip_network, port.peers) if net.version == version]
        if not networks:
            continue
        merged = list(ipaddress.collapse_addresses(networks))  # type: ignore[type-var]
        single = all(net.prefixlen == net.max_prefixlen for net in merged)
        elements = tuple(f"{net.network_address if single else net}" for net in merged)
        out.sets.append(
            Set(
                name=f"{name}_peers{version}",
                kind=f"ipv{version}_addr",
                elements=elements,
                interval=not single,
                timeout=True,
                seconds=(grant.timeout_s,) * len(elements),
            )
        )
        for direction in ("original", "reply"):
            arrives = port.inbound == (direction == "original")
            key = "iifname" if arrives else "oifname"
            way = f"ct direction {direction} " + (f"{key} {{ {names} }} " if names else "")
            peer = f"ct original {family} {side} @{name}_peers{version}"
            into = out.to_input if arrives else out.to_output
            into.append(
                f"{way}meta l4proto {port.protocol} {peer} ct original proto-dst @{name}_ports jump {chain}"
            )
            # Errors about such a flow, "too big" above all: they have its original addresses, but no ports of it.
            into.append(f"{way}ct state related meta l4proto {{ icmp, ipv6-icmp }} {peer} jump {chain}")
