"""What the probes of accounts and services share: small files read once, package files, things put aside. Not a probe."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from agent.glance import Glance
from agent.host import Host, Identity, facts_of
from agent.probes import Probe
from agent.tree import Kept

T = TypeVar("T")

SMALL_BYTES = 1024 * 1024
KEPT_FOR_S = 3600.0
"""A file is read anew after so long even if `stat` shows no change: a clock set back can hide one."""
_SETTLED_NS = 2_000_000_000
"""A file changed this lately may be changed again without another ctime."""
_REREAD_S = 20.0
"""What a package brought that has gone or was replaced since counts for so long after it."""
MAX_ASIDE = 64
"""Things put aside by one section; more stay where they are, and stay a drift."""
_ASIDE = "aside "

Path = Annotated[str, Meta(max_length=1024, pattern=r"\A(/[^/\x00-\x1f\x7f]+)+\Z")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Reason = Annotated[str, Meta(min_length=3, max_length=512)]


class Small(NamedTuple, Generic[T]):
    """A small file as it was read."""

    parsed: T
    sha256: str
    md5: str
    uid: int
    names: int
    """Hard links."""


class Reader(Generic[T]):
    """Reads files of one kind, each again only when it changed."""

    def __init__(self, parse: Callable[[bytes], T], max_bytes: int = SMALL_BYTES) -> None:
        self._parse = parse
        self._max_bytes = max_bytes
        self._glance: Glance | None = None
        self._known: dict[str, tuple[Identity, float, Small[T]]] = {}

    @contextmanager
    def quickly(self, glance: Glance) -> Iterator[None]:
        """Within this, do not open a file again that a glance finds to be the same."""
        self._glance = glance
        try:
            yield
        finally:
            self._glance = None

    def read(self, host: Host, path: str) -> Small[T]:
        """Return a file. Raises OSError; EFBIG for one that is too long."""
        host.breathe()
        last = self._known.get(path)
        if (
            last
            and self._glance
            and time.monotonic() - last[1] < KEPT_FOR_S
            and self._glance.same(path, last[0])
        ):
            return last[2]
        descriptor = host.open_file(path)
        try:
            identity, at = facts_of(descriptor).identity, time.monotonic()
            found = os.fstat(descriptor)
            known = self._known.get(path)
            if (
                known
                and known[0] == identity
                and at - known[1] < KEPT_FOR_S
                and known[2].names == found.st_nlink
            ):
                return known[2]
            content = b""
            while part := os.read(descriptor, SMALL_BYTES):
                content += part
                host.breathe()
                if len(content) > self._max_bytes:
                    raise OSError(errno.EFBIG, f"more than {self._max_bytes} bytes", path)
        finally:
            os.close(descriptor)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        sha256 = hashlib.sha256(content).hexdigest()
        small = Small(self._parse(content), sha256, md5, found.st_uid, found.st_nlink)
        if abs(time.time_ns() - found.st_ctime_ns) > _SETTLED_NS:
            self._known[path] = (identity, at, small)
        return small


class PackagedFiles:
    """Which files below some folders are as dpkg's packages brought them. Where there is no dpkg, none is."""

    def __init__(self, host: Host, folders: Sequence[str]) -> None:
        self._host = host
        self._folders = folders
        self._stamp: tuple[int, ...] | None = None
        self._stale = False
        self._read_at = 0.0
        self._sums: dict[str, str] = {}
        self.missing: OSError | None = None
        """Why dpkg's database could not be read: what is not known then is reported, and not taken away."""

    def cover(self, folders: Sequence[str]) -> None:
        """Know the files below these folders from the next `refresh` on."""
        if list(folders) != list(self._folders):
            self._folders, self._stamp = folders, None

    def has(self, path: str, md5: str) -> bool:
        """True if a package brought this path with this content; of a link (empty `md5`): if it brought the path."""
        if self._stamp is None:
            self.refresh()
        known = self._knows(path, md5)
        if not known and self._stale:
            self._read(self._host.packages.stamp())
            known = self._knows(path, md5)
        return known

    def _knows(self, path: str, md5: str) -> bool:
        if not md5:
            return path in self._sums
        return self._sums.get(path) == md5

    def refresh(self) -> None:
        """Take note if dpkg's database changed. To be called once in each look.

        While packages are installed it changes all the time, and files wake the section all the time: it is read again when
        something is not as it says, and after a while.
        """
        stamp = self._host.packages.stamp()
        self._stale = stamp != self._stamp
        if self._stale and (self._stamp is None or time.monotonic() - self._read_at >= _REREAD_S):
            self._read(stamp)

    def _read(self, stamp: tuple[int, ...]) -> None:
        try:
            self._sums = self._host.packages.dpkg_sums(self._folders)
            self.missing = None
        except OSError as error:
            self._sums, self.missing = {}, error
        self._stamp, self._read_at, self._stale = stamp, time.monotonic(), False


def remember(probe: Probe[Any], path: str, kept: Kept) -> None:
    """Keep what stood under a path before its first repair. Raises OSError if there is no room for more."""
    known = {key for key, _ in probe.remembered()}
    if _ASIDE + path not in known and len(known) >= MAX_ASIDE:
        raise OSError(errno.ENOSPC, f"{MAX_ASIDE} things are put aside already", path)
    probe.remember_first(_ASIDE + path, msgspec.json.encode(kept).decode())


def put_aside(probe: Probe[Any], path: str) -> None:
    """Take a file or link away, kept whole in the agent's state. Raises OSError; it then stays where it is."""
    tree = probe.around.host.tree
    kept = tree.keep(path)
    if kept.kind != "absent":
        remember(probe, path, kept)
        tree.remove(path)


def aside(probe: Probe[Any], key: str) -> tuple[str, Kept | None]:
    """Return the path that a remembered key stands for, and what stood there. Raises nothing: None for no such key."""
    value = probe.around.remembered.get(f"{probe.name}:{key}")
    return key.removeprefix(_ASIDE), msgspec.json.decode(value, type=Kept) if value is not None else None


def put_asides(probe: Probe[Any]) -> Iterator[tuple[str, Kept]]:
    """Yield what was kept, by path; each is forgotten after the caller has done with it."""
    for key, value in probe.remembered():
        if key.startswith(_ASIDE):
            yield key.removeprefix(_ASIDE), msgspec.json.decode(value, type=Kept)
            probe.forget(key)
