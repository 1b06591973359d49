"""An independent witness of the kernel's firewall: who changed it, what, and when, from the kernel's own announcements.

Reads nfnetlink multicast itself (include/uapi/linux/netfilter/nf_tables.h); shares no code with the agent.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.parts.namespace import Namespace

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_NFNLGRP_NFTABLES = 7
_SO_RCVBUFFORCE = 33
_SUBSYSTEM = 10
_NEWTABLE, _DELTABLE, _NEWGEN, _GETGEN = 0, 2, 15, 16
_TABLE_NAME = 1
_GEN_ID, _GEN_PID, _GEN_NAME = 1, 2, 3


@dataclass
class Change:
    """One committed batch."""

    at: float
    """Wall clock, seconds since 1970, when the announcement was read."""
    pid: int = 0
    process: str = ""
    generation: int = 0
    added: set[str] = field(default_factory=set)
    """Tables made, or made anew, that stand after the batch."""
    deleted: set[str] = field(default_factory=set)
    """Tables deleted, whether made anew or not."""
    touched: set[str] = field(default_factory=set)
    """Tables of which anything was changed."""
    messages: int = 0


class NftWatch:
    """Collects changes in one namespace from its making until `close`."""

    def __init__(self, namespace: Namespace) -> None:
        self.changes: list[Change] = []
        self._news = threading.Condition()
        self._socket = namespace.inside(
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        self._socket.bind((0, 0))
        self._asking = namespace.inside(
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        )
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        self._socket.setblocking(False)
        self._closing = False
        self._open = Change(0.0)
        self._thread = threading.Thread(target=self._run, name="nft watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing = True
        self._thread.join()
        self._socket.close()
        self._asking.close()

    def __enter__(self) -> NftWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, wanted: Callable[[Change], bool], *, after: float = 0.0, within_s: float = 10.0) -> Change:
        """Return the first change later than `after` that is `wanted`; raises TimeoutError."""
        deadline = time.monotonic() + within_s
        with self._news:
            while True:
                for change in self.changes:
                    if change.at > after and wanted(change):
                        return change
                if not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no such change of the firewall within {within_s:g} s")

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Within, the kernel announces nothing to us: for 10,000 elements that would take it longer than taking them."""
        self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, _NFNLGRP_NFTABLES)
        try:
            yield
        finally:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def generation(self) -> int:
        """Return the number of the namespace's last commit."""
        self._asking.send(struct.pack("=IHHIIBBH", 20, _SUBSYSTEM << 8 | _GETGEN, 1, 0, 0, 0, 0, 0))
        return int.from_bytes(self._asking.recv(4096)[24:28], "big")

    def _run(self) -> None:
        while not self._closing:
            for now, data in self._arrived():
                at = 0
                while at + 20 <= len(data):
                    length, kind = struct.unpack_from("=IH", data, at)
                    if length < 20:
                        break
                    if kind >> 8 == _SUBSYSTEM:
                        self._take(kind & 0xFF, data[at + 20 : at + length], now)
                    at += (length + 3) & ~3

    def _arrived(self) -> list[tuple[float, bytes]]:
        """Return what waits, each datagram with the time it was read at: all of it before any is taken apart.

        A set of 10,000 elements is announced by as many messages, and the time of the last is not to be that of their reading.
        """
        arrived: list[tuple[float, bytes]] = []
        select.select([self._socket], [], [], 0.2)
        with suppress(BlockingIOError):
            while True:
                data = self._socket.recv(1 << 20)
                arrived.append((time.time(), data))
        return arrived

    def _take(self, kind: int, attributes: bytes, now: float) -> None:
        found = {}
        at = 0
        while at + 4 <= len(attributes):
            length, number = struct.unpack_from("=HH", attributes, at)
            if length < 4:
                break
            found[number & 0x3FFF] = attributes[at + 4 : at + length]
            at += (length + 3) & ~3
        self._open.messages += 1
        if kind != _NEWGEN:
            # The first attribute of every object but the generation is the name of its table.
            self._open.touched.add(found.get(_TABLE_NAME, b"").rstrip(b"\0").decode(errors="replace"))
        if kind in {_NEWTABLE, _DELTABLE}:
            name = found.get(_TABLE_NAME, b"").rstrip(b"\0").decode()
            if kind == _NEWTABLE:
                self._open.added.add(name)
            else:
                self._open.added.discard(name)
                self._open.deleted.add(name)
        elif kind == _NEWGEN:
            done, self._open = self._open, Change(0.0)
            done.at = now
            done.generation = int.from_bytes(found.get(_GEN_ID, b""), "big")
            done.pid = int.from_bytes(found.get(_GEN_PID, b""), "big")
            done.process = found.get(_GEN_NAME, b"").rstrip(b"\0").decode(errors="replace")
            with self._news:
                self.changes.append(done)
                self._news.notify_all()
