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

FIRST_S, LONGEST_S = 0.1, 5.0
"""How soon after one wake the same section is woken again; doubles while it goes on."""
_ADD_FLAGS = 0x01000000 | 0x02000000  # IN_ONLYDIR, IN_DONT_FOLLOW
_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF (linux/inotify.h)."""
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_HEAD = struct.Struct("iIII")
_READ_BYTES = 65536
_libc = ctypes.CDLL(None, use_errno=True)

Names = frozenset[str] | None
"""Names in a folder that matter; None: all."""


class FileWatch:
    """Calls `wake(section)` on its own thread. `cover` and `close` from one other thread."""

    def __init__(self, root: Path, wake: Callable[[str], None]) -> None:
        """Raises OSError where the kernel gives no inotify."""
        self._root = root
        self._wake = wake
        self._inotify = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._covered: dict[str, object] = {}
        self._wanted: dict[str, dict[str, Names]] = {}
        """Folder -> section -> names."""
        self._numbers: dict[int, str] = {}
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)
        self._thread.start()

    def cover(self, section: str, paths: frozenset[str], folders: frozenset[str] = frozenset()) -> list[str]:
        """Watch these files, and all names of these folders, for a section; return the folders that cannot be watched.

        Cheap when nothing changed. A folder that is made later, or again, is found by the next call.
        """
        with self._lock:
            same = self._covered.get(section) == (paths, folders)
            if not same:
                self._covered[section] = paths, folders
                for wanted in self._wanted.values():
                    wanted.pop(section, None)
                for path in paths:
                    above, _, name = path.rpartition("/")
                    names = self._wanted.setdefault(above or "/", {}).get(section, frozenset())
                    self._wanted[above or "/"][section] = (names or frozenset()) | {name}
                for folder in folders:
                    self._wanted.setdefault(folder, {})[section] = None
            mine = [folder for folder, wanted in self._wanted.items() if section in wanted]
            return self._add(set(mine) - set(self._numbers.values()))

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
            path = os.fsencode(self._root / folder.lstrip("/"))
            number = _libc.inotify_add_watch(self._inotify, path, _MASK | _ADD_FLAGS)
            if number < 0:
                failed.append(folder)
            else:
                self._numbers[number] = folder
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
                    self._numbers.pop(number, None)
                for section, names in self._wanted.get(folder or "", {}).items():
                    if names is None or not name or name in names:
                        found.add(section)
        return found


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number) if number else os.strerror(errno.EIO))
    return result
