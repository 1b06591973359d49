"""Sockets that wait for somebody, as procfs lists them, and whose they are. Reads only; used through `agent.proc.ProcTree`.

A machine may have hundreds of thousands of connections and descriptors: reading goes line by line and process by
process and lets more urgent work in between. Who holds a socket is looked up again only when it changed hands.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TCP_LISTEN = "0A"
_TABLES = ("tcp", "tcp6", "udp", "udp6")


class Waiting(NamedTuple):
    """A socket that takes what comes."""

    protocol: str
    address: str
    port: int
    inode: int


class SocketTable:
    """The sockets of a procfs tree's network namespace."""

    def __init__(self, root: Path, breathe: Callable[[], None]) -> None:
        self._root = root
        self._breathe = breathe
        self._holders: dict[int, tuple[int, str]] = {}
        """Inode -> process and descriptor."""

    def waiting(self) -> list[Waiting]:
        """Return TCP sockets that listen and UDP sockets without a peer. Raises OSError."""
        found = []
        for name in _TABLES:
            try:
                with (self._root / "net" / name).open("r", encoding="ascii", errors="replace") as table:
                    next(table, "")
                    found += list(self._waiting(name, table))
            except FileNotFoundError:
                if not name.endswith("6"):  # a kernel without IPv6 has no such table
                    raise
        return found

    def holders(self, inodes: set[int]) -> dict[int, int]:
        """Return one process for each socket that has one; the first, as they are numbered."""
        known = {i: self._holders[i] for i in inodes & self._holders.keys() if self._still(i)}
        missing = inodes - known.keys()
        for pid in self._pids() if missing else ():
            for inode, descriptor in self._sockets(pid):
                if inode in missing:
                    known[inode] = pid, descriptor
                    missing.discard(inode)
            if not missing:
                break
        self._holders = known
        return {inode: pid for inode, (pid, _) in known.items()}

    def _waiting(self, name: str, lines: Iterator[str]) -> Iterator[Waiting]:
        protocol = name[:3]
        for line in lines:
            self._breathe()
            fields = line.split()
            if len(fields) < 10 or (protocol == "tcp" and fields[3] != _TCP_LISTEN):
                continue
            if not fields[2].endswith(":0000"):
                continue  # it has a peer
            address, _, port = fields[1].partition(":")
            with suppress(ValueError):  # a line that is none: the table changed while it was read
                yield Waiting(protocol, _address(address), int(port, 16), int(fields[9]))

    def _pids(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._root) if name.isdigit())  # noqa: PTH208

    def _sockets(self, pid: int) -> Iterator[tuple[int, str]]:
        folder = f"{self._root}/{pid}/fd"
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except OSError:  # gone, or hidden
            return
        for name in names:
            self._breathe()
            if (inode := _inode(f"{folder}/{name}")) is not None:
                yield inode, name

    def _still(self, inode: int) -> bool:
        pid, descriptor = self._holders[inode]
        return _inode(f"{self._root}/{pid}/fd/{descriptor}") == inode


def _inode(path: str) -> int | None:
    try:
        target = os.readlink(path)  # noqa: PTH115
    except OSError:
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def _address(text: str) -> str:
    """Return an address as procfs writes it, in words of 32 bits of this machine's byte order. Raises ValueError."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
