"""Uevents as the kernel passes them on, in a network namespace of the test's own: root may have it announce anything there."""

from __future__ import annotations

import socket
import time

from tests.parts.namespace import Namespace

_NETLINK_KOBJECT_UEVENT = 15


class Announcer:
    """Sends uevents through the kernel (lib/kobject_uevent.c) to all that listen in one namespace."""

    def __init__(self, kernel: Namespace) -> None:
        self._socket = kernel.inside(
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT)
        )

    def send(self, subsystem: str, times: int = 1, per_s: float = 0) -> None:
        """Announce that something of a subsystem came, so often, so many in a second."""
        body = f"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM={subsystem}\0".encode()
        # struct nlmsghdr: length, type 16 (NLMSG_MIN_TYPE), NLM_F_REQUEST, sequence, port.
        head = (16 + len(body)).to_bytes(4, "little") + b"\x10\0\x01\0" + b"\0" * 8
        begun = time.monotonic()
        for number in range(times):
            self._socket.sendto(head + body, (0, 0))
            if per_s:
                time.sleep(max(0.0, begun + number / per_s - time.monotonic()))

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()
