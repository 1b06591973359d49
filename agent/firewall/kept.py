"""Which open flows isolation leaves alone: those to the controller, and those that the signed isolated posture names. Pure.

The cut tables let the same packets pass (`agent.firewall.cut`); here it is said of sockets and of entries of connection
tracking, so that an open connection to a safety controller or a payment terminal lives on and nothing else does.

Refuses a flow whose far end lies behind another interface than its zone names, and one that NAT leads elsewhere (the
caller gives no such flow). MAC addresses are not asked for: the rules judge each packet by them.
"""

from __future__ import annotations

import ipaddress
import socket
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from agent.firewall.model import Addresses, Model, Peer, Zone
from agent.firewall.section import PortRange

_PING = frozenset({socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6})
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


class Flow(NamedTuple):
    """One open flow between this node and somebody. Addresses are packed, 4 or 16 bytes."""

    protocol: int
    """Of IP."""
    local_port: int
    remote: bytes
    remote_port: int
    begun: Literal["here", "there", "unknown"] = "unknown"
    """By whom; of a socket the kernel does not say."""


@dataclass(frozen=True)
class _Party:
    """One zone, and what it may still ask for, or be asked for."""

    begun: Literal["here", "there"]
    zone: Zone
    everything: bool
    ping: bool
    ports: dict[int, tuple[PortRange, ...]]

    def serves(self, flow: Flow) -> bool:
        """Tell whether the flow is of what is named, by its protocol and port."""
        if flow.begun not in (self.begun, "unknown"):
            return False
        if self.everything or (self.ping and flow.protocol in _PING):
            return True
        port = flow.remote_port if self.begun == "here" else flow.local_port
        return any(low <= port <= high for low, high in self.ports.get(flow.protocol, ()))

    def holds(self, remote: bytes) -> bool:
        """Tell whether an address is one of the zone's."""
        zone = self.zone
        if zone.anywhere:
            return True
        still, named = (zone.four, zone.four_named) if len(remote) == 4 else (zone.six, zone.six_named)
        return _within(still, remote) or any(_packed(address) == remote for address, _ in named)


class Kept:
    """What an isolated node keeps."""

    def __init__(self, meant: Model) -> None:
        """`meant` is the model of posture `isolated`."""
        self._controller = frozenset(
            (_packed(address), int(port))
            for _, elements in meant.controller
            for address, _, port in (element.partition(" . ") for element in elements)
        )
        self._parties = (*_parties("there", meant.kept_inbound), *_parties("here", meant.kept_outbound))

    def spares(self, flow: Flow, interface_to: Callable[[bytes], str]) -> bool:
        """Tell whether a flow is to be left alone. `interface_to` tells by which interface an address is reached."""
        if flow.protocol == socket.IPPROTO_TCP and (flow.remote, flow.remote_port) in self._controller:
            return flow.begun != "there"
        return any(
            party.serves(flow)
            and party.holds(flow.remote)
            and (not party.zone.interfaces or interface_to(flow.remote) in party.zone.interfaces)
            for party in self._parties
        )


def _parties(begun: Literal["here", "there"], peers: Iterable[Peer]) -> list[_Party]:
    return [
        _Party(
            begun,
            peer.zone,
            peer.service.everything,
            peer.service.ping,
            {_PROTOCOLS[name]: ports for name, ports in peer.service.ports()},
        )
        for peer in peers
    ]


def _within(addresses: Addresses, remote: bytes) -> bool:
    if not addresses.elements:
        return False
    starts, ends = _bounds(addresses)
    number = int.from_bytes(remote, "big")
    at = bisect_right(starts, number) - 1
    return at >= 0 and number <= ends[at]


@lru_cache(maxsize=64)
def _bounds(addresses: Addresses) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first and the last address of each element, in order; they do not overlap (`agent.firewall.model`)."""
    networks = sorted(map(ipaddress.ip_network, addresses.elements))  # of one family
    return (
        tuple(int(each.network_address) for each in networks),
        tuple(int(each.broadcast_address) for each in networks),
    )


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed
