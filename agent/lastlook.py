"""What a process was right before it is ended, for the people who ask afterwards. Part of the gate `agent.host`.

Program (path and digest), command line, user, parents, start, control group, folder, sockets. Never its environment and never
its memory: secrets stand there. The program is read through its descriptor once the process is dead, so that reading it
delays nothing; one that was deleted, or lay in memory only, is still there then.

Refuses: to fail. What cannot be read is empty, and the process is ended all the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from agent.sockettable import SocketTable

MAX_COMMAND_BYTES = 4096
MAX_HASHED_BYTES = 64 * 1024 * 1024
MAX_SOCKETS = 64
HEAD_BYTES = 64 * 1024
_MAX_PARENTS = 8
_MAX_FILE_BYTES = 8192
_SLICE_BYTES = 1024 * 1024


class Program(NamedTuple):
    """What a process runs."""

    sha256: str
    """Empty where it could not be read."""
    whole: bool
    """False: the digest is of the first MAX_HASHED_BYTES."""
    head: bytes
    """Its first bytes, if it has no name any more: nobody could find it again."""


class LastLook(NamedTuple):
    """One process."""

    pid: int
    name: str
    program: str
    """Path, with ` (deleted)` where it has none any more."""
    command: bytes
    """Arguments, each ended by NUL."""
    uid: int
    gid: int
    parents: tuple[str, ...]
    """`bash (pid 7)`, the nearest first."""
    started_at: float
    """Wall clock; 0: not known."""
    cgroup: str
    folder: str
    sockets: tuple[str, ...]
    descriptor: int
    """Of the program, -1 where it could not be opened. The caller closes it."""


def last_look(root: Path, pid: int, sockets: SocketTable) -> LastLook | None:
    """Return what can be seen of a process below a procfs; None if it has gone."""
    status = _status(root, pid)
    if not status:
        return None
    descriptor = -1
    with suppress(OSError):
        descriptor = os.open(root / str(pid) / "exe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    open_here: list[str] = []
    with suppress(OSError):
        open_here = sockets.of_process(pid, MAX_SOCKETS)
    return LastLook(
        pid=pid,
        name=status.get("Name", ""),
        program=_link(root / str(pid) / "exe"),
        command=_read(root / str(pid) / "cmdline", MAX_COMMAND_BYTES),
        uid=_first_number(status.get("Uid", "")),
        gid=_first_number(status.get("Gid", "")),
        parents=_parents(root, status),
        started_at=_started_at(root, pid),
        cgroup=_text(root / str(pid) / "cgroup").strip().rpartition("\n")[2],
        folder=_link(root / str(pid) / "cwd"),
        sockets=tuple(open_here),
        descriptor=descriptor,
    )


def program_of(look: LastLook, breathe: Callable[[], None]) -> Program:
    """Return the digest of what the process ran, in slices; more urgent work is let in between."""
    if look.descriptor < 0:
        return Program("", True, b"")
    digest, size, head = hashlib.sha256(), 0, b""
    try:
        while size < MAX_HASHED_BYTES and (part := os.read(look.descriptor, _SLICE_BYTES)):
            digest.update(part)
            size += len(part)
            head = head or part[:HEAD_BYTES]
            breathe()
        found = os.fstat(look.descriptor)
    except OSError:
        return Program("", True, b"")
    return Program(digest.hexdigest(), found.st_size <= size, b"" if found.st_nlink else head)


def _parents(root: Path, status: dict[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    while len(found) < _MAX_PARENTS:
        pid = _first_number(status.get("PPid", ""))
        status = _status(root, pid) if pid > 0 else {}
        if not status:
            break
        found.append(f"{status.get('Name', '?')} (pid {pid})")
    return tuple(found)


def _started_at(root: Path, pid: int) -> float:
    """Return when a process began, as proc(5) says: field 22 of `stat`, in ticks since boot."""
    ticks = _text(root / str(pid) / "stat").rpartition(")")[2].split()
    booted = [line for line in _read(root / "stat", 1024 * 1024).splitlines() if line.startswith(b"btime ")]
    try:
        return int(booted[0].split()[1]) + int(ticks[19]) / os.sysconf("SC_CLK_TCK")
    except (IndexError, ValueError):
        return 0.0


def _status(root: Path, pid: int) -> dict[str, str]:
    lines = _text(root / str(pid) / "status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _first_number(text: str) -> int:
    first = (text.split() or [""])[0]
    return int(first) if first.isascii() and first.isdigit() else -1


def _text(path: Path) -> str:
    return _read(path, _MAX_FILE_BYTES).decode("utf-8", "backslashreplace")


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError:
        return b""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""
