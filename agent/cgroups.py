"""Control groups of systemd units, in version 2's hierarchy (cgroups(7)). Reads only.

Refuses to look where others than systemd make groups: only slices are descended into, and never `user.slice`, in which
every user may name a group as he likes. Relies on: the hierarchy being mounted below `<sysfs>/fs/cgroup`, or in its
`unified` as hybrid systems have it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MAX_DEPTH = 6
_MAX_FOLDERS = 4096


class Found(NamedTuple):
    """A unit's group."""

    path: str
    """Below /sys/fs/cgroup, as nftables resolves it."""
    level: int
    """How many names deep in the hierarchy."""
    number: int
    """Its inode, which is the id that the kernel compares sockets with."""


class CgroupTree:
    """The hierarchy below one root."""

    def __init__(self, sysfs_root: Path) -> None:
        self._mount = sysfs_root / "fs" / "cgroup"

    def of_unit(self, unit: str) -> Found | None:
        """Return the group of a unit; None while it has none (it does not run), or where two claim to be it."""
        top = self._top()
        if top is None:
            return None
        found = [path for path in _slices(top) if path.name == unit]
        for parent in _slices(top):
            candidate = parent / unit
            if parent.name != unit and candidate.is_dir() and candidate not in found:
                found.append(candidate)
        if len(found) != 1:
            return None
        try:
            number = found[0].stat().st_ino
        except OSError:
            return None
        return Found(str(found[0].relative_to(self._mount)), len(found[0].relative_to(top).parts), number)

    def _top(self) -> Path | None:
        for place in (self._mount, self._mount / "unified"):
            if (place / "cgroup.controllers").exists():
                return place
        return None


def _slices(top: Path) -> Iterator[Path]:
    """Yield the root and every slice below it but those of users."""
    waiting, seen = [(top, 0)], 0
    while waiting and seen < _MAX_FOLDERS:
        folder, depth = waiting.pop()
        seen += 1
        yield folder
        if depth == _MAX_DEPTH:
            continue
        try:
            with os.scandir(folder) as entries:
                names = [each.name for each in entries if each.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        waiting += [
            (folder / name, depth + 1) for name in names if name.endswith(".slice") and name != "user.slice"
        ]
