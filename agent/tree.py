"""Folders, links and small files below the machine's root: listing, keeping what was there, putting in its place.

Part of the gate `agent.host`. Refuses to follow a symbolic link in any part of a path (only `real_folder` follows those that
root alone could have made, and says where they lead), to write in place and to open what is no regular file.
A change is made beside the name and renamed over it, on disk before it counts.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import secrets
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

MAX_KEPT_BYTES = 1024 * 1024
MAX_KEPT_PACKED_BYTES = 48 * 1024
"""What is kept of a file stands in the agent's state, which is written whole: repeated bytes cost nothing, noise does."""
MAX_ENTRIES = 16384
MAX_REMEMBERED = 8192
"""Names that are kept of folders that were read."""
REREAD_S = 600.0
"""A folder is read again after so long, whatever its ctime says: with the clock turned back it could come again."""
NAMES_A_BREATH = 64
"""Some 0.1 ms."""
_MAX_LINKS = 16
_RACY_NS = 3_000_000_000
"""More than a tick of the coarsest clock of a file system (FAT: two seconds)."""
_TELL_NO_CHANGE = ("/proc", "/sys")
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Kind = Literal["file", "link", "folder", "other"]


class Entry(NamedTuple):
    """One name in a folder."""

    name: str
    kind: Kind
    target: str
    """Of a link, as it is written; else empty."""


_Moment = tuple[int, int, int, int]
"""Device, inode, mtime and ctime in nanoseconds."""


