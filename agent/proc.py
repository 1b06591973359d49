"""Processes and sockets as procfs shows them, in words for people, and their end. Used through `agent.host.Host`.

A process chooses its own name and arguments: they are made printable and are never taken as proof of anything.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.lastlook import LastLook, Program, last_look, program_of
from agent.sockettable import SocketTable

_MAX_COMMAND_CHARS = 300
_MAX_STATUS_BYTES = 8192
DEATH_S = 0.2
"""Longest wait for a killed process: the firewall is the same thread's work."""


class Listener(NamedTuple):
    """A socket that takes what comes: TCP in state LISTEN, or UDP without a peer."""

    protocol: str
    address: str
    port: int
    pid: int | None
    """None where the kernel or the lack of rights hides it."""
    program: str
    """Path of the executable, empty where unknown."""


class Flow(NamedTuple):
    """A socket with a peer."""

    protocol: str
    local_port: int
    remote: str
    remote_port: int


class ProcTree:
    """A procfs tree."""

    def __init__(self, root: Path, breathe: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self.on_end: Callable[[LastLook, Program], None] | None = None
        """Called with what a process was, once it was ended."""
        self._breathe = breathe
        self._sockets = SocketTable(root, breathe)

    def describe(self, pid: int) -> str:
        """Return "nft (pid 4242, uid 0, from bash): nft flush ruleset"; for a process that has gone "pid 4242 (gone)"."""
        try:
            status = self._status(pid)
            with (self.root / str(pid) / "cmdline").open("rb") as file:
                raw = file.read(4 * _MAX_COMMAND_CHARS)
        except (OSError, ValueError):
            return f"pid {pid} (gone)"
        name = printable(status.get("Name", "?"))
        uid = (status.get("Uid", "?").split() or ["?"])[0]
        command = printable(raw.replace(b"\0", b" ").decode("utf-8", "backslashreplace").strip())
        return f"{name} (pid {pid}, uid {uid}{self._parent(status)}): {command[:_MAX_COMMAND_CHARS] or name}"

    def listeners(self) -> list[Listener]:
        """Return every listening socket of this network namespace, sorted, each once. Raises OSError."""
        waiting = self._sockets.waiting()
        holders = self._sockets.holders({each.inode for each in waiting})
        found: set[Listener] = set()
        for each in waiting:
            pid = holders.get(each.inode)
            program = self.program(pid) if pid else ""
            found.add(Listener(each.protocol, each.address, each.port, pid, program))
        return sorted(found, key=lambda each: (each.protocol, each.port, each.address, each.pid or 0))

    def flows(self) -> list[Flow]:
        """Return every socket of this network namespace that has a peer, each way once, sorted. Raises OSError."""
        return sorted({Flow(*each) for each in self._sockets.connected()})

    def program(self, pid: int) -> str:
        """Return the path of a process's executable, as it is now; empty where it cannot be read."""
        try:
            return printable(os.readlink(self.root / str(pid) / "exe"))  # noqa: PTH115  (raw text wanted)
        except OSError:
            return ""

    def end(self, listener: Listener) -> None:
        """Kill the process that holds a listening socket, if it still does. Raises OSError.

        The pid is held by a descriptor first and the socket looked at again after that: a number that
        was reused meanwhile is never signalled.
        """
        if listener.pid is None or listener.pid in (1, os.getpid()):
            raise ProcessLookupError(f"no process that may be killed: {listener.pid}")
        try:
            handle = os.pidfd_open(listener.pid)
        except ProcessLookupError:
            return
        try:
            if listener in self.listeners():
                self.kill(listener.pid, handle)
        finally:
            os.close(handle)

    def of_user(self, uid: int) -> list[int]:
        """Return the processes whose real, effective or saved user is this one, in order. Raises OSError."""
        found = []
        for name in os.listdir(self.root):  # noqa: PTH208  (names only)
            if name.isdigit() and self._belongs(int(name), uid):
                found.append(int(name))
        return sorted(found)

    def end_user(self, uid: int) -> None:
        """Kill every process of a user; root's are refused. Raises OSError.

        Each pid is held by a descriptor and looked at again before it is signalled. What forks faster than this is
        seen by the next look.
        """
        if uid == 0:
            raise PermissionError("root's processes are not ended")
        for pid in self.of_user(uid):
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if self._belongs(pid, uid):
                    self.kill(pid, handle, wait_s=0.0)
            except ProcessLookupError:
                pass
            finally:
                os.close(handle)

    def kill(self, pid: int, handle: int, wait_s: float = DEATH_S) -> None:
        """Kill a process that a descriptor holds, and wait a little until it is gone. Raises OSError.

        It is stopped first: it does nothing more while it is looked at.
        """
        signal.pidfd_send_signal(handle, signal.SIGSTOP)
        with self.ending([pid]):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], wait_s)  # its sockets are gone when it is

    @contextmanager
    def ending(self, pids: Iterable[int]) -> Iterator[None]:
        """Look at processes that are ended inside, and hand on what was seen after that."""
        if self.on_end is None:
            yield
            return
        found = [last_look(self.root, pid, self._sockets) for pid in pids]
        looks = [look for look in found if look is not None]
        try:
            yield
        finally:
            for look in looks:
                self.on_end(look, program_of(look, self._breathe))
                if look.descriptor >= 0:
                    os.close(look.descriptor)

    def _belongs(self, pid: int, uid: int) -> bool:
        try:
            status = self._status(pid)
        except (OSError, ValueError):
            return False  # gone
        return str(uid) in status.get("Uid", "").split()[:3] and not status.get("State", "").startswith("Z")

    def _status(self, pid: int) -> dict[str, str]:
        with (self.root / str(pid) / "status").open("rb") as file:
            text = file.read(_MAX_STATUS_BYTES).decode("utf-8", "backslashreplace")
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}

    def _parent(self, status: dict[str, str]) -> str:
        try:
            return f", from {printable(self._status(int(status['PPid'])).get('Name', '?'))}"
        except (OSError, ValueError, KeyError):
            return ""


def printable(untrusted_text: str) -> str:
    """Return text without control characters and line ends: each becomes its escape (`\\n`, `\\x1b`)."""
    if untrusted_text.isprintable():
        return untrusted_text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in untrusted_text
    )
