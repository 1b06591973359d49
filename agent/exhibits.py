"""What a repair found, kept before it is overwritten: for the people who ask afterwards who did what.

A folder of at most MAX_FILES records and MAX_BYTES, the oldest go first; the same thing found twice is kept once. A record
says path, owner, group, mode, times, the digest of the whole file (up to MAX_HASHED_BYTES) and its first 64 KiB; of a
link, where it led; of a process that was ended, what `agent.lastlook` saw. The gate (`agent.host`, `agent.tree`, `agent.proc`)
calls whenever it changes or ends anything, so no probe can forget.

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
from typing import Literal, NamedTuple

import msgspec

from agent.lastlook import LastLook, Program
from agent.proc import printable
from agent.store import replace_file
from contract.messages import never_more

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

    def said(self) -> dict[str, str]:
        """Return what an event says of it."""
        return {"sha256": self.sha256, "owner": f"{self.uid}:{self.gid}", "mode": self.mode}


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One process that was ended. Without environment and memory: secrets stand there."""

    kind: Literal["process"] = "process"
    pid: int
    name: str
    program: str
    sha256: str
    """Of the program; `whole` tells how far."""
    whole: bool
    content: str
    """The first 64 KiB of a program that had no name any more, base64."""
    command: list[str]
    uid: int
    gid: int
    parents: list[str]
    started_at: float
    cgroup: str
    folder: str
    sockets: list[str]
    at: float

    def said(self) -> dict[str, str]:
        """Return what an event says of it."""
        return {
            "sha256": self.sha256,
            "owner": f"{self.uid}:{self.gid}",
            "command": never_more(printable(" ".join(self.command)), 512),
            "sockets": never_more(printable(", ".join(self.sockets)), 2048),
        }


class Exhibit(NamedTuple):
    """What an event says of a record."""

    path: str
    """Of a process: "/tmp/x (pid 4242)"."""
    name: str
    """Of the file in the folder; empty: it could not be kept."""
    why_not: str
    said: dict[str, str]
    """Of the record; empty where there is none."""


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
            self._found.append(Exhibit(path, "", error.strerror or str(error), {}))
            return
        self._store(path, record, msgspec.structs.replace(record, at=0.0, ctime_ns=0, mtime_ns=0, inode=0))

    def keep_process(self, look: LastLook, program: Program) -> None:
        """Keep what a process was that was ended. Never raises OSError."""
        record = ProcessRecord(
            pid=look.pid,
            name=_line(look.name),
            program=_line(look.program),
            sha256=program.sha256,
            whole=program.whole,
            content=base64.b64encode(program.head).decode(),
            command=[
                _line(part.decode("utf-8", "backslashreplace")) for part in look.command.split(b"\0") if part
            ],
            uid=look.uid,
            gid=look.gid,
            parents=[_line(each) for each in look.parents],
            started_at=look.started_at,
            cgroup=_line(look.cgroup),
            folder=_line(look.folder),
            sockets=[_line(each) for each in look.sockets],
            at=time.time(),
        )
        # Somebody who starts the same again and again must not push out what else is kept.
        peers = sorted({each.partition(" to ")[2] for each in record.sockets})
        same = msgspec.structs.replace(
            record, pid=0, parents=[], started_at=0.0, at=0.0, sockets=peers, cgroup=""
        )
        self._store(f"{record.program or record.name} (pid {record.pid})", record, same)

    def _store(self, path: str, record: Record | ProcessRecord, same: Record | ProcessRecord) -> None:
        """Write a record, unless one with the same facts is there."""
        identity = hashlib.sha256(msgspec.json.encode(same)).hexdigest()[:16]
        try:
            file = self._known.get(identity, "")
            if not file or not (self._folder / file).exists():
                file = f"{time.time_ns():020d}-{identity}.json"
                content = msgspec.json.encode(record)
                self._make_room(len(content))
                replace_file(self._folder / file, content)
                self._known = {**dict(list(self._known.items())[-MAX_FILES:]), identity: file}
        except OSError as error:
            self._found.append(Exhibit(path, "", error.strerror or str(error), record.said()))
            return
        self._found.append(Exhibit(path, file, "", record.said()))

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


def _line(untrusted_text: str) -> str:
    return never_more(printable(untrusted_text), 4096)


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
