"""Sockets that wait for somebody, as procfs lists them, and whose they are. Reads only; used through `agent.proc.ProcTree`.

A machine may have hundreds of thousands of connections and descriptors: reading goes line by line and process by
process and lets more urgent work in between. Who holds a socket is looked up again only when it changed hands.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from agent.firewall import netlink

_TCP_LISTEN = "0A"
_TABLES = ("tcp", "tcp6", "udp", "udp6")
_TABLES_UDP = ("udp", "udp6")
_PROC = Path("/proc")
_DIAG_ID = struct.Struct(">HH16s")
_DIAG_ID_AT, _DIAG_INODE_AT = 4, 68
_LISTEN_ONLY = 1 << 10
_MAX_ROWS = 20_000


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
        listening = _listening() if self._root == _PROC else None
        found = listening or []
        for name in _TABLES if listening is None else _TABLES_UDP:
            try:
                with (self._root / "net" / name).open("r", encoding="ascii", errors="replace") as table:
                    next(table, "")
                    found += list(self._waiting(name, table))
            except FileNotFoundError:
                if not name.endswith("6"):  # a kernel without IPv6 has no such table
                    raise
        return found

    def connected(self) -> Iterator[tuple[str, int, str, int]]:
        """Yield protocol, local port, peer and its port of every socket that has a peer. Raises OSError."""
        for name in _TABLES:
            try:
                with (self._root / "net" / name).open("r", encoding="ascii", errors="replace") as table:
                    next(table, "")
                    for line in table:
                        self._breathe()
                        fields = line.split()
                        if len(fields) >= 10 and not fields[2].endswith(":0000"):
                            with suppress(ValueError):
                                peer, _, port = fields[2].partition(":")
                                local = int(fields[1].rpartition(":")[2], 16)
                                yield name[:3], local, _plain(_address(peer)), int(port, 16)
            except FileNotFoundError:
                if not name.endswith("6"):
                    raise

    def of_process(self, pid: int, limit: int) -> list[str]:
        """Return the sockets that a process has open, in words, in its own network namespace. Raises OSError.

        Of tables that are very long only the first lines are read: whoever opened all these must not delay what follows.
        """
        mine = {inode for inode, _ in self._sockets(pid)}
        found: list[str] = []
        for name in _TABLES if mine else ():
            for fields in self._rows(pid, name):
                if len(fields) >= 10 and fields[9].isdigit() and int(fields[9]) in mine:
                    with suppress(ValueError):
                        local, peer = _end(fields[1]), _end(fields[2])
                        listens = fields[3] == _TCP_LISTEN or fields[2].endswith(":0000")
                        found.append(f"{name[:3]} {local}" + ("" if listens else f" to {peer}"))
        for fields in self._rows(pid, "unix") if mine else ():
            if len(fields) >= 8 and fields[6].isdigit() and int(fields[6]) in mine:
                found.append(f"unix {fields[7]}")
        return found[:limit]

    def _rows(self, pid: int, name: str) -> Iterator[list[str]]:
        try:
            with (self._root / str(pid) / "net" / name).open(
                "r", encoding="utf-8", errors="replace"
            ) as table:
                for line in islice(table, 1, _MAX_ROWS):
                    self._breathe()
                    yield line.split()
        except FileNotFoundError:
            return

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


def _listening() -> list[Waiting] | None:
    """Return the TCP sockets that listen in this network namespace (sock_diag(7)); None from a kernel that cannot tell.

    To list those, procfs walks the table of all connections as well, which has a quarter of a million places on a large machine.
    """
    found = []
    try:
        talk = netlink.Talk(netlink.NETLINK_SOCK_DIAG)
    except OSError:
        return None
    try:
        for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            for diag in netlink.sockets(talk, family, socket.IPPROTO_TCP, _LISTEN_ONLY):
                port, _, address = _DIAG_ID.unpack_from(diag, _DIAG_ID_AT)
                (inode,) = struct.unpack_from("=I", diag, _DIAG_INODE_AT)
                found.append(Waiting("tcp", str(ipaddress.ip_address(address[:size])), port, inode))
    except OSError:
        return None
    finally:
        talk.close()
    return found


def _inode(path: str) -> int | None:
    try:
        target = os.readlink(path)  # noqa: PTH115
    except OSError:
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def _end(text: str) -> str:
    address, _, port = text.partition(":")
    shown = _plain(_address(address))
    return f"[{shown}]:{int(port, 16)}" if ":" in shown else f"{shown}:{int(port, 16)}"


def plain_address(text: str) -> str:
    """Return an address as procfs writes it; an IPv4 one that an IPv6 socket talks to as what it is. Raises ValueError."""
    return _plain(_address(text))


def _plain(address: str) -> str:
    """Return an IPv4 address that an IPv6 socket talks to as what it is."""
    mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    return str(mapped or address)


def _address(text: str) -> str:
    """Return an address as procfs writes it, in words of 32 bits of this machine's byte order. Raises ValueError."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
