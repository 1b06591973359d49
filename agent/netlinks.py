"""Network interfaces as the kernel lists them (rtnetlink), with driver and place, and the way to set one down. Part of the gate `agent.host`.

Asks in the network namespace of the thread that calls. Decides nothing; raises OSError for what the kernel refuses.
Relies on: uapi/linux/rtnetlink.h, if_link.h, ethtool.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from agent.firewall.netlink import Talk, attribute, attributes
from agent.proc import printable

_NETLINK_ROUTE = 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_GETROUTE = 16, 18, 26
_ROUTE = struct.Struct("=BBBBBBBBI")
"""Family, length of the destination, and what is not asked for."""
_RTA_DST, _RTA_OIF = 1, 4
_IFINFO = struct.Struct("=BxHiII")
"""Family, hardware type, index, flags, which flags are meant."""
_IFF_UP = 1
_ADDRESS, _NAME, _BELOW, _MASTER, _LINKINFO = 1, 3, 5, 10, 18
_PROMISCUITY, _OTHER_NAMESPACE, _PERMANENT, _PARENT = 30, 37, 54, 56
_INFO_KIND = 1
_ARPHRD_LOOPBACK = 772
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_DRVINFO_BYTES = 196


class Link(NamedTuple):
    """One network interface."""

    number: int
    """Its index in the kernel."""
    name: str
    mac: str
    """As it is used now; empty where there is none."""
    permanent: str
    """As the hardware has it; empty where the kernel does not tell."""
    kind: str
    """Of one made by software: `veth`, `bridge`, `vlan`, `wireguard`. Empty for hardware."""
    driver: str
    place: str
    """Where its hardware is: PCI address or USB interface, empty for software."""
    up: bool
    promiscuous: bool
    loopback: bool
    below: int
    """Number of the one that it stands on, as a VLAN on its port; 0 for none here."""
    master: int
    """Number of the bridge or bond that it is a port of; 0 for none."""

    def describe(self) -> str:
        """Return it in words."""
        what = self.kind or self.driver or "unknown kind"
        place = f" at {self.place}" if self.place else ""
        return f"{what}{place}, {self.mac or 'no address'}, {'up' if self.up else 'down'}"


class Links:
    """The interfaces of the calling thread's network namespace."""

    def all(self) -> list[Link]:
        """Return every interface, by index. Raises OSError."""
        talk = Talk(_NETLINK_ROUTE)
        try:
            found = list(talk.dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)))
        finally:
            talk.close()
        return sorted(_link(message.payload) for message in found if message.kind == _RTM_NEWLINK)

    def towards(self, addresses: Iterable[str]) -> frozenset[int]:
        """Return the numbers of the interfaces that the way to some addresses goes over: VLANs, their ports, and the ports of bridges.

        Empty where there is no route. Raises OSError.
        """
        needed: set[int] = set()
        talk = Talk(_NETLINK_ROUTE)
        try:
            for text in addresses:
                address = ipaddress.ip_address(text)
                family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                question = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
                try:
                    answer = talk.ask(_RTM_GETROUTE, question + attribute(_RTA_DST, address.packed))
                except OSError:  # no route
                    continue
                found = attributes(answer.payload[_ROUTE.size :]).get(_RTA_OIF, b"")
                needed.add(int.from_bytes(found, "little"))
        finally:
            talk.close()
        links = self.all()
        while True:
            more = {each.below for each in links if each.number in needed}
            more |= {each.number for each in links if each.master in needed}
            if more - {0} <= needed:
                return frozenset(needed)
            needed |= more - {0}

    def set_down(self, link: Link) -> None:
        """Set one down. Raises OSError if the kernel refuses; nothing happens to another that has its index by now."""
        if next((each.name for each in self.all() if each.number == link.number), None) != link.name:
            return
        self._flag(link.number, 0)

    def set_up(self, name: str) -> None:
        """Set one up again by name; nothing happens if it has gone. Raises OSError."""
        number = next((each.number for each in self.all() if each.name == name), None)
        if number is not None:
            self._flag(number, _IFF_UP)

    def _flag(self, number: int, flags: int) -> None:
        talk = Talk(_NETLINK_ROUTE)
        try:
            if not talk.order([(_RTM_NEWLINK, _IFINFO.pack(0, 0, number, flags, _IFF_UP))]):
                raise OSError(errno.EPERM, "the kernel refused", f"interface {number}")
        finally:
            talk.close()


def _link(payload: bytes) -> Link:
    _, hardware, number, flags, _ = _IFINFO.unpack_from(payload)
    found = attributes(payload[_IFINFO.size :])
    raw_name = found.get(_NAME, b"").rstrip(b"\0")
    mac = found.get(_ADDRESS, b"")
    return Link(
        number=number,
        name=_text(raw_name),
        mac=mac.hex(":") if any(mac) else "",
        permanent=found.get(_PERMANENT, b"").hex(":"),
        kind=_text(attributes(found.get(_LINKINFO, b"")).get(_INFO_KIND, b"").rstrip(b"\0")),
        driver=_driver(raw_name),
        place=_text(found.get(_PARENT, b"").rstrip(b"\0")),
        up=bool(flags & _IFF_UP),
        promiscuous=int.from_bytes(found.get(_PROMISCUITY, b""), "little") > 0,
        loopback=hardware == _ARPHRD_LOOPBACK,
        below=0 if _OTHER_NAMESPACE in found else int.from_bytes(found.get(_BELOW, b""), "little"),
        master=int.from_bytes(found.get(_MASTER, b""), "little"),
    )


def _driver(name: bytes) -> str:
    """Return the driver's name (ioctl SIOCETHTOOL, ETHTOOL_GDRVINFO); empty where it tells none."""
    info = ctypes.create_string_buffer(struct.pack("=I", _ETHTOOL_GDRVINFO), _DRVINFO_BYTES)
    request = struct.pack("16sP16x", name, ctypes.addressof(info))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return ""
    return _text(info.raw[4:36].partition(b"\0")[0])


def _text(raw: bytes) -> str:
    return printable(os.fsdecode(raw))
