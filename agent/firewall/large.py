"""Large sets of addresses, read and written element by element in the kernel's own bytes.

libnftables reads every element of a table to list one of its rules, and parses every element that it loads: with 10,000 addresses
that is 20 ms for each listing and 30 ms for each load, which the kernel itself does in 1.5 and 15. So what such a set should
hold is asked of the kernel once, where the wanted text was loaded in a throw-away namespace, as the bytes that the kernel
gives (NFT_MSG_GETSETELEM); what it holds is the same question asked here. Equal bytes are equal elements; what is
missing is put back as those very bytes, which the kernel takes as it gives them.

Only sets whose elements have a key and nothing else are treated so: no times, no counters, nothing that packets put in. Refuses to
say in words what it cannot read: whoever has to describe a difference lists that set by libnftables.
Relies on: `agent.firewall.netlink`; docs/adr/0035-large-sets.md.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from agent.firewall import netlink
from agent.firewall.compare import Canonical
from agent.firewall.tables import LARGE


class Held(NamedTuple):
    """What a large set holds."""

    elements: frozenset[bytes]
    """The kernel's attribute of each, padded."""
    listed: tuple[bytes, ...]
    """In the kernel's order, in which it takes them again: it looks for ranges that overlap while it does."""
    interval: bool
    """They are beginnings and ends of ranges."""


Elements = Mapping[str, Held]
"""By key ("inet ringfence set zone4_clients")."""

_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _FLAGS = 1, 3
_PLAIN = {frozenset({_KEY}), frozenset({_KEY, _FLAGS})}
"""A key, and at most the flag that a range ends there."""
_VALUE = 1
_FOUR_BYTES, _SIX_BYTES = 4, 16
_NESTED = 0x8000
_HEAD_BYTES = 4
_ELEMENTS_AT_ONCE = 1024
"""A list of elements is one attribute, of 64 KiB at most."""


def candidates(listed: Canonical) -> list[str]:
    """Return the keys of sets with many elements."""
    return [key for key, lines in listed.items() if " set " in key and len(lines) > LARGE]


def wanted(talk: netlink.Talk, listed: Canonical) -> Elements:
    """Return what the large sets of a listing hold, of those that are treated so."""
    out = {}
    for key in candidates(listed):
        there = tuple(read(talk, place_of(key)))
        elements = frozenset(there)
        kinds = {frozenset(netlink.attributes(each[_HEAD_BYTES:])) for each in elements}
        if kinds <= _PLAIN:
            out[key] = Held(elements, there, interval=frozenset({_KEY}) != frozenset().union(*kinds))
    return out


def place_of(key: str) -> tuple[str, str, str]:
    """Return (family, table, set) of a key."""
    family, table, _, name = key.split(" ")
    return family, table, name


def read(talk: netlink.Talk, place: tuple[str, str, str]) -> list[bytes]:
    """Return the elements of a set, (family, table, set). Raises OSError: ENOENT where there is none."""
    out: list[bytes] = []
    for message in talk.dump(netlink.SUBSYSTEM_NFTABLES << 8 | _GETSETELEM, _named(place)):
        listed = netlink.attributes(message.payload[netlink.NFGENMSG_BYTES :]).get(_ELEMENTS, b"")
        out += _split(listed)
    return out


def mend(talk: netlink.Talk, place: tuple[str, str, str], wanted: Held) -> bool:
    """Make a set hold `wanted` and nothing else, in one commit; tell whether that was needed. Raises OSError; then it is as it was."""
    found = frozenset(read(talk, place))
    if found == wanted.elements:
        return False
    if wanted.interval:  # begins and ends: taken one by one, an order could leave a beginning without its end
        orders = [(_DELSETELEM, _named(place)), *_orders(_NEWSETELEM, place, wanted.listed)]
    else:
        orders = _orders(_DELSETELEM, place, found - wanted.elements)
        orders += _orders(_NEWSETELEM, place, wanted.elements - found)
    talk.commit(orders, create=True)
    return True


def told(wanted: Held, found: frozenset[bytes], lines: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return what a set holds as `compare.canonical` shows it, where `lines` are what it should; None where not every byte is known."""
    if not found:
        return ()
    missing, extra = _lines(wanted.elements - found), _lines(found - wanted.elements)
    if missing is None or extra is None or not missing.issubset(lines):
        return None
    return (*(line for line in lines if line not in missing), *sorted(extra))


def _named(place: tuple[str, str, str]) -> bytes:
    family, table, name = place
    return (
        netlink.head(family)
        + netlink.attribute(_TABLE, table.encode() + b"\0")
        + netlink.attribute(_SET, name.encode() + b"\0")
    )


def _orders(kind: int, place: tuple[str, str, str], elements: Collection[bytes]) -> list[tuple[int, bytes]]:
    listed = list(elements)
    parts = [listed[at : at + _ELEMENTS_AT_ONCE] for at in range(0, len(listed), _ELEMENTS_AT_ONCE)]
    return [(kind, _named(place) + netlink.attribute(_ELEMENTS | _NESTED, b"".join(part))) for part in parts]


def _split(listed: bytes) -> list[bytes]:
    """Return the padded attributes of a list, each with its head."""
    if not listed:
        return []
    step = _padded(listed, 0)
    even = len(listed) % step == 0
    if even and all(listed[at::step] == listed[at : at + 1] * (len(listed) // step) for at in range(2)):
        return [each for (each,) in struct.iter_unpack(f"{step}s", listed)]
    out, at = [], 0
    while at + _HEAD_BYTES <= len(listed):
        step = max(_HEAD_BYTES, _padded(listed, at))
        out.append(listed[at : at + step])
        at += step
    return out


def _padded(listed: bytes, at: int) -> int:
    length = int(struct.unpack_from("=H", listed, at)[0])
    return (length + 3) & ~3


def _lines(elements: Iterable[bytes]) -> set[str] | None:
    out = set()
    for each in elements:
        said = netlink.attributes(each[_HEAD_BYTES:])
        value = netlink.attributes(said.get(_KEY, b"")).get(_VALUE, b"")
        if said.keys() != {_KEY} or len(value) not in (_FOUR_BYTES, _SIX_BYTES):
            return None
        family = socket.AF_INET if len(value) == _FOUR_BYTES else socket.AF_INET6
        out.add(f'"{socket.inet_ntop(family, value)}"')
    return out
