"""What a repair found, kept before it is overwritten: for the people who ask afterwards who did what.

A folder of at most MAX_FILES records and MAX_BYTES, the oldest go first; the same thing found twice is kept once. A record
says path, owner, group, mode, times, the digest of the whole file (up to MAX_HASHED_BYTES) and its first 64 KiB; of a
link, where it led. The gate (`agent.host`, `agent.tree`) calls before it changes anything, so no probe can forget.

Refuses: to stop a repair. When the disk takes nothing, the repair goes on and the event says what was not kept. It vouches
for nothing: root on the node can change the folder; the event with the digest has left by then.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.store import replace_file

MAX_FILES = 256
MAX_BYTES = 16 * 1024 * 1024
MAX_CONTENT_BYTES = 64 * 1024
MAX_HASHED_BYTES = 1024 * 1024
"""Some 5 ms of the thread that also owns the firewall."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One thing as it was found."""

    path: str
    kind: str
    """`file`, `link` or `other`."""
    uid: int
    gid: int
    mode: str
    """Four octal digits."""
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    links: int
    at: float
    target: str = ""
    """Of a link."""
    sha256: str = ""
    """Of the content, as far as it was read; `whole` tells how far."""
    whole: bool = True
    """False: the digest is of the first MAX_HASHED_BYTES."""
    content: str = ""
    """The first 64 KiB, base64."""
    attributes: dict[str, str] = {}
    """Extended attributes (ACL, capabilities), base64."""


class Exhibit(NamedTuple):
    """What an event says of a record."""

    path: str
    name: str
    """Of the file in the folder; empty: it could not be kept."""
    why_not: str
    record: Record | None


class Exhibits:
    """The folder. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: list[Exhibit] = []
        self._known: dict[str, str] = {}

    def take(self) -> list[Exhibit]:
        """Return what was kept, or could not be, since the last call."""
        found, self._found = self._found, []
        return found

    def keep(self, path: str, folder: int, name: str) -> None:
        """Keep what stands under a name in an open folder, before it is changed. Never raises OSError."""
        try:
            record = _record(path, folder, name)
        except FileNotFoundError:
            return
        except OSError as error:
            self._found.append(Exhibit(path, "", error.strerror or str(error), None))
            return
        identity = hashlib.sha256(
            msgspec.json.encode(msgspec.structs.replace(record, at=0.0, ctime_ns=0, mtime_ns=0, inode=0))
        ).hexdigest()[:16]
        try:
            file = self._known.get(identity, "")
            if not file or not (self._folder / file).exists():
                file = f"{time.time_ns():020d}-{identity}.json"
                content = msgspec.json.encode(record)
                self._make_room(len(content))
                replace_file(self._folder / file, content)
                self._known = {**dict(list(self._known.items())[-MAX_FILES:]), identity: file}
        except OSError as error:
            self._found.append(Exhibit(path, "", error.strerror or str(error), record))
            return
        self._found.append(Exhibit(path, file, "", record))

    def _make_room(self, wanted_bytes: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self._folder) as entries:
            sizes = {each.name: each.stat(follow_symlinks=False).st_size for each in entries}
        total = sum(sizes.values()) + wanted_bytes
        count = len(sizes) + 1
        for name in sorted(sizes):  # the name begins with the time
            if total <= MAX_BYTES and count <= MAX_FILES:
                return
            with suppress(OSError):
                (self._folder / name).unlink()
            total, count = total - sizes[name], count - 1


def _record(path: str, folder: int, name: str) -> Record:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return _of(path, "link", found, target=os.readlink(name, dir_fd=folder))
    if not stat.S_ISREG(found.st_mode):
        return _of(path, "other", found)
    descriptor = os.open(name, _READ, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return _of(path, "other", found)
        content = b""
        while len(content) < MAX_HASHED_BYTES and (part := os.read(descriptor, MAX_HASHED_BYTES)):
            content += part
        content = content[:MAX_HASHED_BYTES]
        attributes = {}
        with suppress(OSError):  # a file system may have none
            for each in os.listxattr(descriptor)[:32]:
                attributes[each] = base64.b64encode(os.getxattr(descriptor, each)[:4096]).decode()
        return _of(
            path,
            "file",
            found,
            sha256=hashlib.sha256(content).hexdigest(),
            whole=found.st_size <= len(content),
            content=base64.b64encode(content[:MAX_CONTENT_BYTES]).decode(),
            attributes=attributes,
        )
    finally:
        os.close(descriptor)


def _of(path: str, kind: str, found: os.stat_result, **more: object) -> Record:
    facts: dict[str, object] = {
        "path": path,
        "kind": kind,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "links": found.st_nlink,
        "at": time.time(),
    }
    return msgspec.convert({**facts, **more}, Record)
