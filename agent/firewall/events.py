"""Who changed the firewall: a thread that listens to the kernel's nftables announcements.

The kernel announces each commit (NFNLGRP_NFTABLES) as its objects and then one NEWGEN with the generation and the
thread and program name that did it. The thread reads /proc at once, since an `nft` process lives for milliseconds.
It only wakes: the loop compares the whole state again, so a lost message costs a culprit, never a repair.

Refuses to report this process's own commits. Every five seconds the generation is asked for as well: what the
socket did not bring is noticed then, with an unknown culprit. ENOBUFS is reported in the same way. So are interfaces and
routes that come and go (rtnetlink): an isolated node cuts those as well.
Relies on: CAP_NET_ADMIN in the network namespace in which `Events` is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.firewall import netlink

_GROUP_NFTABLES = 7
_GROUPS_LINK_AND_ROUTE = 0x1 | 0x8 | 0x40 | 0x400
"""RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE."""
_SO_RCVBUFFORCE = 33
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 270, 1, 2
_BUFFER_BYTES = 8 * 1024 * 1024
"""Holds some 60,000 announcements; the default holds 1,678."""
_POLL_S = 5.0
_MAX_COMMAND_CHARS = 300
_COMMITTED = netlink.SUBSYSTEM_NFTABLES << 8 | 15
"""NFT_MSG_NEWGEN: the end of a commit."""
_ELEMENTS = frozenset(netlink.SUBSYSTEM_NFTABLES << 8 | kind for kind in (12, 14))
"""NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM."""
_OBJECT_BYTES = netlink.HEADER_BYTES + netlink.NFGENMSG_BYTES
_LONGEST_NAME_BYTES = 4 + 256
_LENGTH_AND_KIND = struct.Struct("=IH")
_MAX_DATAGRAMS = 512
"""Taken before anybody is told: a storm that comes faster than it is read would never be."""
_BURST = 32
_BURST_PAUSE_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """The process that committed a change, as far as the kernel and /proc tell. All text is cleaned of control characters."""

    pid: int
    """Of the thread, in the first PID namespace."""
    name: str
    uid: int | None = None
    command: str = ""
    parent: str = ""
    """Name and PID of its parent."""
    tables: frozenset[tuple[str, str]] = frozenset()
    """(family, name) of every table that the commit touched."""

    def touched(self, family: str, table: str) -> bool:
        """Tell whether the commit touched a table."""
        return (family, table) in self.tables

    def describe(self) -> str:
        """Return one line for people: "nft (pid 4242, uid 0, of bash (pid 4000)): nft flush ruleset"."""
        uid = "" if self.uid is None else f", uid {self.uid}"
        parent = f", of {self.parent}" if self.parent else ""
        command = f": {self.command}" if self.command else ""
        return f"{self.name} (pid {self.pid}{uid}{parent}){command}"


class Events:
    """Calls `on_change(culprit)` on its own thread after each foreign change; None when nobody knows who.

    Make it in the network namespace to be watched, before the first rules are loaded. `close` ends the thread.
    """

    def __init__(self, on_change: Callable[[Culprit | None], None], *, proc: Path = Path("/proc")) -> None:
        self._on_change = on_change
        self._proc = proc
        self._socket = _listening_socket(netlink.NETLINK_NETFILTER, 1 << (_GROUP_NFTABLES - 1))
        self._links = _listening_socket(socket.NETLINK_ROUTE, _GROUPS_LINK_AND_ROUTE)
        self._asking = netlink.Talk()
        self._seen: int = netlink.generation(self._asking)
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC)
        self._unheard = 0
        self._named: set[bytes] = set()
        """Beginnings of the announcements since the last commit: family and table, as the kernel writes them."""
        self._thread = threading.Thread(target=self._run, name="nftables-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and give back its sockets. Idempotent."""
        if self._thread.is_alive():
            os.write(self._wake_out, b".")
            self._thread.join()
            self._socket.close()
            self._links.close()
            self._asking.close()
            os.close(self._wake_in)
            os.close(self._wake_out)

    @contextlib.contextmanager
    def unheard(self) -> Iterator[Callable[[], None]]:
        """Within, the kernel announces nothing to us; call what is yielded after each commit of one's own.

        Announcing 10,000 elements takes it longer than taking them (13 ms and 7), and hearing that is as much again. What others
        commit meanwhile is noticed by the generation, with an unknown culprit. For any thread in the same network namespace.
        """
        commits: list[None] = []
        asking = netlink.Talk()
        try:
            before = netlink.generation(asking)
            self._unheard += 1
            self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, _GROUP_NFTABLES)
            try:
                yield lambda: commits.append(None)
            finally:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
                self._unheard -= 1
                after = netlink.generation(asking)
                self._seen = max(self._seen, after)
                if after != before + len(commits):
                    self._on_change(None)
        finally:
            asking.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._links, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(_POLL_S * 1000)]
            if self._wake_in in ready:
                return
            try:
                if self._links.fileno() in ready:
                    self._drain_links()
                if self._socket.fileno() in ready:
                    self._drain()
                elif not ready:
                    self._ask()
            except OSError:
                # Whatever was lost, a look at the whole state makes good; at most ten times a second.
                self._on_change(None)
                time.sleep(0.1)

    def _drain(self) -> None:
        """Take everything that waits; one call for each process, however many commits it made."""
        found: dict[int, Culprit] = {}
        unknown = False
        taken = 0
        while taken < _MAX_DATAGRAMS:
            taken += 1
            try:
                data = self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                unknown = True
                self._named.clear()
                continue
            for culprit in self._taken(data, found):
                before = found.get(culprit.pid)
                found[culprit.pid] = culprit if before is None else _joined(before, culprit)
            if len(found) >= 256:
                break
        for culprit in found.values():
            self._on_change(culprit)
        if unknown:
            self._on_change(None)
        if taken >= _BURST:
            time.sleep(_BURST_PAUSE_S)  # they have been told; what comes meanwhile is taken together

    def _drain_links(self) -> None:
        """Throw away what waits: that something changed is all there is to know. One wake for a burst."""
        while True:
            try:
                self._links.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        self._on_change(None)

    def _taken(self, data: bytes, known: Mapping[int, Culprit]) -> Iterator[Culprit]:
        """Yield who made the commits that a datagram ends. A set that is filled is one announcement for each element, and
        nothing of it matters but its table: so no more is read of it."""
        at = 0
        while at + _OBJECT_BYTES <= len(data):
            length, kind = _LENGTH_AND_KIND.unpack_from(data, at)
            if length < _OBJECT_BYTES or at + length > len(data):
                return
            if kind == _COMMITTED:
                culprit = self._committed(data[at + _OBJECT_BYTES : at + length], known)
                if culprit is not None:
                    yield culprit
            elif kind >> 8 == netlink.SUBSYSTEM_NFTABLES:
                # The first attribute of every nftables object but the generation is the name of its table.
                start, end = at + _OBJECT_BYTES, at + _OBJECT_BYTES + _LONGEST_NAME_BYTES
                named = data[start : min(end, at + length)]
                size = int.from_bytes(named[:2], sys.byteorder)
                size = max(size, 4)
                self._named.add(data[at + netlink.HEADER_BYTES : start] + named[:size])
                if kind in _ELEMENTS:
                    at += _alike(data, at, (length + 3) & ~3, _OBJECT_BYTES + size)
                    continue
            at += (length + 3) & ~3

    def _committed(self, payload: bytes, known: Mapping[int, Culprit]) -> Culprit | None:
        attributes = netlink.attributes(payload)
        named, self._named = self._named, set()
        self._seen = max(self._seen, int.from_bytes(attributes.get(1, b""), "big"))
        pid = int.from_bytes(attributes.get(2, b""), "big")
        if (self._proc / "self" / "task" / str(pid)).exists():
            return None
        name = _clean(attributes.get(3, b"").rstrip(b"\0"))
        tables = frozenset(map(_table, named))
        before = known.get(pid)
        if before is not None and before.name == name:  # asked for once in a burst
            return replace(before, tables=tables)
        return described(pid, name, tables, self._proc)

    def _ask(self) -> None:
        generation = netlink.generation(self._asking)
        if generation != self._seen and not self._unheard:
            # Either its announcement is on the way, and then this is a spare wake, or it was lost.
            self._seen = generation
            self._on_change(None)


