"""Permanent neighbour entries: what `[[firewall.neighbours]]` pins is in the kernel's table and nobody's word changes it.

Ours carry a protocol number of their own, so that what an earlier baseline pinned is found and taken out. An interface
that is not there is no difference: its entry is made when it appears.
Refuses to touch entries that others made, but for the addresses that are pinned. Relies on: rtnetlink(7), kernel 5.2
for NDA_PROTOCOL.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agent.firewall import netlink
from agent.firewall.netlink import Talk
from agent.firewall.section import Neighbour
from agent.probes import Difference

PREFIX = "neighbour:"
_NEW, _DELETE, _GET = 28, 29, 30
_CREATE_OR_REPLACE = 0x400 | 0x100
_NDMSG = struct.Struct("=BxxxiHBB")
_ADDRESS, _MAC, _PROTOCOL = 1, 2, 12
_PERMANENT = 0x80
_OURS = 0x72
"""Free in /etc/iproute2/rt_protos."""


class Entry(NamedTuple):
    """One entry of the kernel's neighbour table."""

    interface: int
    address: str
    mac: str
    permanent: bool
    ours: bool

    @property
    def found(self) -> str:
        """Return what it says, for people."""
        return self.mac if self.permanent else f"{self.mac or 'nobody'}, not permanent"


def differences(talk: Talk, pins: Sequence[Neighbour]) -> list[Difference]:
    """Return what differs from `pins`. Raises OSError."""
    out = []
    entries = {(each.interface, each.address): each for each in _entries(talk)}
    wanted: set[tuple[int, str]] = set()
    for pin, index, address in _present(pins):
        wanted.add((index, address))
        entry = entries.get((index, address))
        if entry is None or not (entry.permanent and entry.ours and entry.mac == pin.mac):
            found = "absent" if entry is None else entry.found
            out.append(Difference(f"{PREFIX}{pin.interface} {address}", f"{pin.mac}, pinned", found))
    for (index, address), entry in sorted(entries.items()):
        if entry.ours and (index, address) not in wanted:
            out.append(Difference(f"{PREFIX}{_name(index)} {address}", "absent", entry.found))
    return out


def repair(talk: Talk, pins: Sequence[Neighbour], keys: Iterable[str]) -> None:
    """Make or take out the entries that `keys` name. Raises OSError."""
    wanted = {f"{PREFIX}{pin.interface} {address}": (pin, index) for pin, index, address in _present(pins)}
    for key in keys:
        interface, _, address = key.removeprefix(PREFIX).partition(" ")
        if key in wanted:
            pin, index = wanted[key]
            body = _message(index, address) + netlink.attribute(_MAC, bytes.fromhex(pin.mac.replace(":", "")))
            body += netlink.attribute(_PROTOCOL, bytes([_OURS]))
            talk.tell(_NEW, body, _CREATE_OR_REPLACE)
            continue
        with contextlib.suppress(OSError):  # the interface or the entry has gone
            talk.tell(_DELETE, _message(socket.if_nametoindex(interface), address))


def _present(pins: Iterable[Neighbour]) -> list[tuple[Neighbour, int, str]]:
    """Return the pins whose interface is there, with its index and the address in one spelling."""
    numbers = {name: index for index, name in socket.if_nameindex()}
    return [
        (pin, numbers[pin.interface], str(ipaddress.ip_address(pin.address.partition("/")[0])))
        for pin in pins
        if pin.interface in numbers
    ]


def _message(index: int, address: str) -> bytes:
    packed = ipaddress.ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return _NDMSG.pack(family, index, _PERMANENT, 0, 0) + netlink.attribute(_ADDRESS, packed)


def _entries(talk: Talk) -> list[Entry]:
    found = []
    for message in talk.dump(_GET, _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, index, state, _, _ = _NDMSG.unpack_from(message.payload)
        told = netlink.attributes(message.payload[_NDMSG.size :])
        address = told.get(_ADDRESS, b"")
        if family not in (socket.AF_INET, socket.AF_INET6) or len(address) not in (4, 16):
            continue
        found.append(
            Entry(
                interface=index,
                address=str(ipaddress.ip_address(address)),
                mac=told.get(_MAC, b"").hex(":"),
                permanent=bool(state & _PERMANENT),
                ours=told.get(_PROTOCOL) == bytes([_OURS]),
            )
        )
    return found


def _name(index: int) -> str:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index)
    return str(index)
