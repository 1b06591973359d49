"""Which answers of a name server become addresses of a zone. Pure.

Whoever answers the node's queries could lead a name back inside (DNS rebinding): to the node itself, to the controller, to a
neighbour of the enclave. So what is not out in the world is refused, unless the zone says `names_private = true`; loopback,
link-local, multicast, unspecified and reserved addresses and the controller's own are refused always. An IPv6 address that
carries an IPv4 one (NAT64, 6to4, Teredo, mapped, compatible) is judged by that one as well: a translator may lead there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_OWN_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
"""RFC 8215: of whoever runs the network; what it translates to cannot be read from it."""
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_MAX_SHOWN = 4


class Answers(NamedTuple):
    """What a name server said, sorted out."""

    taken: tuple[str, ...]
    """In one spelling each, IPv4 first, sorted by number."""
    refused: tuple[str, ...]
    """"10.0.0.5 (private)", sorted."""

    def objection(self) -> str:
        """Return what was refused, in one line for people; "" where nothing was."""
        more = f" and {len(self.refused) - _MAX_SHOWN} more" if len(self.refused) > _MAX_SHOWN else ""
        return f"refused: {', '.join(self.refused[:_MAX_SHOWN])}{more}" if self.refused else ""


def sorted_out(untrusted: Iterable[str], *, private: bool, controller: Collection[str] = ()) -> Answers:
    """Return the answers that may be taken and those that may not. Text that is no address is refused as well."""
    own = {ipaddress.ip_address(each) for each in controller}
    taken: set[Address] = set()
    refused: set[str] = set()
    for text in untrusted:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])  # a zone id stands at link-local ones only
        except ValueError:
            refused.add(f"{text[:64]!r} (no address)")
            continue
        why = _objection(address, private=private, own=own)
        if why:
            refused.add(f"{address} ({why})")
        else:
            taken.add(address)
    ordered = sorted(taken, key=lambda each: (each.version, int(each)))
    return Answers(tuple(map(str, ordered)), tuple(sorted(refused)))


def _objection(address: Address, *, private: bool, own: Collection[Address]) -> str:
    meant = (address, *_carried(address))
    if any(each in own for each in meant):
        return "the controller's"
    if any(_is_no_server(each) for each in meant):
        return "never a server elsewhere"
    if not private and not all(map(_is_elsewhere, meant)):
        return "private"
    return ""


def _is_no_server(address: Address) -> bool:
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_reserved or int(address) >> 24 == 0
    return address.ipv4_mapped is not None or address in _COMPATIBLE


def _carried(address: Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses inside an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour]
    if address.teredo is not None:
        found += [*address.teredo]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def _is_elsewhere(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global
    if address in _NAT64:  # judged by what it carries
        return True
    return address.is_global and not address.is_site_local and address not in _OWN_NAT64
