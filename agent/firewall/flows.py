"""Ends flows that are open: deletes their connection tracking entries and destroys their sockets.

Used after the cut table stands, so nothing it misses can pass; it makes the state say what the packets already do.
Refuses to touch loopback, listening sockets, and the flows that are kept (`agent.firewall.kept`).
Relies on: CAP_NET_ADMIN; CONFIG_INET_DIAG_DESTROY for sockets (absent: 0 are destroyed, the packets still die).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from typing import NamedTuple

from agent.firewall import netlink, routes
from agent.firewall.kept import Flow, Kept
from agent.firewall.netlink import NFGENMSG_BYTES, SUBSYSTEM_CONNTRACK, Talk

_CT_GET = SUBSYSTEM_CONNTRACK << 8 | 1
_CT_DELETE = SUBSYSTEM_CONNTRACK << 8 | 2
_CT_CHANGE = SUBSYSTEM_CONNTRACK << 8
"""IPCTNL_MSG_CT_NEW: without NLM_F_CREATE it changes what is there."""
_CT_MARK, _CT_MARK_MASK = 8, 21
_OURS = 0xFFFF0000
"""The half of a connection mark that is ours."""
_TUPLE_ORIG = 1
_TUPLE_REPLY = 2
_CT_ZONE = 18
_CT_ID = 12
_NESTED = 0x8000

_DIAG_DESTROY = 21
_DIAG_ID_AT, _DIAG_ID_BYTES = 4, 48
_STATES = 0xFFF & ~(1 << 10 | 1 << 6)
"""All but LISTEN (10) and TIME_WAIT (6)."""
_CONNECTED_UDP = 1 << 1


class Here:
    """What flows are judged by of one network namespace: its addresses, and which way leads where. Asked for once each.

    `talk` speaks NETLINK_ROUTE in that namespace, which is the calling thread's own. Methods raise OSError.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._own: frozenset[bytes] | None = None
        self._ways: dict[bytes, str] = {}

    def has(self, address: bytes) -> bool:
        """Tell whether an address is one of the namespace's own."""
        if self._own is None:
            self._own = routes.addresses(self._talk)
        return address in self._own

    def interface_to(self, address: bytes) -> str:
        """Return the interface that leads to an address; "" where none does."""
        if address not in self._ways:
            hop = routes.next_hop(self._talk, str(ipaddress.ip_address(address)))
            self._ways[address] = ""
            if hop is not None:
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    self._ways[address] = socket.if_indextoname(hop.interface)
        return self._ways[address]


def flush_conntrack(talk: Talk, here: Here, kept: Kept) -> int:
    """Delete every entry but those of loopback and those of `kept`; return how many went. Raises OSError.

    `talk` speaks NETLINK_NETFILTER in the network namespace that is meant.
    """
    orders = []
    for message in talk.dump(_CT_GET, struct.pack("!BBH", socket.AF_UNSPEC, 0, 0)):
        found = netlink.attributes(message.payload[NFGENMSG_BYTES:])
        original = found.get(_TUPLE_ORIG, b"")
        asked = _tuple(original)
        if _is_loopback(asked.source) or _is_loopback(asked.destination):
            continue
        flow = _tracked(asked, _tuple(found.get(_TUPLE_REPLY, b"")), here)
        if flow is not None and kept.spares(flow, here.interface_to):
            continue
        again = message.payload[:NFGENMSG_BYTES] + netlink.attribute(_TUPLE_ORIG | _NESTED, original)
        for kind in (_CT_ID, _CT_ZONE):
            if kind in found:
                again += netlink.attribute(kind, found[kind])
        orders.append((_CT_DELETE, again))
    return talk.order(orders)


