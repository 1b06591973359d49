"""Speed for probes that look at files: inotify on the folders wakes a section as soon as a watched name is touched.

Only speed: a write through a hard link elsewhere or through a mapping raises no event here, and a folder that was
renamed away is watched under its new name. The looks find those. Never permission events: they can hang a host.

A section that is touched all the time is woken ever more seldom, up to every LONGEST_S. One thread, which sleeps in the
kernel while nothing happens.

Refuses: to follow a symbolic link as the last part of a folder's path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

FIRST_S, LONGEST_S = 0.1, 2.0
"""How soon after one wake the same section is woken again; doubles while it goes on."""
_ADD_FLAGS = 0x01000000 | 0x02000000  # IN_ONLYDIR, IN_DONT_FOLLOW
_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF (linux/inotify.h)."""
_APPEARING = 0x80 | 0x100
"""MOVED_TO and CREATE: for folders in which others write all day, such as homes."""
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_HEAD = struct.Struct("iIII")
_READ_BYTES = 65536
_libc = ctypes.CDLL(None, use_errno=True)


class Watched(NamedTuple):
    """What a section wants to be woken by."""

    paths: frozenset[str] = frozenset()
    """Files: whatever happens to them."""
    folders: frozenset[str] = frozenset()
    """Whatever happens to any name in them."""
    appearing: frozenset[str] = frozenset()
    """Names that are not there yet, when they come."""


class _Interest(NamedTuple):
    """What of a folder matters to a section."""

    names: frozenset[str] | None
    """None: all."""
    mask: int


class FileWatch:
    """Calls `wake(section)` on its own thread. `cover` and `close` from one other thread."""

    def __init__(self, root: Path, wake: Callable[[str], None]) -> None:
        """Raises OSError where the kernel gives no inotify."""
        self._root = root
        self._wake = wake
        self._inotify = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._covered: dict[str, Watched] = {}
        self._wanted: dict[str, dict[str, _Interest]] = {}
        """Folder -> section -> what of it."""
        self._numbers: dict[int, str] = {}
        self._masks: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)
        self._thread.start()

    def cover(self, section: str, watched: Watched) -> list[str]:
        """Watch these for a section; return the folders that cannot be watched.

        Cheap when nothing changed. A folder that is made later, or again, is found by the next call.
        """
        with self._lock:
            if self._covered.get(section) != watched:
                self._covered[section] = watched
                for wanted in self._wanted.values():
                    wanted.pop(section, None)
                for path in watched.paths:
                    self._want(section, path, _MASK)
                for path in watched.appearing:
                    self._want(section, path, _APPEARING)
                for folder in watched.folders:
                    self._wanted.setdefault(folder, {})[section] = _Interest(None, _MASK)
            return self._add(folder for folder, wanted in self._wanted.items() if section in wanted)

    def _want(self, section: str, path: str, mask: int) -> None:
        above, _, name = path.rpartition("/")
        wanted = self._wanted.setdefault(above or "/", {})
        names, before = wanted.get(section, _Interest(frozenset(), 0))
        wanted[section] = _Interest(None if names is None else names | {name}, before | mask)

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._thread.is_alive():
            os.write(self._wake_out, b".")
            self._thread.join()
            for each in (self._inotify, self._wake_in, self._wake_out):
                os.close(each)

    def _add(self, folders: Iterable[str]) -> list[str]:
        failed = []
        for folder in sorted(folders):
            mask = 0
            for interest in self._wanted[folder].values():
                mask |= interest.mask
            if self._masks.get(folder) == mask:
                continue
            path = os.fsencode(self._root / folder.lstrip("/"))
            number = _libc.inotify_add_watch(self._inotify, path, mask | _ADD_FLAGS)
            if number < 0:
                failed.append(folder)
            else:
                self._numbers[number] = folder
                self._masks[folder] = mask
        return failed

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        pause: dict[str, tuple[float, float]] = {}
        """Section -> not to be woken before, and the pause after that."""
        waiting: set[str] = set()
        while True:
            now = time.monotonic()
            due = {each for each in waiting if pause.get(each, (0.0, 0.0))[0] <= now}
            for section in sorted(due):
                before, pause_s = pause.get(section, (0.0, FIRST_S))
                pause_s = min(2 * pause_s, LONGEST_S) if now - before < 2 * pause_s else FIRST_S
                pause[section] = now + pause_s, pause_s
                self._wake(section)
            waiting -= due
            until = min((pause[each][0] for each in waiting), default=None)
            timeout = None if until is None else max(1.0, (until - time.monotonic()) * 1000)
            ready = [descriptor for descriptor, _ in poll.poll(timeout)]
            if self._wake_in in ready:
                return
            if self._inotify in ready:
                waiting |= self._touched()

    def _touched(self) -> set[str]:
        """Return the sections that the waiting events concern."""
        try:
            raw = os.read(self._inotify, _READ_BYTES)
        except BlockingIOError:
            return set()
        found: set[str] = set()
        at = 0
        with self._lock:
            while at < len(raw):
                number, mask, _, size = _HEAD.unpack_from(raw, at)
                name = os.fsdecode(raw[at + _HEAD.size : at + _HEAD.size + size].rstrip(b"\0"))
                at += _HEAD.size + size
                if mask & _OVERFLOW:
                    found |= set(self._covered)
                folder = self._numbers.get(number)
                if mask & _IGNORED:
                    self._masks.pop(self._numbers.pop(number, ""), None)
                for section, (names, _) in self._wanted.get(folder or "", {}).items():
                    if names is None or not name or name in names:
                        found.add(section)
        return found


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number) if number else os.strerror(errno.EIO))
    return result
