"""Ends flows that are open: deletes their connection tracking entries and destroys their sockets.

Used after the cut table stands, so nothing it misses can pass; it makes the state say what the packets already do.
Refuses to touch loopback, listening sockets, and the flows to the controller.
Relies on: CAP_NET_ADMIN; CONFIG_INET_DIAG_DESTROY for sockets (absent: 0 are destroyed, the packets still die).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable

from agent.firewall import netlink
from agent.firewall.netlink import NFGENMSG_BYTES, SUBSYSTEM_CONNTRACK, Talk

Peer = tuple[str, int]
"""An IP address and a TCP port."""

_CT_GET = SUBSYSTEM_CONNTRACK << 8 | 1
_CT_DELETE = SUBSYSTEM_CONNTRACK << 8 | 2
_TUPLE_ORIG = 1
_CT_ZONE = 18
_CT_ID = 12
_NESTED = 0x8000

_DIAG_BY_FAMILY = 20
_DIAG_DESTROY = 21
_DIAG_REQUEST = struct.Struct("=BBBxI48x")
_DIAG_ID_AT, _DIAG_ID_BYTES = 4, 48
_STATES = 0xFFF & ~(1 << 10 | 1 << 6)
"""All but LISTEN (10) and TIME_WAIT (6)."""
_CONNECTED_UDP = 1 << 1


def flush_conntrack(talk: Talk, keep: Iterable[Peer]) -> int:
    """Delete every entry but those of loopback and those to `keep`; return how many went. Raises OSError.

    `talk` speaks NETLINK_NETFILTER in the network namespace that is meant.
    """
    kept = {(_packed(address), port) for address, port in keep}
    orders = []
    for message in talk.dump(_CT_GET, struct.pack("!BBH", socket.AF_UNSPEC, 0, 0)):
        found = netlink.attributes(message.payload[NFGENMSG_BYTES:])
        original = found.get(_TUPLE_ORIG, b"")
        source, destination, protocol, port = _tuple(original)
        if _is_loopback(source) or _is_loopback(destination):
            continue
        if protocol == socket.IPPROTO_TCP and (destination, port) in kept:
            continue
        again = message.payload[:NFGENMSG_BYTES] + netlink.attribute(_TUPLE_ORIG | _NESTED, original)
        for kind in (_CT_ID, _CT_ZONE):
            if kind in found:
                again += netlink.attribute(kind, found[kind])
        orders.append((_CT_DELETE, again))
    return talk.order(orders)


def kill_sockets(talk: Talk, keep: Iterable[Peer]) -> int:
    """Destroy every connected TCP and UDP socket but those of loopback and those to `keep`; return how many.

    `talk` speaks NETLINK_SOCK_DIAG in the network namespace that is meant. Raises OSError.
    """
    kept = {(_packed(address), port) for address, port in keep}
    orders = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol, states in ((socket.IPPROTO_TCP, _STATES), (socket.IPPROTO_UDP, _CONNECTED_UDP)):
            request = _DIAG_REQUEST.pack(family, protocol, 0, states)
            try:
                found = list(talk.dump(_DIAG_BY_FAMILY, request))
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
                    continue  # the kernel has no such diagnosis; the packets die all the same
                raise
            orders += [
                (_DIAG_DESTROY, _destroy(family, protocol, states, message.payload))
                for message in found
                if not _spared(family, protocol, message.payload, kept)
            ]
    return talk.order(orders)


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _is_loopback(packed: bytes) -> bool:
    return len(packed) in {4, 16} and ipaddress.ip_address(packed).is_loopback


def _tuple(original: bytes) -> tuple[bytes, bytes, int, int]:
    """Return (source, destination, IP protocol, destination port) of CTA_TUPLE_ORIG."""
    parts = netlink.attributes(original)
    address = netlink.attributes(parts.get(1, b""))
    transport = netlink.attributes(parts.get(2, b""))
    source = address.get(1) or address.get(3, b"")
    destination = address.get(2) or address.get(4, b"")
    protocol = (transport.get(1) or b"\0")[0]
    return source, destination, protocol, int.from_bytes(transport.get(3, b""), "big")


def _spared(family: int, protocol: int, diag: bytes, kept: set[tuple[bytes, int]]) -> bool:
    """Tell whether a socket (struct inet_diag_msg) is to be left alone."""
    _, port = struct.unpack_from("!HH", diag, _DIAG_ID_AT)
    length = 4 if family == socket.AF_INET else 16
    source = _plain(diag[_DIAG_ID_AT + 4 : _DIAG_ID_AT + 4 + length])
    destination = _plain(diag[_DIAG_ID_AT + 20 : _DIAG_ID_AT + 20 + length])
    if _is_loopback(source) or _is_loopback(destination):
        return True
    return protocol == socket.IPPROTO_TCP and (destination, port) in kept


def _plain(packed: bytes) -> bytes:
    """Return the IPv4 address of a mapped one (a dual-stack socket shows ::ffff:10.0.0.1)."""
    mapped = ipaddress.IPv6Address(packed).ipv4_mapped if len(packed) == 16 else None
    return mapped.packed if mapped is not None else packed


def _destroy(family: int, protocol: int, states: int, diag: bytes) -> bytes:
    head = struct.pack("=BBBxI", family, protocol, 0, states)
    return head + diag[_DIAG_ID_AT : _DIAG_ID_AT + _DIAG_ID_BYTES]
