"""Frames as they are on the wire: a packet socket that sends them past the IP stack, and one that sees what arrives."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time

from tests.parts.namespace import Namespace

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_QDISC_BYPASS = 20
BROADCAST = b"\xff" * 6
OWN = b"\x02\0\0\0\0\x01"


def ethernet(kind: int, payload: bytes, to: bytes = BROADCAST, tag: int | None = None) -> bytes:
    """Return a frame; with `tag` of that VLAN."""
    tagged = b"" if tag is None else struct.pack("!HH", 0x8100, tag)
    return to + OWN + tagged + struct.pack("!H", kind) + payload


def udp4(source: str, destination: str, port: int, data: bytes, from_port: int = 4242) -> bytes:
    """Return an IPv4 packet."""
    length = 8 + len(data)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + length,
        1,
        0,
        64,
        17,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return head + struct.pack("!HHHH", from_port, port, length, 0) + data


def udp6(source: str, destination: str, port: int, data: bytes) -> bytes:
    """Return an IPv6 packet, without a checksum that counts."""
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    return (
        struct.pack("!IHBB", 0x60000000, 8 + len(data), 17, 64)
        + ends
        + struct.pack("!HHHH", 4242, port, 8 + len(data), 0xFFFF)
        + data
    )


def arp(operation: int, source: str, destination: str, data: bytes = b"") -> bytes:
    """Return an ARP message; what follows it is padding that nobody looks at."""
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + OWN
        + socket.inet_aton(source)
        + b"\0" * 6
        + socket.inet_aton(destination)
        + data
    )


class Wire:
    """A packet socket on one interface."""

    def __init__(self, namespace: Namespace, interface: str, *, bypass: bool = False) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            made.bind((interface, _ETH_P_ALL))
            return made

        self._socket = namespace.inside(make)
        if bypass:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)

    def send(self, frame: bytes) -> None:
        """Send; that the kernel says it was dropped on the way is no error."""
        try:
            self._socket.send(frame)
        except OSError:
            return

    def sees(self, mark: bytes, within_s: float = 0.3) -> bool:
        """Tell whether a frame with `mark` in it arrives from outside."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame, about = self._socket.recvfrom(65536)
            except TimeoutError:
                return False
            if mark in frame and about[2] != socket.PACKET_OUTGOING:  # type: ignore[attr-defined]
                return True
        return False

    def close(self) -> None:
        """Close it."""
        self._socket.close()