def _alike(data: bytes, at: int, step: int, told: int) -> int:
    """Return the length of a message, or of all that are left where they tell the same in their first `told` bytes.

    Sequence numbers aside. Ten thousand one by one would keep the threads that repair waiting.
    """
    many = (len(data) - at) // step
    if many < 2 or told > step:
        return step
    length_to_flags, sequence_and_port = 8, 8
    rest = told - length_to_flags - sequence_and_port
    head = f"={length_to_flags}s{sequence_and_port}x{rest}s{step - told}x"
    same = set(struct.iter_unpack(head, data[at : at + many * step]))
    return many * step if len(same) == 1 else step


def described(pid: int, name: str, tables: frozenset[tuple[str, str]], proc: Path = Path("/proc")) -> Culprit:
    """Return what /proc tells about a thread that the kernel named; only its name where it is gone or is another."""
    folder = proc / str(pid)
    command, uid, parent = "", None, ""
    with contextlib.suppress(OSError, ValueError):
        if _clean((folder / "comm").read_bytes().strip()) == name:
            # `comm` is compared because the number may mean another process in our PID namespace.
            command = _clean((folder / "cmdline").read_bytes()[:4096].replace(b"\0", b" ").strip())
            status = dict(line.partition(":")[::2] for line in (folder / "status").read_text().splitlines())
            uid = int(status["Uid"].split()[0])
            above = int(status["PPid"])
            if above:
                parent = f"{_clean((proc / str(above) / 'comm').read_bytes().strip())} (pid {above})"
    command = command if len(command) <= _MAX_COMMAND_CHARS else command[: _MAX_COMMAND_CHARS - 1] + "…"
    return Culprit(pid=pid, name=name or "?", uid=uid, command=command, parent=parent, tables=tables)


def _table(named: bytes) -> tuple[str, str]:
    """Return (family, name) of the beginning of an announcement."""
    family = netlink.FAMILIES.get(named[0], str(named[0]))
    found = netlink.attributes(named[netlink.NFGENMSG_BYTES :])
    return family, _clean(found.get(1, b"").rstrip(b"\0"))


def _joined(one: Culprit, other: Culprit) -> Culprit:
    fuller = other if other.command else one
    return Culprit(
        pid=fuller.pid,
        name=fuller.name,
        uid=fuller.uid,
        command=fuller.command,
        parent=fuller.parent,
        tables=one.tables | other.tables,
    )


def _clean(untrusted: bytes) -> str:
    text = untrusted.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _listening_socket(protocol: int, groups: int) -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    except PermissionError:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    listening.bind((0, groups))
    return listening
