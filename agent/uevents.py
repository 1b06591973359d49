"""Kernel uevents: which sections to look at again because devices came, went or changed.

Network interfaces are announced by rtnetlink as well: one that is set up raises no uevent. An event only wakes: the probes read the whole state again, so a lost or forged message costs a look, never a decision.
An event is passed on at once; after ten calls within a second they come a quarter of a second apart, so that a storm of
thousands is ten calls a second at most (a device that waits in it is shut out by the kernel meanwhile).
Refuses to carry data. Relies on: NETLINK_KOBJECT_UEVENT of the network namespace in which it is made.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_LINK_GROUP = 1
_RECEIVE_BUFFER_BYTES = 1024 * 1024
_SO_RCVBUFFORCE = 33
_MESSAGES_AT_ONCE = 4096
_SUBSYSTEM = b"\0SUBSYSTEM="


class DeviceEvents:
    """Calls `on_change(section)` from its own thread when devices of that section's subsystems come, go or change.

    The list that `listing` returns is compared as well, every `poll_s`: trees other than the kernel's own raise no uevents.
    """

    PAUSE_S = 0.02
    """After a call: one device raises five uevents or more."""
    CALLS_A_SECOND = 10
    """Past so many within a second, a call is followed by the pause of a storm."""
    STORM_PAUSE_S = 0.25

    def __init__(
        self,
        subsystems: Mapping[str, Sequence[str]],
        on_change: Callable[[str], None],
        listing: Callable[[], Mapping[str, Sequence[str]]],
        *,
        poll_s: float,
    ) -> None:
        self._subsystems = {name.encode(): tuple(sections) for name, sections in subsystems.items()}
        self._all = {section for sections in subsystems.values() for section in sections}
        self._on_change = on_change
        self._listing = listing
        self._poll_s = poll_s
        self._thread = threading.Thread(target=self._run, name="device-events", daemon=True)
        self._socket = _listening(_NETLINK_KOBJECT_UEVENT, _KERNEL_GROUP)
        self._links = _listening(socket.NETLINK_ROUTE, _LINK_GROUP)
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        os.write(self._stop_writer, b"x")
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._links.close()
        os.close(self._stop_reader)
        os.close(self._stop_writer)

    def _run(self) -> None:
        known = self._listed()
        called_at: deque[float] = deque(maxlen=self.CALLS_A_SECOND)
        while True:
            listened = [self._socket.fileno(), self._links.fileno(), self._stop_reader]
            ready, _, _ = select.select(listened, [], [], self._poll_s)
            if self._stop_reader in ready:
                return
            due = self._drain() | self._drain_links() if ready else set()
            if not ready or due:
                found = self._listed()
                due |= {name for name in found if found[name] != known.get(name)}
                known = found
            if not due:
                continue
            for section in sorted(due):
                self._on_change(section)
            now = time.monotonic()
            storm = len(called_at) == self.CALLS_A_SECOND and now - called_at[0] < 1.0
            called_at.append(now)
            pause_s = self.STORM_PAUSE_S if storm else self.PAUSE_S
            stopped, _, _ = select.select([self._stop_reader], [], [], pause_s)
            if stopped:
                return

    def _listed(self) -> dict[str, Sequence[str]]:
        try:
            return dict(self._listing())
        except OSError:
            return {}  # the probe looks for itself and reports it

    def _drain(self) -> set[str]:
        """Take what waits; return the sections it is about: all of them if the kernel says that messages were lost."""
        found: set[str] = set()
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                message = self._socket.recv(8192)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS
                return set(self._all)
            subsystem = message.partition(_SUBSYSTEM)[2].partition(b"\0")[0]
            with suppress(KeyError):
                found.update(self._subsystems[subsystem])
        return found

    def _drain_links(self) -> set[str]:
        found: set[str] = set()
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                self._links.recv(8192)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS
                pass
            found.update(self._subsystems.get(b"net", ()))
        return found


def _listening(protocol: int, group: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    listening = socket.socket(socket.AF_NETLINK, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    except OSError:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    listening.bind((0, group))
    return listening
