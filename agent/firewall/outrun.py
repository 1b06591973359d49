"""Listings that commits outrun: broken off after a while, and not begun again before it is calmer.

libnftables begins a listing anew whenever somebody commits in the middle of it, and does so for as long as commits come
faster than it reads: a processor is burnt and no look ever ends (ATTACKS f05). It has no way to stop that. So its socket is
exchanged for one that answers nothing, in one step (dup2); the listing fails as it does for any error of the socket, and
the socket is put back. While it is `on`, who wants to list is told `Outrun` at once, and loads what is wanted unseen.

Refuses to break off a listing during which nothing was heard, however long it takes, and anything but listings.
Relies on: libnftables opening one socket when a context is made; `heard` being called from another thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_SHORTEST_S = 0.1
_LONGEST_S = 2.0
_TIMES_USUAL = 4.0
"""A listing may take so many times what the last one of its kind took, between those two bounds."""
_HEARD = 3
_REST_SHARE = 5.0
"""After a listing that was broken off none is tried for so many times what was spent on it."""
_CALM_PER_S = 100.0
"""Commits; our own loads of a storm are well below it."""
_MEASURED_OVER_S = 0.03
_MAX_DRAINED = 100_000


class Outrun(OSError):
    """What was to be listed changes faster than it can be read."""


class Outrunning:
    """Of one libnftables context. One thread lists; any thread may call `heard`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._kept: int | None = None
        """The context's own socket, while another stands in its place."""
        self._since: float | None = None
        self._heard = 0
        self._usual_s: dict[str, float] = {}
        """What a listing took last, by what it lists."""
        self._what = ""
        self._rest_until = 0.0
        self._measured = (0, 0.0)
        self.on = False
        """Commits outrun listings at present."""

    def made(self, make: Callable[[], T]) -> T:
        """Return the context that `make` returns; its socket is the one that is exchanged later."""
        before = _sockets()
        context = make()
        new = [descriptor for inode, descriptor in _sockets().items() if inode not in before]
        self._descriptor = new[0] if len(new) == 1 else None
        return context

    @contextlib.contextmanager
    def listing(self, generation: int, what: str) -> Iterator[None]:
        """List `what` within. Raises Outrun where it was broken off, or where commits come too fast to try."""
        begun = time.monotonic()
        if self.on and not self._is_calm(generation, begun):
            raise Outrun(errno.EBUSY, "our tables change faster than they can be listed")
        self.on = False
        with self._lock:
            self._since, self._heard, self._what = begun, 0, what
        failed: OSError | None = None
        try:
            yield
        except OSError as error:
            failed = error
        finally:
            broken = self._ended()
        took_s = time.monotonic() - begun
        if failed is None:
            self._usual_s[what] = took_s
            return
        if not broken:
            raise failed
        self.on = True
        self._rest_until = time.monotonic() + _REST_SHARE * took_s
        self._measured = (generation, begun)
        raise Outrun(errno.EBUSY, "our tables change faster than they can be listed") from failed

    def heard(self) -> None:
        """Others have committed: break off a listing that has taken too long for that. Any thread."""
        with self._lock:
            if self._since is None or self._descriptor is None or self._kept is not None:
                return
            self._heard += 1
            longest_s = min(max(_SHORTEST_S, _TIMES_USUAL * self._usual_s.get(self._what, 0.0)), _LONGEST_S)
            if self._heard < _HEARD or time.monotonic() - self._since < longest_s:
                return
            kept = os.dup(self._descriptor)
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, self._descriptor, inheritable=False)
            os.close(nothing)
            self._kept = kept

    def _ended(self) -> bool:
        """Put the socket back where it was exchanged, without late answers; tell whether it was."""
        with self._lock:
            self._since = None
            kept, self._kept = self._kept, None
            if kept is None or self._descriptor is None:
                return False
            with socket.socket(fileno=kept) as own:
                _drain(own)
                os.dup2(own.fileno(), self._descriptor, inheritable=False)
            return True

    def _is_calm(self, generation: int, now_s: float) -> bool:
        before, at_s = self._measured
        if now_s < self._rest_until or now_s - at_s < _MEASURED_OVER_S:
            return False
        self._measured = (generation, now_s)
        return abs(generation - before) < _CALM_PER_S * (now_s - at_s)


def _drain(own: socket.socket) -> None:
    """Read what the kernel still has to say to a listing that was broken off: also the rest of its dump."""
    for _ in range(_MAX_DRAINED):
        try:
            own.recv(1 << 18, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _sockets() -> dict[str, int]:
    """Return the descriptors of this process's sockets, by inode."""
    out = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:"):
                out[target] = int(entry.name)
    return out