def judge_again(talk: Talk, mark: int) -> int:
    """Take their mark from the flows that carry `mark` in its upper half: each is judged by the rules with its next packet. Return how many.

    `talk` as for `flush_conntrack`. Raises OSError.
    """
    wanted = netlink.attribute(_CT_MARK, struct.pack("!I", mark))
    mask = netlink.attribute(_CT_MARK_MASK, struct.pack("!I", _OURS))
    none = netlink.attribute(_CT_MARK, struct.pack("!I", 0)) + mask
    orders = []
    for message in talk.dump(_CT_GET, struct.pack("!BBH", socket.AF_UNSPEC, 0, 0) + wanted + mask):
        found = netlink.attributes(message.payload[NFGENMSG_BYTES:])
        held = int.from_bytes(found.get(_CT_MARK, b""), "big")
        if held & _OURS == mark:  # also from a kernel that does not filter
            again = message.payload[:NFGENMSG_BYTES]
            again += netlink.attribute(_TUPLE_ORIG | _NESTED, found.get(_TUPLE_ORIG, b"")) + none
            again += netlink.attribute(_CT_ZONE, found[_CT_ZONE]) if _CT_ZONE in found else b""
            orders.append((_CT_CHANGE, again))
    return talk.order(orders)


def kill_sockets(talk: Talk, here: Here, kept: Kept) -> int:
    """Destroy every connected TCP and UDP socket but those of loopback and those of `kept`; return how many.

    `talk` speaks NETLINK_SOCK_DIAG in the network namespace that is meant. Raises OSError.
    """
    orders = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol, states in ((socket.IPPROTO_TCP, _STATES), (socket.IPPROTO_UDP, _CONNECTED_UDP)):
            try:
                found = list(netlink.sockets(talk, family, protocol, states))
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
                    continue  # the kernel has no such diagnosis; the packets die all the same
                raise
            orders += [
                (_DIAG_DESTROY, _destroy(family, protocol, states, diag))
                for diag in found
                if not _spared(family, protocol, diag, here, kept)
            ]
    return talk.order(orders)


def _is_loopback(packed: bytes) -> bool:
    return len(packed) in {4, 16} and ipaddress.ip_address(packed).is_loopback


class _Tuple(NamedTuple):
    source: bytes
    destination: bytes
    protocol: int
    from_port: int
    to_port: int


def _tuple(nested: bytes) -> _Tuple:
    """Return what a CTA_TUPLE says; ports of 0 where the protocol has none."""
    parts = netlink.attributes(nested)
    address = netlink.attributes(parts.get(1, b""))
    transport = netlink.attributes(parts.get(2, b""))
    return _Tuple(
        address.get(1) or address.get(3, b""),
        address.get(2) or address.get(4, b""),
        (transport.get(1) or b"\0")[0],
        int.from_bytes(transport.get(2, b""), "big"),
        int.from_bytes(transport.get(3, b""), "big"),
    )


def _tracked(asked: _Tuple, answered: _Tuple, here: Here) -> Flow | None:
    """Return the flow of an entry; None for what passes through this node, and for what NAT leads elsewhere."""
    if (answered.source, answered.from_port) != (asked.destination, asked.to_port):
        return None
    if here.has(asked.source):
        return Flow(asked.protocol, asked.from_port, asked.destination, asked.to_port, "here")
    if here.has(asked.destination):
        return Flow(asked.protocol, asked.to_port, asked.source, asked.from_port, "there")
    return None


def _spared(family: int, protocol: int, diag: bytes, here: Here, kept: Kept) -> bool:
    """Tell whether a socket (struct inet_diag_msg) is to be left alone."""
    local_port, remote_port = struct.unpack_from("!HH", diag, _DIAG_ID_AT)
    length = 4 if family == socket.AF_INET else 16
    local = _plain(diag[_DIAG_ID_AT + 4 : _DIAG_ID_AT + 4 + length])
    remote = _plain(diag[_DIAG_ID_AT + 20 : _DIAG_ID_AT + 20 + length])
    if _is_loopback(local) or _is_loopback(remote):
        return True
    return kept.spares(Flow(protocol, local_port, remote, remote_port), here.interface_to)


def _plain(packed: bytes) -> bytes:
    """Return the IPv4 address of a mapped one (a dual-stack socket shows ::ffff:10.0.0.1)."""
    mapped = ipaddress.IPv6Address(packed).ipv4_mapped if len(packed) == 16 else None
    return mapped.packed if mapped is not None else packed


def _destroy(family: int, protocol: int, states: int, diag: bytes) -> bytes:
    head = struct.pack("=BBBxI", family, protocol, 0, states)
    return head + diag[_DIAG_ID_AT : _DIAG_ID_AT + _DIAG_ID_BYTES]
