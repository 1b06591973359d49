"""What iptables-nft's own targets do, read from the kernel, since libnftables lists them without their arguments.

Docker, netavark and CNI write their DNAT as xtables targets: in a listing every one of them looks alike. Only the kernel's
own dump of the rules tells where one leads. Refuses nothing: a target of a shape that is not known leads to "?".
Relies on: uapi/linux/netfilter/nf_tables.h, nf_nat.h; `Talk` over NETLINK_NETFILTER.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

from agent.firewall import netlink
from agent.firewall.netlink import NFGENMSG_BYTES, SUBSYSTEM_NFTABLES, Talk

_GETRULE = 7
_RULE_TABLE, _RULE_HANDLE, _RULE_EXPRESSIONS = 1, 3, 4
_NAME, _DATA = 1, 2
_TARGET_NAME, _TARGET_REVISION, _TARGET_INFO = 1, 2, 3
_RANGE = struct.Struct("=I16s16s")
"""nf_nat_range, nf_nat_range2: flags, lowest and highest address; ports follow in network order."""
_COMPAT = struct.Struct("=II4s4s")
"""nf_nat_ipv4_multi_range_compat: how many, then flags, lowest and highest address of the first."""
_MAP_IPS = 1
_ELSEWHERE = "?"
_NUMBERS = {name: number for number, name in netlink.FAMILIES.items()}


def destinations(talk: Talk, family: str, table: str) -> dict[int, str]:
    """Return, by handle, where each DNAT target of a table leads: an address, or "?". Raises OSError."""
    number = _NUMBERS.get(family, 0)
    question = struct.pack("!BBH", number, 0, 0) + netlink.attribute(_RULE_TABLE, table.encode() + b"\0")
    found = {}
    for message in talk.dump(SUBSYSTEM_NFTABLES << 8 | _GETRULE, question):
        told = netlink.attributes(message.payload[NFGENMSG_BYTES:])
        handle = int.from_bytes(told.get(_RULE_HANDLE, b""), "big")
        leads = [each for each in _targets(told.get(_RULE_EXPRESSIONS, b"")) if each]
        if leads:
            found[handle] = leads[0] if len(set(leads)) == 1 else _ELSEWHERE
    return found


def _targets(expressions: bytes) -> Iterator[str]:
    at = 0
    while at + 4 <= len(expressions):
        length = struct.unpack_from("=H", expressions, at)[0]
        if length < 4 or at + length > len(expressions):
            return
        one = netlink.attributes(expressions[at + 4 : at + length])
        at += (length + 3) & ~3
        if one.get(_NAME, b"").rstrip(b"\0") != b"target":
            continue
        target = netlink.attributes(one.get(_DATA, b""))
        if target.get(_TARGET_NAME, b"").rstrip(b"\0") == b"DNAT":
            revision = int.from_bytes(target.get(_TARGET_REVISION, b""), "big")
            yield destination(revision, target.get(_TARGET_INFO, b""))


def destination(revision: int, info: bytes) -> str:
    """Return the one address that a DNAT target leads to, or "?" for a range, none, or an unknown shape."""
    if revision == 0 and len(info) >= _COMPAT.size:
        count, flags, low, high = _COMPAT.unpack_from(info)
        return _only(low, high, flags) if count == 1 else _ELSEWHERE
    if revision in (1, 2) and len(info) >= _RANGE.size:
        flags, low, high = _RANGE.unpack_from(info)
        if low[4:] == bytes(12) and high[4:] == bytes(12):
            low, high = low[:4], high[:4]
        return _only(low, high, flags)
    return _ELSEWHERE


def _only(low: bytes, high: bytes, flags: int) -> str:
    return str(ipaddress.ip_address(low)) if low == high and flags & _MAP_IPS else _ELSEWHERE
