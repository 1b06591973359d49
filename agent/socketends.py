"""Sockets that were bound and closed again, as the kernel announces their end (NETLINK_SOCK_DIAG, SKNLGRP_*_DESTROY; Linux 4.2).

So a port that opened and closed between two looks is known all the same (ATTACKS d09). A filter in the kernel lets through
only sockets that never had a peer; they wait in the socket's buffer until somebody takes them, so nothing runs here at
rest. The kernel does not tell whose a socket was, nor whether it listened or was only bound.

Refuses: to be complete. When more end than the buffer holds (some 2,000), `lost` says so.
Relies on: CAP_NET_ADMIN in the network namespace of the thread that makes it.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
from typing import NamedTuple

_NETLINK_SOCK_DIAG = 4
_GROUPS = 0b1111
"""TCP and UDP, over IPv4 and IPv6."""
_SO_ATTACH_FILTER = 26
_BUFFER_BYTES = 1024 * 1024
_TYPE = 20
_HEAD = struct.Struct("=IHHII")
_IDS = struct.Struct(">HH16s16s")
_IDS_AT = _HEAD.size + 4
_TCP = 0b0101
_FILTER = (
    (0x28, 0, 0, _IDS_AT + 2),  # the peer's port
    (0x15, 0, 3, 0),
    (0x20, 0, 0, _IDS_AT + 20),  # the first word of the peer's address
    (0x15, 0, 1, 0),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


class Ended(NamedTuple):
    """A socket without a peer that is no more."""

    protocol: str
    address: str
    port: int


class SocketEnds:
    """Open it, `take` now and then. Raises OSError where the kernel does not announce."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            code = b"".join(struct.pack("=HBBI", *each) for each in _FILTER)
            room = ctypes.create_string_buffer(code, len(code))
            self._socket.setsockopt(
                socket.SOL_SOCKET,
                _SO_ATTACH_FILTER,
                struct.pack("@HP", len(_FILTER), ctypes.addressof(room)),
            )
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise

    def take(self, limit: int) -> tuple[list[Ended], bool]:
        """Return at most `limit` of those that ended since the last call, oldest first, and whether some were lost."""
        found: list[Ended] = []
        lost = False
        while len(found) < limit:
            try:
                data, _, _, (_, groups) = self._socket.recvmsg(8192, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            if (ended := _parsed(data, groups)) is not None:
                found.append(ended)
        return found, lost

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def _parsed(data: bytes, groups: int) -> Ended | None:
    if len(data) < _IDS_AT + _IDS.size or _HEAD.unpack_from(data)[1] != _TYPE:
        return None
    port, peer_port, address, peer = _IDS.unpack_from(data, _IDS_AT)
    if not port or peer_port or any(peer):
        return None
    family = data[_HEAD.size]
    raw = address[:4] if family == socket.AF_INET else address
    protocol = "tcp" if groups & _TCP else "udp"
    return Ended(protocol, str(ipaddress.ip_address(raw)), port)
