"""Interfaces and next hops of a network namespace, as the kernel tells them (rtnetlink(7)). Reads only.

Refuses nothing: an address that nobody has a route to has no next hop. Relies on: `Talk` over NETLINK_ROUTE, made in
the namespace that is meant.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from agent.firewall import netlink
from agent.firewall.netlink import Talk

NETLINK_ROUTE = 0
_GETLINK = 18
_GETADDR = 22
_GETROUTE = 26
_IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 5, 10, 18, 37
_INFO_KIND = 1
_NEXTHOP = struct.Struct("=HxxI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18
_LEADING_ON = {_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA}
_NO_WAY = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EINVAL, errno.EACCES, errno.EAFNOSUPPORT}
)


class Link(NamedTuple):
    """One interface."""

    number: int
    """Its index."""
    name: str
    kind: str
    """As `ip -d link` says it: veth, bridge, vlan; empty for a device of its own."""
    lower: int | None
    """Index of the interface below (VLAN, MACVLAN) or of the other end (veth)."""
    elsewhere: bool
    """`lower` is an index of another network namespace."""
    master: int | None
    """Bridge or bond that this is a port of."""


class Hop(NamedTuple):
    """Where a packet goes next."""

    address: str
    """The gateway, or the destination itself where it is on the link."""
    interface: int


def links(talk: Talk) -> list[Link]:
    """Return every interface, in the order of their indexes. Raises OSError."""
    found = []
    for message in talk.dump(_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        if len(message.payload) < _IFINFOMSG.size:
            continue
        number = _IFINFOMSG.unpack_from(message.payload)[2]
        told = netlink.attributes(message.payload[_IFINFOMSG.size :])
        info = netlink.attributes(told.get(_IFLA_LINKINFO, b""))
        found.append(
            Link(
                number=number,
                name=_text(told.get(_IFLA_IFNAME, b"")),
                kind=_text(info.get(_INFO_KIND, b"")),
                lower=_number(told, _IFLA_LINK),
                elsewhere=_IFLA_LINK_NETNSID in told,
                master=_number(told, _IFLA_MASTER),
            )
        )
    return sorted(found)


def next_hop(talk: Talk, address: str) -> Hop | None:
    """Return where a packet to `address` goes next; None where there is no way. Raises OSError."""
    packed = ipaddress.ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    question = _RTMSG.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + netlink.attribute(_RTA_DST, packed)
    try:
        answer = talk.ask(_GETROUTE, question)
    except OSError as error:
        if error.errno in _NO_WAY:
            return None
        raise
    told = netlink.attributes(answer.payload[_RTMSG.size :])
    interface = _number(told, _RTA_OIF)
    if interface is None:
        return None
    gateway = _gateway(told) or packed
    if len(gateway) not in (4, 16):
        return None
    return Hop(str(ipaddress.ip_address(gateway)), interface)


def addresses(talk: Talk) -> frozenset[bytes]:
    """Return every address of the namespace itself, packed. Raises OSError."""
    found = set()
    for message in talk.dump(_GETADDR, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        told = netlink.attributes(message.payload[_IFADDRMSG.size :])
        found.add(told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS, b""))
    return frozenset(found)


def gateways(talk: Talk) -> tuple[tuple[str, str], ...]:
    """Return (interface, address) of every gateway of the routes but link-local ones, sorted. Raises OSError."""
    found: set[tuple[int | None, bytes]] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in talk.dump(_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            told = netlink.attributes(message.payload[_RTMSG.size :])
            if told.keys() & _LEADING_ON:
                found.add((_number(told, _RTA_OIF), _gateway(told)))
                found |= _of_several(told.get(_RTA_MULTIPATH, b""))
    if not any(packed for _, packed in found):
        return ()
    names = dict(socket.if_nameindex())
    out = set()
    for at, packed in found:
        if at in names and len(packed) in (4, 16):
            address = ipaddress.ip_address(packed)
            if not address.is_link_local:
                out.add((names[at], str(address)))
    return tuple(sorted(out))


def _gateway(told: dict[int, bytes]) -> bytes:
    return told.get(_RTA_GATEWAY) or told.get(_RTA_VIA, b"")[2:]


def _of_several(hops: bytes) -> set[tuple[int | None, bytes]]:
    """Return the gateways of a route with several (struct rtnexthop, each followed by its attributes)."""
    found: set[tuple[int | None, bytes]] = set()
    at = 0
    while at + _NEXTHOP.size <= len(hops):
        length, interface = _NEXTHOP.unpack_from(hops, at)
        if length < _NEXTHOP.size:
            break
        found.add((interface, _gateway(netlink.attributes(hops[at + _NEXTHOP.size : at + length]))))
        at += (length + 3) & ~3
    return found


def beneath(links: Iterable[Link], indexes: Iterable[int]) -> set[int]:
    """Return these interfaces and all that carry them: ports of a bridge or bond, the device under a VLAN."""
    known = list(links)
    found, added = set(), set(indexes)
    while added:
        found |= added
        added = {each.number for each in known if each.master in found} | {
            each.lower for each in known if each.number in found and each.lower and not each.elsewhere
        }
        added -= found
    return found


def _number(told: dict[int, bytes], kind: int) -> int | None:
    value = told.get(kind, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else None


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")