class _Read(NamedTuple):
    """What stood in a folder, and when that was."""

    moment: _Moment
    at_s: float
    entries: list[Entry]


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stood under a name, whole: enough to put it back."""

    kind: Literal["file", "link", "absent"]
    uid: int = 0
    gid: int = 0
    mode: int = 0
    target: str = ""
    packed: str = ""
    """Content: zlib, base64."""

    def content(self) -> bytes:
        """Return the content of a file."""
        return zlib.decompress(base64.b64decode(self.packed))


class Tree:
    """The files below one root."""

    def __init__(self, root: Path, breathe: Callable[[], None] = lambda: None) -> None:
        self._root = os.fspath(root)
        self._breathe = breathe
        self._read: dict[str, _Read] = {}
        self._remembered = 0
        self.before_change: Callable[[str, int, str], None] | None = None
        """Called with path, open folder and name before anything that stands there is changed."""

    def entries(self, path: str) -> list[Entry]:
        """Return the names in a folder, sorted. Raises OSError; E2BIG for more than MAX_ENTRIES.

        A folder that nothing was put into or taken out of since it was read is not read again: that moves its ctime, which
        nobody can set. Below /proc and /sys it does not.
        """
        with self._folder(path) as folder:
            before = _moment(folder)
            known = self._read.get(path)
            if known is not None and known.moment == before and time.monotonic() - known.at_s < REREAD_S:
                return list(known.entries)
            readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
            found: list[Entry] = []
            try:
                with os.scandir(readable) as names:  # knows the kind of most without another call
                    for each in names:
                        if len(found) % NAMES_A_BREATH == 0:
                            self._breathe()
                        if len(found) >= MAX_ENTRIES:
                            raise OSError(errno.E2BIG, f"more than {MAX_ENTRIES} names", path)
                        with suppress(FileNotFoundError):  # gone meanwhile
                            found.append(_listed(folder, each))
            finally:
                os.close(readable)
            found.sort()
            self._remember(path, before, found)
            return list(found)

    def _remember(self, path: str, before: _Moment, found: list[Entry]) -> None:
        """Keep a listing, unless a change could follow it within one tick of the file system's clock."""
        old = self._read.pop(path, None)
        self._remembered -= len(old.entries) if old else 0
        if path.startswith(_TELL_NO_CHANGE) or abs(time.time_ns() - before[3]) < _RACY_NS:
            return
        if self._remembered + len(found) > MAX_REMEMBERED:
            self._read, self._remembered = {}, 0
        if len(found) <= MAX_REMEMBERED:
            self._read[path] = _Read(before, time.monotonic(), found)
            self._remembered += len(found)

    def entry(self, path: str) -> Entry | None:
        """Return what stands under a path, itself not followed, or None. Raises OSError for a folder that cannot be entered."""
        try:
            with self._parent(path) as (folder, name):
                return _entry(folder, name)
        except FileNotFoundError:
            return None

    def real_folder(self, path: str) -> str:
        """Return the path of a folder without links, following those that belong to root in root's own folders.

        A link of anybody else is not followed: opening what is behind it fails. Raises OSError.
        """
        waiting = _parts(path)
        done: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            with self._folder("/" + "/".join(done)) as folder:
                found = os.stat(part, dir_fd=folder, follow_symlinks=False)
                above = os.fstat(folder)
                trusted = found.st_uid == 0 and above.st_uid == 0 and not above.st_mode & 0o022
                if not (stat.S_ISLNK(found.st_mode) and trusted):
                    done.append(part)
                    continue
                target = os.readlink(part, dir_fd=folder)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                done = []
            waiting = _parts(target) + waiting
        return "/" + "/".join(done)

    def keep(self, path: str) -> Kept:
        """Return what stands under a path. Raises OSError; EFBIG if it is too much to be kept."""
        try:
            with self._parent(path) as (folder, name):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    target = os.readlink(name, dir_fd=folder)
                    return Kept(kind="link", uid=found.st_uid, gid=found.st_gid, target=target)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "neither a file nor a link", path)
                with open(os.open(name, _READ, dir_fd=folder), "rb") as file:  # noqa: PTH123
                    found = os.fstat(file.fileno())
                    if not stat.S_ISREG(found.st_mode):
                        raise OSError(errno.EINVAL, "neither a file nor a link", path)
                    content = file.read(MAX_KEPT_BYTES + 1)
        except FileNotFoundError:
            return Kept(kind="absent")
        packed = zlib.compress(content)
        if len(content) > MAX_KEPT_BYTES or len(packed) > MAX_KEPT_PACKED_BYTES:
            raise OSError(errno.EFBIG, "too much to be kept, so it stays", path)
        return Kept(
            kind="file",
            uid=found.st_uid,
            gid=found.st_gid,
            mode=stat.S_IMODE(found.st_mode),
            packed=base64.b64encode(packed).decode(),
        )

    def put(self, path: str, kept: Kept) -> None:
        """Make a path what was kept, in one step. Raises OSError. The folder must be there unless `kept` is absence."""
        if kept.kind == "absent":
            self.remove(path)
            return
        with self._parent(path) as (folder, name):
            self.about_to_change(path, folder, name)
            fresh = f".ringfence-{secrets.token_hex(8)}"
            try:
                if kept.kind == "link":
                    os.symlink(kept.target, fresh, dir_fd=folder)
                    os.chown(fresh, kept.uid, kept.gid, dir_fd=folder, follow_symlinks=False)
                else:
                    self._fill(folder, fresh, name, kept)
                os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with suppress(OSError):
                    os.unlink(fresh, dir_fd=folder)
                raise
            _settle(folder)

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """Hold the lock that passwd(1) and its like hold while they change account files (lckpwdf(3)). Raises OSError:
        EAGAIN where somebody has it."""
        with self._parent(path) as (folder, name):
            descriptor = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        """Take a file or link away; nothing happens if it is not there. Raises OSError."""
        with suppress(FileNotFoundError), self._parent(path) as (folder, name):
            self.about_to_change(path, folder, name)
            os.unlink(name, dir_fd=folder)
            _settle(folder)

    def about_to_change(self, path: str, folder: int, name: str) -> None:
        """Say that what stands under a name in an open folder is about to be changed."""
        if self.before_change is not None:
            self.before_change(path, folder, name)

    def make_folder(self, path: str) -> None:
        """Make a folder (root's, 0755) if it is not there. Raises OSError."""
        with suppress(FileExistsError), self._parent(path) as (folder, name):
            os.mkdir(name, 0o755, dir_fd=folder)

    def _fill(self, folder: int, fresh: str, name: str, kept: Kept) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(fresh, flags, 0o600, dir_fd=folder)
        try:
            left = memoryview(kept.content())
            while left:
                left = left[os.write(descriptor, left) :]
            os.fchown(descriptor, kept.uid, kept.gid)
            with suppress(OSError):  # labels and ACLs of what stands there; a file system may have none
                before = os.open(name, _READ, dir_fd=folder)
                try:
                    for attribute in os.listxattr(before):
                        os.setxattr(descriptor, attribute, os.getxattr(before, attribute))
                finally:
                    os.close(before)
            os.fchmod(descriptor, kept.mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        parts = _parts(path)
        if ".." in parts or not path.startswith("/"):
            raise OSError(errno.EINVAL, "no path of a folder", path)
        folder = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                inner = os.open(part, _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        above, _, name = path.rpartition("/")
        if not name or name in (".", ".."):
            raise OSError(errno.EINVAL, "no path of a file", path)
        with self._folder(above or "/") as folder:
            yield folder, name


def file_of(content: bytes, like: Kept) -> Kept:
    """Return a file of that content with owner and mode of another."""
    packed = base64.b64encode(zlib.compress(content)).decode()
    return Kept(kind="file", uid=like.uid, gid=like.gid, mode=like.mode, packed=packed)


def _parts(path: str) -> list[str]:
    """Return the names in a path; what `pathlib` says, at a seventh of its price."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _moment(folder: int) -> _Moment:
    found = os.stat(folder)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _listed(folder: int, each: os.DirEntry[str]) -> Entry:
    if each.is_symlink():
        return Entry(each.name, "link", os.readlink(each.name, dir_fd=folder))
    kind: Kind = "other"
    if each.is_file(follow_symlinks=False):
        kind = "file"
    elif each.is_dir(follow_symlinks=False):
        kind = "folder"
    return Entry(each.name, kind, "")


def _entry(folder: int, name: str) -> Entry:
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return Entry(name, "link", os.readlink(name, dir_fd=folder))
    kind: Kind = "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"
    return Entry(name, kind, "")


def _settle(folder: int) -> None:
    """Bring the folder itself to disk."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(readable)
    finally:
        os.close(readable)
